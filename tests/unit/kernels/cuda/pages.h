// A pool of pages with rows of sequences, pages in any order, on the host and on the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cpu/quantise.h"
#include "kernels/cuda/paged.h"
#include "kernels/formats.h"
#include "tests/unit/kernels/cuda/device.h"

namespace reprise::kernels {

class Pages {
 public:
  // Room for `rows` rows a sequence.
  Pages(int64_t sequences, int64_t rows, int64_t rows_per_page, int64_t row_bytes,
        cuda::RowFormat format, std::mt19937& random) {
    where_.pages_max = (rows + rows_per_page - 1) / rows_per_page;
    where_.offset = 24;
    where_.rows_per_page = rows_per_page;
    where_.row_bytes = row_bytes;
    where_.page_bytes = where_.offset + rows_per_page * row_bytes + 40;
    where_.format = format;
    table_.resize(static_cast<size_t>(sequences * where_.pages_max));
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), random);
    bytes_.assign(table_.size() * static_cast<size_t>(where_.page_bytes), 0xFF);
  }

  uint8_t* Row(int64_t sequence, int64_t w) {
    cuda::PagedRows at = where_;
    at.pages = bytes_.data();
    at.table = table_.data();
    return cuda::RowOf(at, sequence, w);
  }
  uint8_t* RingRow(int64_t sequence, int64_t position) {
    return Row(sequence, position % where_.rows_per_page);
  }
  // Copies what the host has; valid until the next call.
  cuda::PagedRows Upload() {
    device_bytes_ = std::make_unique<Device<uint8_t>>(bytes_);
    device_table_ = std::make_unique<Device<int32_t>>(table_);
    cuda::PagedRows at = where_;
    at.pages = device_bytes_->get();
    at.table = device_table_->get();
    return at;
  }
  // Copies back what the device has.
  void Download() { bytes_ = device_bytes_->Read(); }
  cuda::RowFormat format() const { return where_.format; }

 private:
  cuda::PagedRows where_;
  std::vector<int32_t> table_;
  std::vector<uint8_t> bytes_;
  std::unique_ptr<Device<uint8_t>> device_bytes_;
  std::unique_ptr<Device<int32_t>> device_table_;
};

inline int64_t EntryBytes(cuda::RowFormat format, int64_t dim, int64_t rope) {
  if (format == cuda::RowFormat::kF32) return dim * 4;
  return format == cuda::RowFormat::kBf16 ? dim * 2 : cpu::PackedEntryBytes(dim, rope);
}

// x[dim] as a row of `format`, where x is a value that the format can hold; and back.
inline void StoreEntry(const float* x, int64_t dim, int64_t rope, cuda::RowFormat format,
                       uint8_t* out) {
  if (format == cuda::RowFormat::kPacked) return cpu::PackEntry(x, dim, rope, out);
  for (int64_t i = 0; i < dim; ++i) {
    const uint16_t half = Bf16Bits(x[i]);
    if (format == cuda::RowFormat::kF32) std::memcpy(out + 4 * i, x + i, 4);
    if (format == cuda::RowFormat::kBf16) std::memcpy(out + 2 * i, &half, 2);
  }
}
inline void LoadEntry(const uint8_t* in, int64_t dim, int64_t rope, cuda::RowFormat format,
                      float* x) {
  if (format == cuda::RowFormat::kPacked) return cpu::UnpackEntry(in, dim, rope, x);
  for (int64_t i = 0; i < dim; ++i) {
    uint16_t half;
    std::memcpy(&half, in + 2 * i, 2);
    x[i] = WidenBf16(half);
    if (format == cuda::RowFormat::kF32) std::memcpy(x + i, in + 4 * i, 4);
  }
}

}  // namespace reprise::kernels
