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
  // Both outlive this. `digest` is that of the engine, whose address says who made the sequence.
  EngineSequence(const std::string* digest, const KvLayout* layout) : kv(layout), digest_(digest) {}

  int64_t length() const override { return kv.length(); }
  int64_t memory_bytes() const override { return kv.memory_bytes(); }
  absl::Span<const int32_t> tokens() const override { return ids; }
  std::unique_ptr<Sequence> Fork() const override;
  absl::Status Rewind(int64_t length) override;
  std::string Save() const override;

  // Into a sequence that was just made. Errors as Engine::Restore.
  absl::Status Load(std::string_view bytes);
  // Begins with the state after `tokens` that another sequence left.
  void Adopt(absl::Span<const int32_t> tokens, const KvState& state);
  bool MadeBy(const std::string* digest) const { return digest_ == digest; }

  // Of the engine's step.
  KvState kv;
  std::vector<int32_t> ids;        // [length]
  int64_t residual_position = -1;  // whose residual streams kv keeps; -1 is none
  int32_t mtp_next = -1;           // the token that the MTP block took for ids[length], if it did
  int32_t guess = -1;              // its guess of ids[length + 1] for that token; -1 is none

 private:
  const std::string* const digest_;
};

}  // namespace reprise::engine
