// From logits to tokens on the device: temperature, cuts, log-probabilities, and a draw that
// depends on seed and position alone (kernels/philox.h), so that it is the CPU sampler's; and how
// far drafted tokens agree with the sampled ones.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"

namespace reprise::kernels::cuda {

// How one row is sampled; ranges as engine/sampler.h has them.
struct SampleRow {
  uint64_t seed = 0;
  uint64_t position = 0;  // index of the sampled token in its sequence
  float temperature = 1;  // 0: greedy
  float top_p = 1;
  float min_p = 0;
  int32_t top_k = 0;  // 0: no cut
};

struct SampledRow {
  int32_t id = -1;        // -1: a logit is not finite
  int32_t kept = 0;       // tokens that the cuts left
  float logprob = 0;      // under the distribution it was drawn from; 0 when greedy
  float raw_logprob = 0;  // at temperature 1 with nothing cut
};

// Pointers are of the device.
struct SampleParams {
  const float* logits = nullptr;   // [rows, vocab]
  const SampleRow* how = nullptr;  // [rows]
  SampledRow* sampled = nullptr;   // [rows]
  int64_t rows = 0, vocab = 0;
};

// Sequence s has rows [first[s], first[s + 1]); row r was fed fed[r], a draft behind the sequence's
// first row, and sampled what comes after it.
struct VerifyParams {
  const int32_t* first = nullptr;       // [sequences + 1]
  const int32_t* fed = nullptr;         // [rows]
  const SampledRow* sampled = nullptr;  // [rows]
  int32_t* kept = nullptr;  // [sequences]: sampled tokens that count, those up to the first that
                            // was not fed on
  int64_t sequences = 0;
};

// Each queues its work on `stream`. INVALID_ARGUMENT for an empty vocabulary; other errors are of
// the launch. Nothing happens for no rows.
absl::Status Sample(const SampleParams& params, cudaStream_t stream);
absl::Status VerifyDrafts(const VerifyParams& params, cudaStream_t stream);

}  // namespace reprise::kernels::cuda
