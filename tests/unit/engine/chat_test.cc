// Goal: prompts byte for byte as the published encoder makes them, and sampled turns parsed
// strictly. Method: the four official vectors, the trained model's own goldens, JSON text against
// Python's rules, a table of malformed markup.
#include "engine/chat.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>

#include "base/fd.h"

namespace reprise::engine {
namespace {

using nlohmann::ordered_json;

std::string Golden(const std::string& name) {
  return *base::ReadFile(std::string(REPRISE_SOURCE_DIR) + "/tests/golden/encoding/" + name);
}

std::string Render(const std::string& messages, ChatOptions options = {}) {
  auto pieces = EncodeChat(messages, options);
  EXPECT_TRUE(pieces.ok()) << pieces.status();
  return pieces.ok() ? JoinPieces(*pieces) : "";
}

TEST(Chat, OfficialVectors) {
  for (int i = 1; i <= 4; ++i) {
    ChatOptions options;
    options.mode = i == 4 ? ThinkingMode::kChat : ThinkingMode::kThinking;
    EXPECT_EQ(Render(Golden("test_input_" + std::to_string(i) + ".json"), options),
              Golden("test_output_" + std::to_string(i) + ".txt"))
        << i;
  }
}

TEST(Chat, AssistantTurnsOfVectorOneParseBack) {
  const ordered_json input = ordered_json::parse(Golden("test_input_1.json"));
  const std::string prompt = Golden("test_output_1.txt");
  size_t at = 0;
  int turns = 0;
  for (const auto& message : input["messages"]) {
    if (message["role"] != "assistant") continue;
    const std::string prefix = "<｜Assistant｜><think>";
    at = prompt.find(prefix, at) + prefix.size();
    const std::string end = "<｜end▁of▁sentence｜>";
    const size_t stop = prompt.find(end, at) + end.size();
    ParsedTurn turn = ParseTurn(prompt.substr(at, stop - at), ThinkingMode::kThinking);
    EXPECT_EQ(turn.error, "");
    EXPECT_EQ(turn.reasoning, message.value("reasoning_content", ""));
    EXPECT_EQ(turn.content, message.contains("content") && message["content"].is_string()
                                ? message["content"].get<std::string>()
                                : "");
    const auto calls = message.value("tool_calls", ordered_json::array());
    ASSERT_EQ(turn.tool_calls.size(), calls.size());
    for (size_t c = 0; c < calls.size(); ++c) {
      EXPECT_EQ(turn.tool_calls[c].name, calls[c]["function"]["name"]);
      EXPECT_EQ(ordered_json::parse(turn.tool_calls[c].arguments_json),
                ordered_json::parse(calls[c]["function"]["arguments"].get<std::string>()));
    }
    ++turns;
  }
  EXPECT_EQ(turns, 2);
}

TEST(Chat, TrainedModelGoldens) {
  const std::string path = std::string(REPRISE_SOURCE_DIR) + "/examples/tiny-v4/";
  auto tokenizer = Tokenizer::Load(path + "tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const ordered_json golden = ordered_json::parse(*base::ReadFile(path + "prompt_golden.json"));
  ChatOptions options;
  options.mode = ThinkingMode::kChat;
  options.tools_json =
      golden["tools"].is_array() ? golden["tools"].dump() : "[" + golden["tools"].dump() + "]";
  ordered_json all = golden["prompts"];
  for (const auto& conversation : golden["conversations"]) all.push_back(conversation);
  int checked = 0;
  for (const auto& one : all) {
    auto pieces = EncodeChat(one["messages"].dump(), options);
    ASSERT_TRUE(pieces.ok()) << pieces.status();
    EXPECT_EQ(JoinPieces(*pieces), one["text"].get<std::string>());
    EXPECT_EQ((*tokenizer)->Encode(*pieces), one["ids"].get<std::vector<int32_t>>());
    ++checked;
  }
  EXPECT_GE(checked, 10);
}

TEST(Chat, ResultsFollowTheOrderOfTheCalls) {
  const std::string messages = R"([{"role":"user","content":"q"},
    {"role":"assistant","tool_calls":[{"id":"a","function":{"name":"f","arguments":"{}"}},
                                      {"id":"b","function":{"name":"g","arguments":"not json"}}]},
    {"role":"tool","tool_call_id":"b","content":"B"},{"role":"tool","tool_call_id":"a","content":"A"},
    {"role":"user","content":"more"}])";
  ChatOptions options;
  options.mode = ThinkingMode::kChat;
  const std::string text = Render(messages, options);
  EXPECT_NE(text.find("<｜User｜><tool_result>A</tool_result>\n\n<tool_result>B</"
                      "tool_result>\n\nmore<｜Assistant｜></think>"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("<｜DSML｜invoke name=\"f\">\n\n</｜DSML｜invoke>"), std::string::npos);
  EXPECT_NE(
      text.find(
          "<｜DSML｜parameter name=\"arguments\" string=\"true\">not json</｜DSML｜parameter>"),
      std::string::npos);
  // The continuation that rolloutd feeds is the same text.
  EXPECT_NE(
      text.find(JoinPieces(EncodeToolResults({"A", "B\x01"}, ThinkingMode::kChat)).substr(0, 40)),
      std::string::npos);
}

TEST(Chat, ReasoningIsDroppedOnlyWithoutTools) {
  const std::string messages = R"([{"role":"user","content":"1"},
    {"role":"assistant","content":"one","reasoning_content":"why"},{"role":"user","content":"2"}])";
  EXPECT_EQ(Render(messages),
            "<｜begin▁of▁sentence｜><｜User｜>1<｜Assistant｜></"
            "think>one<｜end▁of▁sentence｜><｜User｜>2<｜Assistant｜>"
            "<think>");
  ChatOptions keep;
  keep.drop_thinking = false;
  EXPECT_NE(Render(messages, keep).find("<think>why</think>one"), std::string::npos);
  ChatOptions tools;
  tools.tools_json = R"([{"type":"function","function":{"name":"f"}}])";
  EXPECT_NE(Render(messages, tools).find("<think>why</think>one"), std::string::npos);
  EXPECT_EQ(Render(messages, tools).find("<｜begin▁of▁sentence｜>\n\n## Tools"), 0u);
  ChatOptions max;
  max.effort = Effort::kMax;
  EXPECT_EQ(Render(messages, max).find("<｜begin▁of▁sentence｜>Reasoning Effort: Absolute maximum"),
            0u);
  max.mode = ThinkingMode::kChat;
  EXPECT_EQ(Render(messages, max).find("Reasoning Effort"), std::string::npos);
}

