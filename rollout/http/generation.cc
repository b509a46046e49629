#include "rollout/http/generation.h"

#include <algorithm>
#include <utility>

#include "rollout/http/recording.h"
#include "rollout/text.h"

namespace reprise::rollout::http {
namespace {

constexpr float kNever = -1000;  // as a logit's bias

// Bytes at the end of `text` that `stop` may begin with.
size_t Overlap(std::string_view text, std::string_view stop) {
  size_t most = std::min(text.size(), stop.size() - 1);
  for (size_t length = most; length > 0; --length) {
    if (text.substr(text.size() - length) == stop.substr(0, length)) return length;
  }
  return 0;
}

}  // namespace

std::optional<std::string> StopStrings::Push(std::string_view text, std::string* out) {
  held_ += text;
  size_t at = std::string::npos;
  const std::string* found = nullptr;
  size_t keep = 0;
  for (const std::string& stop : stop_) {
    const size_t here = held_.find(stop);
    if (here < at) {
      at = here;
      found = &stop;
    }
    keep = std::max(keep, Overlap(held_, stop));
  }
  if (found == nullptr) {
    out->append(held_, 0, held_.size() - keep);
    held_.erase(0, held_.size() - keep);
    return std::nullopt;
  }
  out->append(held_, 0, at + (include_ ? found->size() : 0));
  held_.clear();
  return *found;
}

Generation::Generation(GenerationSpec spec, const engine::Tokenizer* tokenizer, int32_t eos_id,
                       size_t choice, std::shared_ptr<GenerationSink> sink,
                       std::shared_ptr<Recording> recording)
    : spec_(std::move(spec)),
      tokenizer_(tokenizer),
      eos_id_(eos_id),
      choice_(choice),
      sink_(std::move(sink)),
      recording_(std::move(recording)),
      tokens_(spec_.prompt),
      prompt_(tokens_.size()),
      decoder_(tokenizer),
      stop_(spec_.stop, spec_.include_stop),
      stop_on_(spec_.stop_after_id < 0) {
  spec_.sampling.prompt_tokens = static_cast<int64_t>(prompt_);
  if (spec_.masks != nullptr) {
    spec_.sampling.constraint = std::make_shared<engine::AnswerConstraint>(spec_.masks, prompt_);
  }
  forced_ = spec_.sampling;
  forced_.logit_bias.emplace_back(eos_id_, kNever);
  for (const int32_t id : forced_.stop_ids) forced_.logit_bias.emplace_back(id, kNever);
}

Generation::Seen Generation::Take(const engine::SampledToken& token, uint64_t weight_version) {
  tokens_.push_back(token.id);
  Seen seen{.token = {.token = token, .weight_version = weight_version, .text = ""},
            .finish = std::nullopt};
  std::string& text = seen.token.text;
  const bool eos = token.id == eos_id_ && !spec_.ignore_eos;
  FinishOut finish{.reason = "stop", .text = "", .stop_id = {}, .stop_text = {}};
  bool ended = eos || token.stop;
  if (token.stop && !eos) finish.stop_id = token.id;
  if (!ended) {
    std::string fresh = ToUtf8(decoder_.Push(token.id));
    if (token.id == spec_.stop_before_id) {
      text = stop_.Finish();
      stop_on_ = false;
    }
    if (stop_on_) {
      finish.stop_text = stop_.Push(fresh, &text);
      ended = finish.stop_text.has_value();
    } else {
      text += fresh;
    }
    if (token.id == spec_.stop_after_id) stop_on_ = true;
  }
  if (!ended && static_cast<int64_t>(tokens_.size() - prompt_) >= spec_.max_tokens) {
    finish.reason = "length";
    ended = true;
  }
  if (!ended) return seen;
  if (!finish.stop_text.has_value()) {
    std::string rest = decoder_.Finish();
    if (stop_on_ && finish.reason == "length") {
      std::string out;
      finish.stop_text = stop_.Push(rest, &out);
      if (finish.stop_text.has_value()) finish.reason = "stop";
      finish.text = out + stop_.Finish();
    } else {
      finish.text = stop_.Finish() + rest;
    }
  }
  ended_ = true;
  seen.finish = std::move(finish);
  return seen;
}

void Generation::Show(Seen seen) {
  sink_->OnToken(choice_, std::move(seen.token));
  if (seen.finish.has_value()) sink_->OnFinish(choice_, *std::move(seen.finish));
}

void Generation::OnBegun(int64_t cached_tokens) {
  if (recording_ != nullptr) recording_->OnBegun(cached_tokens);
  sink_->OnBegun(choice_, cached_tokens);
}

bool Generation::Replay(const std::vector<RecordedToken>& tokens,
                        std::optional<int64_t> cached_tokens) {
  if (cached_tokens.has_value()) sink_->OnBegun(choice_, *cached_tokens);
  for (const RecordedToken& recorded : tokens) {
    if (ended_) break;
    Show(Take(recorded.token, recorded.weight_version));
  }
  return ended_;
}

void Generation::OnSampled(const engine::SampledToken& token, uint64_t weight_version,
                           Appends* log) {
  Seen seen = Take(token, weight_version);
  if (recording_ == nullptr) return Show(std::move(seen));
  recording_->OnSampled(token, weight_version,
                        seen.finish.has_value() ? &seen.finish->reason : nullptr, log);
  unseen_.push_back(std::move(seen));
}

void Generation::OnDurable() {
  Seen seen = std::move(unseen_.front());
  unseen_.pop_front();
  if (recording_ != nullptr) recording_->OnDurable();
  Show(std::move(seen));
}

void Generation::OnFailed(const absl::Status& why) {
  ended_ = true;
  unseen_.clear();
  sink_->OnError(why);
}

}  // namespace reprise::rollout::http
