// An assistant turn taken apart while it is sampled: reasoning, content and tool calls leave as
// soon as they are certain, arguments of calls piece by piece. Read to its end it gives what
// engine::ParseTurn gives; only for malformed markup, which nobody can take back once it was sent,
// the two differ: the call that was begun stays unfinished, and the rest comes as content.
#pragma once

#include <cstddef>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "engine/chat.h"

namespace reprise::rollout::http {

struct TurnDelta {
  enum class Kind {
    kReasoning,
    kContent,
    kCall,       // a call begins; `text` is its name
    kArguments,  // of the last call that began: JSON text goes on
  } kind = Kind::kContent;
  std::string text;
};

class TurnStream {
 public:
  explicit TurnStream(engine::ThinkingMode mode)
      : state_(mode == engine::ThinkingMode::kThinking ? State::kReasoning : State::kContent) {}

  // More of the turn's text (complete UTF-8, without the end of sentence).
  std::vector<TurnDelta> Push(std::string_view text);
  // The turn ended; what was held back.
  std::vector<TurnDelta> Finish();

  size_t calls() const { return calls_; }
  // A well-formed block of calls was read to its end.
  bool complete() const { return state_ == State::kAfter; }
  // What is wrong with the markup; "" while nothing is.
  const std::string& error() const { return error_; }

 private:
  enum class State {
    kReasoning,
    kContent,
    kBlock,      // expects an invoke or the end of the block
    kName,       // of a tool
    kCallBody,   // expects a parameter or the end of the call
    kParameter,  // its name and type
    kText,       // a string parameter's value
    kJson,       // any other's
    kAfter,      // the block has ended
    kBroken,     // malformed: all text is content
  };
  // One step over what is held; false when it needs more text.
  bool Step(bool last, std::vector<TurnDelta>* out);
  bool StepReasoning(bool last, std::vector<TurnDelta>* out);
  bool StepContent(bool last, std::vector<TurnDelta>* out);
  bool StepParameter(std::vector<TurnDelta>* out);
  bool StepValue(std::vector<TurnDelta>* out);
  // 1: the held text began with `token`, which is taken; 0: it does not; -1: it may yet.
  int Take(std::string_view token);
  void Emit(TurnDelta::Kind kind, std::string_view text, std::vector<TurnDelta>* out);
  bool Break(std::string_view why, std::vector<TurnDelta>* out);

  State state_;
  std::string held_;
  std::string error_;
  size_t calls_ = 0;
  std::set<std::string> names_;  // of the call's parameters so far
};

}  // namespace reprise::rollout::http
