// A sequence as the engine sees it: its tokens, its KV state, and what the MTP block guessed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/kv_state.h"

namespace reprise::engine {

class EngineSequence final : public Sequence {
 public:
  // Outlives this; its address says which engine made the sequence.
  explicit EngineSequence(const KvLayout* layout) : kv(layout) {}

  int64_t length() const override { return kv.length(); }
  int64_t memory_bytes() const override { return kv.memory_bytes(); }
  absl::Span<const int32_t> tokens() const override { return ids; }
  absl::Span<const KvOrigin> origins() const override { return made_by; }
  std::unique_ptr<Sequence> Fork() const override;
  absl::Status Rewind(int64_t length) override;
  std::string Save() const override;

  // Into a sequence that was just made. `digest`: of the weights that it goes on under. Errors as
  // Engine::Restore.
  absl::Status Load(std::string_view bytes, const std::string& digest);
  // Begins with the state after `tokens` that another sequence left, made by one checkpoint.
  void Adopt(absl::Span<const int32_t> tokens, const KvState& state, const std::string& digest);
  // Tokens from `begin` on were fed under the weights with that digest.
  void NoteOrigin(int64_t begin, const std::string& digest);

  // Of the engine's step.
  KvState kv;
  std::vector<int32_t> ids;        // [length]
  std::vector<KvOrigin> made_by;   // of the state
  int64_t residual_position = -1;  // whose residual streams kv keeps; -1 is none
  int32_t mtp_next = -1;           // the token that the MTP block took for ids[length], if it did
  int32_t guess = -1;              // its guess of ids[length + 1] for that token; -1 is none
};

}  // namespace reprise::engine