TEST(Chat, BadMessagesNameTheField) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"[{]", "not JSON"},
      {"{}", "expected a list"},
      {R"([{"role":"bot","content":""}])", "messages[0].role"},
      {R"([{"role":"user","content":5}])", "messages[0].content"},
      {R"([{"role":"user","content":"","task":"x"}])", "messages[0].task"},
      {R"([{"role":"assistant","tool_calls":[{"function":{}}]}])", "tool_calls[0]"},
      {R"([{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"[1]"}}]}])",
       "arguments"},
      {R"([{"role":"system","tools":[{"function":{}}]}])", "tools[0]"},
  };
  for (const auto& [text, expected] : cases) {
    absl::Status status = EncodeChat(text, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_NE(std::string(status.message()).find(expected), std::string::npos) << status;
  }
}

TEST(PromptJson, IsWhatPythonPrints) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"b":1,"a":[1,2.0,true,null]})", R"({"b": 1, "a": [1, 2.0, true, null]})"},
      {"123456789012345678901234567890", "123456789012345678901234567890"},
      {"1e16", "1e+16"},
      {"1e15", "1000000000000000.0"},
      {"0.0001", "0.0001"},
      {"0.00001", "1e-05"},
      {"1.5e-7", "1.5e-07"},
      {"1E2", "100.0"},
      {"-0.0", "-0.0"},
      {"-0", "0"},
      {"1e400", "Infinity"},
      {"[NaN, -Infinity]", "[NaN, -Infinity]"},
      {R"("\u00e9\ud83d\ude00\/\u0001\u007f\"")", "\"é😀/\\u0001\x7f\\\"\""},
      {R"({"a":1,"b":2,"a":3})", R"({"a": 3, "b": 2})"},
      {"0.1", "0.1"},
      {"123456789.123", "123456789.123"},
  };
  for (const auto& [text, expected] : cases) {
    auto printed = PromptJson(text);
    ASSERT_TRUE(printed.ok()) << text << printed.status();
    EXPECT_EQ(*printed, expected);
  }
  for (const char* bad : {"", "01", "[1,]", "{\"a\"}", "\"a", "nul", "1 2", "+1", "\"\n\""}) {
    EXPECT_FALSE(PromptJson(bad).ok()) << bad;
  }
  EXPECT_FALSE(PromptJson(std::string(100'000, '[')).ok());
}

const std::string kOpen = "\n\n<｜DSML｜tool_calls>\n";
const std::string kClose = "</｜DSML｜tool_calls>";

TEST(ParseTurn, TakesWellFormedCalls) {
  const std::string text =
      "Let me see." + kOpen +
      "<｜DSML｜invoke name=\"sh\">\n"
      "<｜DSML｜parameter name=\"command\" string=\"true\">echo \"a\"\nb</｜DSML｜parameter>\n"
      "<｜DSML｜parameter name=\"n\" string=\"false\">[1, {\"x\": 2}]</｜DSML｜parameter>\n"
      "</｜DSML｜invoke>\n<｜DSML｜invoke name=\"none\">\n\n</｜DSML｜invoke>\n"
      "<｜DSML｜invoke name=\"none\">\n</｜DSML｜invoke>\n" +
      kClose + "<｜end▁of▁sentence｜>";
  ParsedTurn turn = ParseTurn(text, ThinkingMode::kChat);
  ASSERT_EQ(turn.error, "");
  EXPECT_EQ(turn.content, "Let me see.");
  ASSERT_EQ(turn.tool_calls.size(), 3u);
  EXPECT_EQ(turn.tool_calls[0].arguments_json,
            R"({"command": "echo \"a\"\nb", "n": [1, {"x": 2}]})");
  EXPECT_EQ(turn.tool_calls[1].arguments_json, "{}");
  turn = ParseTurn("why</think>" + text, ThinkingMode::kThinking);
  EXPECT_EQ(turn.reasoning, "why");
  EXPECT_EQ(turn.tool_calls.size(), 3u);
}

TEST(ParseTurn, MalformedMarkupIsAnErrorAndNeverACall) {
  const std::string invoke = "<｜DSML｜invoke name=\"sh\">\n";
  const std::string parameter =
      "<｜DSML｜parameter name=\"c\" string=\"true\">x</｜DSML｜parameter>\n";
  const std::string good = kOpen + invoke + parameter + "</｜DSML｜invoke>\n" + kClose;
  ASSERT_EQ(ParseTurn(good, ThinkingMode::kChat).error, "");
  // Every truncation is either plain content (no marker yet) or an error.
  for (size_t size = 0; size < good.size(); ++size) {
    ParsedTurn turn = ParseTurn(good.substr(0, size), ThinkingMode::kChat);
    EXPECT_TRUE(turn.tool_calls.empty()) << size;
    const bool marked = good.substr(0, size).find("｜DSML｜") != std::string::npos;
    EXPECT_EQ(marked, !turn.error.empty()) << size;
  }
  const std::vector<std::string> bad = {
      "<｜DSML｜tool_calls>\n" + invoke + parameter + "</｜DSML｜invoke>\n" + kClose,
      "\n\n<｜DSML｜toolcalls>\n" + invoke + parameter + "</｜DSML｜invoke>\n" + kClose,
      kOpen + kClose,
      kOpen + invoke + "<parameter name=\"c\">x</parameter>\n</｜DSML｜invoke>\n" + kClose,
      kOpen + invoke + "<｜DSML｜parameter name=\"c\">x</｜DSML｜parameter>\n</｜DSML｜invoke>\n" +
          kClose,
      kOpen + invoke +
          "<｜DSML｜parameter name=\"c\" "
          "string=\"false\">{x</｜DSML｜parameter>\n</｜DSML｜invoke>\n" +
          kClose,
      kOpen + invoke + parameter + parameter + "</｜DSML｜invoke>\n" + kClose,
      kOpen + "<｜DSML｜invoke name=\"\">\n</｜DSML｜invoke>\n" + kClose,
      good + "more",
      good + "<｜end▁of▁sentence｜>x",
      "x ｜DSML｜ y",
  };
  for (const std::string& text : bad) {
    ParsedTurn turn = ParseTurn(text, ThinkingMode::kChat);
    EXPECT_NE(turn.error, "") << text;
    EXPECT_TRUE(turn.tool_calls.empty()) << text;
  }
  EXPECT_NE(ParseTurn(good, ThinkingMode::kThinking).error, "");
  EXPECT_EQ(ParseTurn("cut off in thought", ThinkingMode::kThinking).reasoning,
            "cut off in thought");
}

TEST(ParseTurn, RandomCutsAndFlipsNeverCrash) {
  const std::string good =
      kOpen +
      "<｜DSML｜invoke name=\"sh\">\n<｜DSML｜parameter name=\"c\" string=\"true\">x"
      "</｜DSML｜parameter>\n</｜DSML｜invoke>\n" +
      kClose;
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    std::string text = good;
    for (int edit = 0; edit < 3; ++edit) {
      const size_t at = random() % text.size();
      if (random() % 2 != 0)
        text[at] = static_cast<char>(random() % 256);
      else
        text.erase(at, random() % 9);
      if (text.empty()) text = "x";
    }
    ParsedTurn turn =
        ParseTurn(text, random() % 2 != 0 ? ThinkingMode::kChat : ThinkingMode::kThinking);
    EXPECT_FALSE(!turn.error.empty() && !turn.tool_calls.empty());
  }
}

}  // namespace
}  // namespace reprise::engine
