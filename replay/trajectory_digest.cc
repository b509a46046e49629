// The digest of a trajectory: SHA-256 over ids, mask, log-probabilities, versions and routes
// (replay/FORMAT.md).
#include <cstring>

#include "replay/sha256.h"
#include "replay/trajectory_state.h"

namespace reprise::replay {
namespace {

template <typename T>
std::string LittleEndian(const std::vector<T>& values) {
  static_assert(sizeof(T) == 1 || sizeof(T) == 4);
  std::string bytes;
  bytes.reserve(values.size() * sizeof(T));
  for (T value : values) {
    uint32_t word = 0;
    std::memcpy(&word, &value, sizeof(T));
    for (size_t i = 0; i < sizeof(T); ++i) bytes.push_back(static_cast<char>(word >> (8 * i)));
  }
  return bytes;
}

}  // namespace

std::string TrajectoryDigest(const TrajectoryState& state) {
  Sha256 hash;
  hash.AddSized("rollout.v1");
  hash.AddU64(state.prompt_len());
  hash.AddSized(LittleEndian(state.tokens));
  hash.AddSized(LittleEndian(state.loss_mask));
  hash.AddSized(LittleEndian(state.logprobs));
  hash.AddU64(state.version_spans.size());
  for (const VersionSpan& span : state.version_spans)
    hash.AddU64(span.version).AddU64(span.begin).AddU64(span.end);
  hash.AddSized(state.routed_experts);
  return hash.Finish();
}

}  // namespace reprise::replay
