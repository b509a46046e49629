// The order in which a grid's blocks take the tiles of a product.
#pragma once

#include <cstdint>

#include "kernels/host_device.h"

namespace reprise::kernels::cuda {

struct TileAt {
  int64_t out = 0;  // tile of the weight's rows
  int64_t row = 0;  // tile of the input's rows
};

// Tiles that run at a time read the weights of few output tiles and few inputs: kBand output tiles
// go through all rows before the next ones, so that both come from L2 the second time.
inline constexpr int64_t kBand = 8;

// Tile `index` of out_tiles * row_tiles.
REPRISE_BOTH constexpr TileAt TileOf(int64_t index, int64_t out_tiles, int64_t row_tiles) {
  const int64_t band = index / (kBand * row_tiles), first = band * kBand;
  const int64_t wide = out_tiles - first < kBand ? out_tiles - first : kBand;
  const int64_t inside = index - first * row_tiles;
  return {first + inside % wide, inside / wide};
}

}  // namespace reprise::kernels::cuda
