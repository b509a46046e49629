#include "rollout/http/turn_stream.h"

#include <algorithm>

#include <fmt/format.h>

#include "engine/chat_text.h"
#include "engine/json.h"

namespace reprise::rollout::http {
namespace {

using Kind = TurnDelta::Kind;

const std::string kBlockOpen = fmt::format("\n\n{}\n", engine::kCallsOpen);
constexpr std::string_view kTrue = " string=\"true\">";
constexpr std::string_view kFalse = " string=\"false\">";

// Bytes at the end of `text` that `token` may begin with.
size_t Overlap(std::string_view text, std::string_view token) {
  for (size_t length = std::min(text.size(), token.size() - 1); length > 0; --length) {
    if (text.substr(text.size() - length) == token.substr(0, length)) return length;
  }
  return 0;
}

// Of a JSON string, without its quotes.
std::string Escaped(std::string_view text) {
  std::string quoted = engine::DumpJsonString(text);
  return quoted.substr(1, quoted.size() - 2);
}

}  // namespace

void TurnStream::Emit(Kind kind, std::string_view text, std::vector<TurnDelta>* out) {
  if (text.empty() && kind != Kind::kCall) return;
  if (kind != Kind::kCall && !out->empty() && out->back().kind == kind) {
    out->back().text += text;
  } else {
    out->push_back({kind, std::string(text)});
  }
}

int TurnStream::Take(std::string_view token) {
  const size_t have = std::min(held_.size(), token.size());
  if (std::string_view(held_).substr(0, have) != token.substr(0, have)) return 0;
  if (have < token.size()) return -1;
  held_.erase(0, token.size());
  return 1;
}

bool TurnStream::Break(std::string_view why, std::vector<TurnDelta>* out) {
  error_ = fmt::format("tool call markup: {}", why);
  state_ = State::kBroken;
  return true;
}

std::vector<TurnDelta> TurnStream::Push(std::string_view text) {
  std::vector<TurnDelta> out;
  held_ += text;
  while (Step(/*last=*/false, &out)) {
  }
  return out;
}

std::vector<TurnDelta> TurnStream::Finish() {
  std::vector<TurnDelta> out;
  while (Step(/*last=*/true, &out)) {
  }
  if (state_ != State::kReasoning && state_ != State::kContent && state_ != State::kAfter &&
      state_ != State::kBroken) {
    error_ = "tool call markup: the block is not closed";
    Emit(Kind::kContent, held_, &out);
  }
  held_.clear();
  return out;
}

bool TurnStream::Step(bool last, std::vector<TurnDelta>* out) {
  switch (state_) {
    case State::kReasoning:
      return StepReasoning(last, out);
    case State::kContent:
      return StepContent(last, out);
    case State::kBlock: {
      const int end = Take(engine::kCallsClose);
      if (end > 0) {
        state_ = calls_ > 0 ? State::kAfter : State::kBroken;
        if (calls_ == 0) error_ = "tool call markup: the block has no call";
        return true;
      }
      const int call = Take(engine::kInvokeOpen);
      if (call > 0) {
        state_ = State::kName;
        return true;
      }
      return end == 0 && call == 0 ? Break("expected a call or the end of the block", out) : false;
    }
    case State::kName: {
      const size_t end = held_.find("\">\n");
      const size_t quote = held_.find_first_of("\"\n");
      if (quote != std::string::npos && quote != end && held_.size() >= quote + 3)
        return Break("the tool name is malformed", out);
      if (end == std::string::npos) return false;
      if (end == 0) return Break("the tool name is empty", out);
      Emit(Kind::kCall, std::string_view(held_).substr(0, end), out);
      held_.erase(0, end + 3);
      ++calls_;
      names_.clear();
      state_ = State::kCallBody;
      return true;
    }
    case State::kCallBody: {
      const std::string close = fmt::format("{}\n", engine::kInvokeClose);
      const int end = Take(close);
      // A call without parameters may hold one empty line.
      const int empty = names_.empty() && end == 0 ? Take("\n" + close) : 0;
      if (end > 0 || empty > 0) {
        Emit(Kind::kArguments, names_.empty() ? "{}" : "}", out);
        state_ = State::kBlock;
        return true;
      }
      const int parameter = Take(engine::kParameterOpen);
      if (parameter > 0) {
        state_ = State::kParameter;
        return true;
      }
      if (end < 0 || empty < 0 || parameter < 0) return false;
      return Break("expected a parameter or the end of the call", out);
    }
    case State::kParameter:
      return StepParameter(out);
    case State::kText:
    case State::kJson:
      return StepValue(out);
    case State::kAfter:
      if (!held_.empty()) return Break("text after the block", out);
      return false;
    case State::kBroken:
      Emit(Kind::kContent, held_, out);
      held_.clear();
      return false;
  }
  return false;
}

bool TurnStream::StepReasoning(bool last, std::vector<TurnDelta>* out) {
  const size_t end = held_.find(engine::kThinkClose);
  const size_t marker = held_.find(engine::kDsml);
  if (marker < end) {
    Emit(Kind::kReasoning, std::string_view(held_).substr(0, marker), out);
    held_.erase(0, marker);
    return Break("a call before </think>", out);
  }
  const size_t keep =
      last ? 0 : std::max(Overlap(held_, engine::kThinkClose), Overlap(held_, engine::kDsml));
  const size_t give = end == std::string::npos ? held_.size() - keep : end;
  Emit(Kind::kReasoning, std::string_view(held_).substr(0, give), out);
  held_.erase(0, give);
  if (end == std::string::npos) return false;
  held_.erase(0, engine::kThinkClose.size());
  state_ = State::kContent;
  return true;
}

bool TurnStream::StepContent(bool last, std::vector<TurnDelta>* out) {
  const size_t open = held_.find(kBlockOpen);
  const size_t marker = held_.find(engine::kDsml);
  if (open != std::string::npos && open + kBlockOpen.find(engine::kDsml) == marker) {
    Emit(Kind::kContent, std::string_view(held_).substr(0, open), out);
    held_.erase(0, open + kBlockOpen.size());
    state_ = State::kBlock;
    return true;
  }
  size_t keep = last ? 0 : Overlap(held_, kBlockOpen);
  if (marker != std::string::npos && held_.size() - keep > marker) {
    return Break("expected a blank line and <｜DSML｜tool_calls> first", out);
  }
  keep = last ? 0 : std::max(keep, Overlap(held_, engine::kDsml));
  Emit(Kind::kContent, std::string_view(held_).substr(0, held_.size() - keep), out);
  held_.erase(0, held_.size() - keep);
  return false;
}

bool TurnStream::StepParameter(std::vector<TurnDelta>* out) {
  const size_t quote = held_.find('"');
  if (quote == std::string::npos) return false;
  const std::string_view type = std::string_view(held_).substr(quote + 1);
  const bool text = type.substr(0, kTrue.size()) == kTrue;
  const bool json = type.substr(0, kFalse.size()) == kFalse;
  if (!text && !json) {
    const bool may = kTrue.substr(0, type.size()) == type || kFalse.substr(0, type.size()) == type;
    return may ? false : Break("expected string=\"true\"> or string=\"false\">", out);
  }
  const std::string name = held_.substr(0, quote);
  if (!names_.insert(name).second)
    return Break(fmt::format("parameter \"{}\" is given twice", name), out);
  held_.erase(0, quote + 1 + (text ? kTrue.size() : kFalse.size()));
  Emit(Kind::kArguments,
       fmt::format("{}{}: {}", names_.size() > 1 ? ", " : "{", engine::DumpJsonString(name),
                   text ? "\"" : ""),
       out);
  state_ = text ? State::kText : State::kJson;
  return true;
}

bool TurnStream::StepValue(std::vector<TurnDelta>* out) {
  const std::string close = fmt::format("{}\n", engine::kParameterClose);
  const size_t end = held_.find(close);
  const size_t marker = held_.find(engine::kDsml);
  const bool in_close = end != std::string::npos && marker == end + 2;  // "</" before it
  if (marker != std::string::npos && !in_close) {
    const std::string_view tail = std::string_view(held_).substr(marker < 2 ? 0 : marker - 2);
    const bool may = marker >= 2 && close.substr(0, tail.size()) == tail;
    if (!may) return Break("a parameter holds markup", out);
  }
  const bool ended = end != std::string::npos;
  if (state_ == State::kJson) {
    if (!ended) return false;
    const std::string value = held_.substr(0, end);
    if (!engine::ParseJson(value).ok())
      return Break("a parameter is marked string=\"false\" but is not JSON", out);
    Emit(Kind::kArguments, value, out);
    held_.erase(0, end);
  } else {
    // A marker that is not whole yet may turn out to be the value's, which is an error.
    const size_t keep = std::max(Overlap(held_, close), Overlap(held_, engine::kDsml));
    const size_t give = ended ? end : held_.size() - keep;
    Emit(Kind::kArguments, Escaped(std::string_view(held_).substr(0, give)), out);
    held_.erase(0, give);
    if (!ended) return false;
    Emit(Kind::kArguments, "\"", out);
  }
  held_.erase(0, close.size());
  state_ = State::kCallBody;
  return true;
}

}  // namespace reprise::rollout::http
