// Turns read in pieces: cut at every place they give what engine::ParseTurn gives for the whole.
#include "rollout/http/turn_stream.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace reprise::rollout::http {
namespace {

using engine::ThinkingMode;

constexpr char kCalls[] =
    "\n\n<｜DSML｜tool_calls>\n"
    "<｜DSML｜invoke name=\"sh\">\n"
    "<｜DSML｜parameter name=\"command\" string=\"true\">echo \"é<b>\"\n</｜DSML｜parameter>\n"
    "<｜DSML｜parameter name=\"n\" string=\"false\">{\"a\": [1, 2.50]}</｜DSML｜parameter>\n"
    "</｜DSML｜invoke>\n"
    "<｜DSML｜invoke name=\"now\">\n"
    "</｜DSML｜invoke>\n"
    "<｜DSML｜invoke name=\"empty line\">\n\n"
    "</｜DSML｜invoke>\n"
    "</｜DSML｜tool_calls>";

struct Whole {
  std::string reasoning, content, error;
  std::vector<engine::ToolCall> calls;
};

void Take(const std::vector<TurnDelta>& deltas, Whole* whole) {
  for (const TurnDelta& delta : deltas) {
    switch (delta.kind) {
      case TurnDelta::Kind::kReasoning:
        whole->reasoning += delta.text;
        break;
      case TurnDelta::Kind::kContent:
        whole->content += delta.text;
        break;
      case TurnDelta::Kind::kCall:
        whole->calls.push_back({delta.text, ""});
        break;
      case TurnDelta::Kind::kArguments:
        ASSERT_FALSE(whole->calls.empty());
        whole->calls.back().arguments_json += delta.text;
        break;
    }
  }
}

// Lengths of the UTF-8 sequences of `text`: pieces never end inside one.
std::vector<std::string> Characters(const std::string& text) {
  std::vector<std::string> out;
  for (const char c : text) {
    if ((static_cast<unsigned char>(c) & 0xC0) == 0x80) {
      out.back() += c;
    } else {
      out.emplace_back(1, c);
    }
  }
  return out;
}

Whole Read(const std::vector<std::string>& pieces, ThinkingMode mode) {
  TurnStream stream(mode);
  Whole whole;
  for (const std::string& piece : pieces) Take(stream.Push(piece), &whole);
  Take(stream.Finish(), &whole);
  whole.error = stream.error();
  EXPECT_EQ(stream.calls(), whole.calls.size());
  return whole;
}

void ExpectAsParsed(const Whole& whole, const std::string& text, ThinkingMode mode) {
  const engine::ParsedTurn parsed = engine::ParseTurn(text, mode);
  ASSERT_EQ(whole.error.empty(), parsed.error.empty()) << whole.error << " / " << parsed.error;
  if (!parsed.error.empty()) return;
  EXPECT_EQ(whole.reasoning, parsed.reasoning);
  EXPECT_EQ(whole.content, parsed.content);
  ASSERT_EQ(whole.calls.size(), parsed.tool_calls.size());
  for (size_t i = 0; i < whole.calls.size(); ++i) {
    EXPECT_EQ(whole.calls[i].name, parsed.tool_calls[i].name);
    EXPECT_EQ(whole.calls[i].arguments_json, parsed.tool_calls[i].arguments_json);
  }
}

void ExpectAtEveryCut(const std::string& text, ThinkingMode mode) {
  const std::vector<std::string> characters = Characters(text);
  ExpectAsParsed(Read(characters, mode), text, mode);
  for (size_t cut = 0; cut <= characters.size(); ++cut) {
    std::string head, tail;
    for (size_t i = 0; i < characters.size(); ++i) (i < cut ? head : tail) += characters[i];
    SCOPED_TRACE(cut);
    ExpectAsParsed(Read({head, tail}, mode), text, mode);
  }
}

TEST(TurnStream, WellFormedTurnsAreAsParsed) {
  ExpectAtEveryCut("plain < text\n\n<b", ThinkingMode::kChat);
  ExpectAtEveryCut("", ThinkingMode::kChat);
  ExpectAtEveryCut(kCalls, ThinkingMode::kChat);
  ExpectAtEveryCut(std::string("I look.") + kCalls, ThinkingMode::kChat);
  ExpectAtEveryCut(std::string("hm\n\n</thin</think>I look.\n") + kCalls, ThinkingMode::kThinking);
  ExpectAtEveryCut("never closed </thin", ThinkingMode::kThinking);
}

TEST(TurnStream, MalformedTurnsAreErrorsAsParsed) {
  const std::string calls = kCalls;
  for (const std::string& bad :
       {std::string("<｜DSML｜tool_calls>\n"), std::string("a\n\n<｜DSML｜tool_calls>\n"),
        calls + "after", calls.substr(0, calls.size() - 10),
        std::string("\n\n<｜DSML｜tool_calls>\n</｜DSML｜tool_calls>"),
        std::string("\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"x\">\n\n\n</｜DSML｜invoke>\n"
                    "</｜DSML｜tool_calls>"),
        std::string("\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"x\">\n"
                    "<｜DSML｜parameter name=\"p\" string=\"false\">nope</｜DSML｜parameter>\n"
                    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"),
        std::string("\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"x\">\n"
                    "<｜DSML｜parameter name=\"p\" string=\"true\">a ｜DSML｜ b</｜DSML｜parameter>\n"
                    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"),
        std::string("\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"\">\n</｜DSML｜invoke>\n"
                    "</｜DSML｜tool_calls>")}) {
    SCOPED_TRACE(bad);
    ExpectAtEveryCut(bad, ThinkingMode::kChat);
  }
  ExpectAtEveryCut("thinking ｜DSML｜ </think>", ThinkingMode::kThinking);
}

TEST(TurnStream, CallsLeaveBeforeTheTurnEnds) {
  TurnStream stream(ThinkingMode::kChat);
  Whole whole;
  Take(stream.Push("Look.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"sh\">\n"
                   "<｜DSML｜parameter name=\"command\" string=\"true\">echo 1"),
       &whole);
  EXPECT_EQ(whole.content, "Look.");
  ASSERT_EQ(whole.calls.size(), 1u);
  EXPECT_EQ(whole.calls[0].name, "sh");
  EXPECT_EQ(whole.calls[0].arguments_json, R"({"command": "echo 1)");
  EXPECT_FALSE(stream.complete());
}

}  // namespace
}  // namespace reprise::rollout::http
