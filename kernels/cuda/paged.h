// Where rows of sequences lie in device memory: pages of a pool, found by a table. A ring is one
// page of which row `position % rows_per_page` is a position's.
#pragma once

#include <cstdint>

#include "kernels/host_device.h"

namespace reprise::kernels::cuda {

// How one row is stored. kPacked is the packed form of kernels/cpu/quantise.h: of key-value entries
// FP8 with bfloat16 rotary channels (584 bytes for 512 with 64), of indexer keys FP4.
enum class RowFormat : uint8_t { kF32, kBf16, kPacked };

// Pointers are of the device.
struct PagedRows {
  uint8_t* pages = nullptr;        // the pool
  const int32_t* table = nullptr;  // [sequences, pages_max]: numbers of pages in the pool
  int64_t pages_max = 1;
  int64_t page_bytes = 0;
  int64_t offset = 0;  // of the first row in a page, bytes
  int64_t rows_per_page = 1;
  int64_t row_bytes = 0;  // a multiple of the format's element
  RowFormat format = RowFormat::kF32;
};

// Row w of a sequence. REQUIRES: the table has its page.
REPRISE_BOTH inline uint8_t* RowOf(const PagedRows& rows, int64_t sequence, int64_t w) {
  const int64_t page = rows.table[sequence * rows.pages_max + w / rows.rows_per_page];
  return rows.pages + page * rows.page_bytes + rows.offset +
         w % rows.rows_per_page * rows.row_bytes;
}

// The row of a position in a ring.
REPRISE_BOTH inline uint8_t* RingRowOf(const PagedRows& ring, int64_t sequence, int64_t position) {
  return RowOf(ring, sequence, position % ring.rows_per_page);
}

}  // namespace reprise::kernels::cuda
