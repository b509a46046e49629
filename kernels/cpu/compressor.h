// Pooling of one block of tokens into one compressed entry: a softmax over the block's rows, channel by channel.
#pragma once

#include <cstdint>

namespace reprise::kernels::cpu {

// One term a channel range of a token contributes: values and gate logits (position bias added), [dim] each.
struct PoolRow {
  const float* value;
  const float* gate;
};

// out[c] = sum_i softmax_i(rows[i].gate[c]) * rows[i].value[c], rows in the given order (ascending token).
// `scratch` has count * dim elements.
void PoolBlock(const PoolRow* rows, int64_t count, int64_t dim, float* scratch, float* out);

}  // namespace reprise::kernels::cpu
