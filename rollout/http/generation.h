// One answer to one request, as the scheduler decodes it: detokenises, finds the end (end of
// sentence, stop tokens, stop strings, length), and hands every token to a sink once it may be
// seen. An answer that belongs to a trajectory is logged on the way (recording.h): its tokens are
// durable before the sink hears of them.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tokenizer.h"
#include "rollout/guest.h"

namespace reprise::rollout::http {

struct GenerationSpec {
  std::vector<int32_t> prompt;
  engine::SamplingParams
      sampling;                   // stop_ids are those of the request, without the end of sentence
  std::shared_ptr<engine::TokenMasks> masks;  // of the form that it has; nullptr: free text
  int64_t max_tokens = 0;         // >= 1
  int64_t min_tokens = 0;         // before these no end of sentence and no stop token is sampled
  std::vector<std::string> stop;  // texts that end the answer
  bool include_stop = false;      // the text of the stop string is part of the answer
  bool ignore_eos = false;
  // Stop strings count after this token and before that one only: a chat answer's reasoning and
  // its tool calls are no content. -1: none.
  int32_t stop_after_id = -1, stop_before_id = -1;
};

struct RecordedToken {
  engine::SampledToken token;
  uint64_t weight_version = 0;
};
struct TokenOut {
  engine::SampledToken token;
  uint64_t weight_version = 0;
  std::string text;  // complete UTF-8 that may be given out now; "" while it is held back
};
struct FinishOut {
  std::string reason;                    // "stop", "length"
  std::string text;                      // what was still held back
  std::optional<int32_t> stop_id;        // the stop token of the request that ended it
  std::optional<std::string> stop_text;  // the stop string that did
};

// What a request hears of its answers; on the engine thread.
class GenerationSink {
 public:
  virtual ~GenerationSink() = default;
  virtual void OnBegun(size_t choice, int64_t cached_tokens) = 0;
  virtual void OnToken(size_t choice, TokenOut token) = 0;
  virtual void OnFinish(size_t choice, FinishOut finish) = 0;  // the last of a choice
  virtual void OnError(const absl::Status& why) = 0;
};

// Gives out text but for what may yet become a stop string.
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> stop, bool include)
      : stop_(std::move(stop)), include_(include) {}
  // Appends to `out` what can be given out. The stop string, once it is there: nothing follows it.
  std::optional<std::string> Push(std::string_view text, std::string* out);
  std::string Finish() { return std::move(held_); }

 private:
  const std::vector<std::string> stop_;
  const bool include_;
  std::string held_;
};

class Recording;

class Generation final : public Guest {
 public:
  // `tokenizer` and `sink`'s owner outlive the scheduler's interest in this. `recording`: nullptr
  // for an answer that nobody records.
  Generation(GenerationSpec spec, const engine::Tokenizer* tokenizer, int32_t eos_id, size_t choice,
             std::shared_ptr<GenerationSink> sink, std::shared_ptr<Recording> recording);

  // Takes over tokens that were sampled and recorded before, as if they came now. True when they
  // end the answer: then nothing is left to decode. `cached_tokens`: of an answer that has ended.
  // REQUIRES: before the scheduler has it.
  bool Replay(const std::vector<RecordedToken>& tokens, std::optional<int64_t> cached_tokens);
  // The client has gone: it leaves at the next token boundary. Any thread.
  void Cancel() { cancelled_ = true; }

  bool Wanted() const override { return !ended_ && !cancelled_; }
  absl::Span<const int32_t> tokens() const override { return tokens_; }
  const engine::SamplingParams& sampling() const override {
    return static_cast<int64_t>(tokens_.size() - prompt_) < spec_.min_tokens ? forced_
                                                                             : spec_.sampling;
  }
  void OnBegun(int64_t cached_tokens) override;
  void OnSampled(const engine::SampledToken& token, uint64_t weight_version, Appends* log) override;
  void OnDurable() override;
  void OnFailed(const absl::Status& why) override;

 private:
  struct Seen {
    TokenOut token;
    std::optional<FinishOut> finish;
  };
  // The token's text, and whether the answer ends with it.
  Seen Take(const engine::SampledToken& token, uint64_t weight_version);
  void Show(Seen seen);

  GenerationSpec spec_;
  engine::SamplingParams forced_;  // of the first min_tokens
  const engine::Tokenizer* const tokenizer_;
  const int32_t eos_id_;
  const size_t choice_;
  const std::shared_ptr<GenerationSink> sink_;
  const std::shared_ptr<Recording> recording_;
  std::vector<int32_t> tokens_;
  size_t prompt_ = 0;
  engine::StreamDecoder decoder_;
  StopStrings stop_;
  bool stop_on_ = true;  // stop strings count where the answer is now
  bool ended_ = false;
  std::deque<Seen> unseen_;  // on their way to the disk
  std::atomic<bool> cancelled_{false};
};

}  // namespace reprise::rollout::http
