// Structured output: for random schemas, every answer that the masks let through parses in the
// strict parser and validates, every call that the encoder writes is let through, masks are exactly
// the tokens that the automaton can read, and no answer ever gets stuck.
#include "engine/grammar.h"

#include <algorithm>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/chat_text.h"
#include "engine/token_masks.h"
#include "tests/unit/engine/random_schema.h"

namespace reprise::engine {
namespace {

using ::testing::HasSubstr;

const Tokenizer& Tiny() {
  static const auto tokenizer =
      Tokenizer::Load(std::string(REPRISE_SOURCE_DIR) + "/examples/tiny-v4/tokenizer.json").value();
  return *tokenizer;
}
std::shared_ptr<const TokenTrie> Trie() {
  static const auto trie = TokenTrie::Make(Tiny(), Tiny().vocab_size() + 5).value();
  return trie;
}

std::unique_ptr<TokenMasks> Masks(const GrammarSpec& spec) {
  auto grammar = AnswerGrammar::Compile(spec);
  EXPECT_TRUE(grammar.ok()) << grammar.status();
  return std::make_unique<TokenMasks>(*grammar, Trie());
}

// Tokens of `text` that are read; -1 when all are and the answer has ended.
int ReadUntil(const TokenMasks& masks, const std::string& text) {
  GrammarState state = masks.grammar().Start();
  const std::vector<int32_t> ids = Tiny().Encode(text);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!masks.Advance(ids[i], &state)) return static_cast<int>(i);
  }
  return masks.grammar().Ended(state) ? -1 : static_cast<int>(ids.size());
}

constexpr char kShell[] = R"([{"type": "function", "function": {"name": "sh", "parameters": {
  "type": "object", "properties": {"command": {"type": "string"},
  "timeout": {"type": ["integer", "null"]}}, "required": ["command"]}}}])";
constexpr char kParameter[] = "<｜DSML｜parameter name=\"";

std::string Block(const std::string& inside) {
  return "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"sh\">\n" + inside +
         "\n</｜DSML｜invoke>\n</｜DSML｜tool_calls><｜end▁of▁sentence｜>";
}
std::string Parameter(const std::string& name, const std::string& string,
                      const std::string& value) {
  return kParameter + name + "\" string=\"" + string + "\">" + value + "</｜DSML｜parameter>";
}

TEST(GrammarTest, ReadsWhatTheFormatSays) {
  GrammarSpec spec;
  spec.mode = ThinkingMode::kChat;
  spec.tools_json = kShell;
  const auto masks = Masks(spec);
  const std::string good = Parameter("command", "true", "ls <b> \"x\"\n</p> é漢");
  EXPECT_EQ(ReadUntil(*masks, "Just text, <think>even</think> this.<｜end▁of▁sentence｜>"), -1);
  EXPECT_EQ(ReadUntil(*masks, "Look:" + Block(good)), -1);
  EXPECT_EQ(ReadUntil(*masks, Block(good + "\n" + Parameter("timeout", "false", "-12"))), -1);
  EXPECT_EQ(ReadUntil(*masks, Block(Parameter("timeout", "false", "null") + "\n" + good)), -1);
  for (const std::string& bad : {
           Parameter("timeout", "false", "5"),                       // required is missing
           good + "\n" + good,                                       // twice
           Parameter("command", "false", "\"ls\""),                  // a string is never JSON
           good + "\n" + Parameter("timeout", "false", "1.5"),       // no integer
           good + "\n" + Parameter("timeout", "true", "5"),          // no string
           good + "\n" + Parameter("other", "true", "5"),            // not declared
           good + Parameter("timeout", "false", "5"),                // no newline
           Parameter("command", "true", "a <｜end▁of▁sentence｜>"),  // ends inside
       }) {
    EXPECT_NE(ReadUntil(*masks, Block(bad)), -1) << bad;
  }
  EXPECT_NE(ReadUntil(*masks, "one newline\n<｜DSML｜tool_calls>"), -1);
  // The markers are no text, however they are cut.
  GrammarState state = masks->grammar().Start();
  bool spelled = true;
  for (const char c : std::string("｜DSML｜")) {
    GrammarState after;
    spelled = spelled && masks->grammar().Next(state, static_cast<uint8_t>(c), &after);
    state = after;
  }
  EXPECT_FALSE(spelled);
}

TEST(GrammarTest, ThinkingEndsBeforeACall) {
  GrammarSpec spec;
  spec.tools_json = kShell;
  const std::string call = Block(Parameter("command", "true", "ls"));
  const auto masks = Masks(spec);
  EXPECT_EQ(ReadUntil(*masks, "I think.</think>" + call), -1);
  EXPECT_EQ(ReadUntil(*masks, "</think>Hello.<｜end▁of▁sentence｜>"), -1);
  EXPECT_NE(ReadUntil(*masks, "I think." + call), -1);
  EXPECT_NE(ReadUntil(*masks, "I think.<｜end▁of▁sentence｜>"), -1);
  spec.choice = CallChoice::kRequired;
  const auto required = Masks(spec);
  EXPECT_EQ(ReadUntil(*required, "I think.</think>" + call), -1);
  EXPECT_NE(ReadUntil(*required, "I think.</think>No.<｜end▁of▁sentence｜>"), -1);
}

TEST(GrammarTest, CountsAndNamesCalls) {
  GrammarSpec spec;
  spec.mode = ThinkingMode::kChat;
  spec.choice = CallChoice::kRequired;
  spec.tools_json = R"([{"name": "a"}, {"name": "ab", "parameters": {"type": "object"}}])";
  const auto call = [](const std::string& name) {
    return "\n<｜DSML｜invoke name=\"" + name + "\">\n\n</｜DSML｜invoke>";
  };
  const std::string open = "\n\n<｜DSML｜tool_calls>",
                    close = "\n</｜DSML｜tool_calls><｜end▁of▁sentence｜>";
  EXPECT_EQ(ReadUntil(*Masks(spec), open + call("a") + call("ab") + close), -1);
  EXPECT_EQ(
      ReadUntil(*Masks(spec), open + "\n<｜DSML｜invoke name=\"a\">\n</｜DSML｜invoke>" + close),
      -1);
  EXPECT_NE(ReadUntil(*Masks(spec), open + close), -1);
  EXPECT_NE(ReadUntil(*Masks(spec), open + call("b") + close), -1);
  spec.max_calls = 2;
  EXPECT_EQ(ReadUntil(*Masks(spec), open + call("a") + call("ab") + close), -1);
  EXPECT_NE(ReadUntil(*Masks(spec), open + call("a") + call("a") + call("a") + close), -1);
  spec.max_calls = 0;
  spec.choice = CallChoice::kNamed;
  spec.tool = "ab";
  EXPECT_EQ(ReadUntil(*Masks(spec), open + call("ab") + close), -1);
  EXPECT_NE(ReadUntil(*Masks(spec), open + call("a") + close), -1);
  EXPECT_NE(ReadUntil(*Masks(spec), open + call("ab") + call("ab") + close), -1);
}

TEST(GrammarTest, RefusesWhatItCannotEnforce) {
  const auto refusal = [](const std::string& property) {
    GrammarSpec spec;
    spec.tools_json = R"([{"name": "sh", "parameters": {"type": "object", "properties": {"p": )" +
                      property + "}}}]";
    return std::string(AnswerGrammar::Compile(spec).status().message());
  };
  EXPECT_EQ(refusal(R"({"type": "string", "description": "fine", "default": "x"})"), "");
  EXPECT_EQ(
      refusal(R"({"type": "string", "pattern": "a+"})"),
      "tool \"sh\": parameters.properties.p: the keyword \"pattern\" cannot be enforced here; "
      "leave it out, or leave the answer free");
  EXPECT_THAT(refusal(R"({"type": "array", "items": {"type": "integer", "multipleOf": 2}})"),
              HasSubstr("parameters.properties.p.items: the keyword \"multipleOf\""));
  EXPECT_THAT(refusal(R"({"type": "string", "minLength": 3, "maxLength": 2})"),
              HasSubstr("minLength 3 is more than maxLength 2"));
  EXPECT_THAT(refusal(R"({"type": "str"})"), HasSubstr("\"str\" is no type"));
  EXPECT_THAT(refusal(R"({"$ref": "#/$defs/none"})"), HasSubstr("leads nowhere"));
  EXPECT_THAT(refusal(R"({"type": "integer", "maximum": 5})"), HasSubstr("whole minimum"));
  EXPECT_THAT(refusal(R"({"enum": ["｜DSML｜"]})"), HasSubstr("holds the chat's markup"));
  EXPECT_THAT(refusal(R"({"oneOf": [{"type": "null"}]})"), HasSubstr("\"oneOf\""));
  GrammarSpec spec;
  spec.tools_json = "[]";
  EXPECT_THAT(std::string(AnswerGrammar::Compile(spec).status().message()),
              HasSubstr("there is no tool"));
  spec.tools_json = R"([{"name": "t", "parameters": {"$defs": {"n": {"type": "object",
    "properties": {"next": {"$ref": "#/$defs/n"}}}}, "properties": {"x": {"$ref": "#/$defs/n"}}}}])";
  EXPECT_THAT(std::string(AnswerGrammar::Compile(spec).status().message()),
              HasSubstr("leads back to itself"));
}

TEST(GrammarTest, FollowsReferences) {
  GrammarSpec spec;
  spec.mode = ThinkingMode::kChat;
  spec.tools_json = R"([{"name": "sh", "parameters": {"$defs": {"Mode": {"enum": ["fast", "slow"]},
    "Pair": {"type": "object", "properties": {"m": {"$ref": "#/$defs/Mode"}}, "required": ["m"]}},
    "type": "object", "properties": {"mode": {"allOf": [{"$ref": "#/$defs/Mode"}], "default": "fast"},
    "pair": {"anyOf": [{"$ref": "#/$defs/Pair"}, {"type": "null"}]}}}}])";
  const auto masks = Masks(spec);
  EXPECT_EQ(ReadUntil(*masks, Block(Parameter("mode", "true", "slow"))), -1);
  EXPECT_EQ(ReadUntil(*masks, Block(Parameter("pair", "false", "{\"m\":\"fast\"}"))), -1);
  EXPECT_EQ(ReadUntil(*masks, Block(Parameter("pair", "false", "null"))), -1);
  EXPECT_NE(ReadUntil(*masks, Block(Parameter("mode", "true", "medium"))), -1);
  EXPECT_NE(ReadUntil(*masks, Block(Parameter("pair", "false", "{}"))), -1);
}

const OrderedJson* ToolNamed(const OrderedJson& tools, const std::string& name) {
  for (const OrderedJson& tool : tools) {
    if (tool["function"]["name"] == name) return &tool["function"]["parameters"];
  }
  return nullptr;
}

// Draws tokens that the masks allow until the answer ends; what closes something is drawn often.
// Gives up after `tokens`.
std::vector<int32_t> RandomAnswer(TokenMasks* masks, std::mt19937_64* random, size_t tokens) {
  std::vector<int32_t> answer;
  AnswerConstraint constraint(std::shared_ptr<TokenMasks>(masks, [](TokenMasks*) {}), 0);
  while (answer.size() < tokens) {
    auto allowed = constraint.Allowed(answer);
    EXPECT_TRUE(allowed.ok()) << allowed.status();
    if (!allowed.ok() || *allowed == nullptr) return answer;
    EXPECT_GT((*allowed)->count, 0) << Tiny().Decode(answer);
    if ((*allowed)->count == 0) return {};
    std::vector<int32_t> ids, closing;
    for (int32_t id = 0; id < Tiny().vocab_size(); ++id) {
      if (!(*allowed)->Has(id)) continue;
      ids.push_back(id);
      const std::string text = Tiny().TokenBytes(id);
      if (id == Trie()->dsml_id || id == Trie()->eos_id ||
          std::string("\"</>}]").find(text[0]) != std::string::npos)
        closing.push_back(id);
    }
    const std::vector<int32_t>& from = !closing.empty() && (*random)() % 3 != 0 ? closing : ids;
    answer.push_back(from[(*random)() % from.size()]);
  }
  return {};
}

TEST(GrammarPropertyTest, WhatIsLetThroughParsesAndValidates) {
  std::mt19937_64 random(7);
  int finished = 0, calls = 0;
  for (uint64_t seed = 0; seed < 90; ++seed) {
    RandomSchema schemas(seed);
    const OrderedJson tools = schemas.Tools();
    GrammarSpec spec;
    spec.mode = seed % 2 == 0 ? ThinkingMode::kChat : ThinkingMode::kThinking;
    spec.choice = seed % 3 == 0 ? CallChoice::kAuto : CallChoice::kRequired;
    spec.tools_json = tools.dump();
    const auto masks = Masks(spec);
    for (int i = 0; i < 4; ++i) {
      const std::vector<int32_t> answer = RandomAnswer(masks.get(), &random, 1500);
      if (answer.empty()) continue;
      ++finished;
      const std::string text = Tiny().Decode(answer);
      const ParsedTurn turn = ParseTurn(text, spec.mode);
      ASSERT_EQ(turn.error, "") << text;
      if (spec.choice == CallChoice::kRequired) {
        ASSERT_FALSE(turn.tool_calls.empty()) << text;
      }
      for (const ToolCall& call : turn.tool_calls) {
        ++calls;
        const OrderedJson* schema = ToolNamed(tools, call.name);
        ASSERT_NE(schema, nullptr) << call.name;
        const auto value = OrderedJson::parse(call.arguments_json, nullptr, false);
        ASSERT_FALSE(value.is_discarded()) << call.arguments_json;
        ASSERT_EQ(Misfit(*schema, value), "") << schema->dump() << "\n" << text;
      }
    }
  }
  EXPECT_GT(finished, 180);
  EXPECT_GT(calls, 180);
}

TEST(GrammarPropertyTest, WhatTheEncoderWritesIsLetThrough) {
  for (uint64_t seed = 0; seed < 150; ++seed) {
    RandomSchema schemas(seed);
    const OrderedJson tools = schemas.Tools();
    OrderedJson calls = OrderedJson::array();
    for (size_t i = 0; i <= schemas.Below(3); ++i) {
      const OrderedJson& function = tools[schemas.Below(tools.size())]["function"];
      const OrderedJson arguments = schemas.Value(function["parameters"]);
      ASSERT_EQ(Misfit(function["parameters"], arguments), "");
      calls.push_back(
          {{"type", "function"},
           {"function", {{"name", function["name"]}, {"arguments", arguments.dump()}}}});
    }
    const OrderedJson messages = {{{"role", "user"}, {"content", "Go."}},
                                  {{"role", "assistant"},
                                   {"reasoning_content", "Hm."},
                                   {"content", "On it."},
                                   {"tool_calls", calls}}};
    for (const ThinkingMode mode : {ThinkingMode::kChat, ThinkingMode::kThinking}) {
      ChatOptions options;
      options.mode = mode;
      auto pieces = EncodeChat(messages.dump(), options);
      ASSERT_TRUE(pieces.ok()) << pieces.status();
      std::string text = JoinPieces(*pieces);
      const std::string opener = mode == ThinkingMode::kChat ? "</think>" : "<think>";
      text = text.substr(text.find(opener) + opener.size());
      GrammarSpec spec;
      spec.mode = mode;
      spec.tools_json = tools.dump();
      EXPECT_EQ(ReadUntil(*Masks(spec), text), -1) << tools.dump() << "\n" << text;
    }
  }
}

TEST(GrammarPropertyTest, AMaskIsWhatTheAutomatonReads) {
  std::mt19937_64 random(3);
  for (uint64_t seed = 0; seed < 12; ++seed) {
    RandomSchema schemas(seed);
    GrammarSpec spec;
    spec.mode = ThinkingMode::kChat;
    spec.choice = seed % 2 == 0 ? CallChoice::kAuto : CallChoice::kRequired;
    spec.tools_json = schemas.Tools().dump();
    const auto masks = Masks(spec);
    GrammarState state = masks->grammar().Start();
    for (int step = 0; step < 120 && !masks->grammar().Ended(state); ++step) {
      const auto allowed = masks->Allowed(state);
      std::vector<int32_t> ids;
      for (int32_t id = 0; id < Tiny().vocab_size() + 5; ++id) {
        GrammarState after = state;
        const bool read = masks->Advance(id, &after);
        ASSERT_EQ(allowed->Has(id), read) << id << " after " << step;
        if (read) ids.push_back(id);
      }
      ASSERT_EQ(static_cast<size_t>(allowed->count), ids.size());
      ASSERT_TRUE(masks->Advance(ids[random() % ids.size()], &state));
    }
  }
}

TEST(GrammarPropertyTest, AConstraintGoesBackAndIsMadeAgain) {
  RandomSchema schemas(21);
  GrammarSpec spec;
  spec.mode = ThinkingMode::kChat;
  spec.choice = CallChoice::kRequired;
  spec.tools_json = schemas.Tools().dump();
  const std::shared_ptr<TokenMasks> masks = Masks(spec);
  std::mt19937_64 random(5);
  std::vector<int32_t> answer;
  while (answer.size() < 40) answer = RandomAnswer(masks.get(), &random, 400);
  std::vector<int32_t> history(11, 3);  // a prompt
  const size_t begin = history.size();
  AnswerConstraint lived(masks, begin);
  for (size_t i = 0; i + 1 < answer.size(); ++i) {
    const auto now = lived.Allowed(history);
    ASSERT_TRUE(now.ok());
    // As after a restart, with nothing but the tokens.
    const auto again = AnswerConstraint(masks, begin).Allowed(history);
    ASSERT_TRUE(again.ok());
    ASSERT_EQ((*now)->bits, (*again)->bits);
    // A guess that proves wrong.
    history.push_back(answer[i]);
    ASSERT_TRUE(lived.Allowed(history).ok());
    history.pop_back();
    ASSERT_EQ((*lived.Allowed(history))->bits, (*now)->bits);
    history.push_back(answer[i]);
  }
  history.push_back(7);
  EXPECT_EQ(lived.Allowed(history).status().code(), absl::StatusCode::kInternal);
}

TEST(GrammarTest, OfAResponseFormat) {
  GrammarSpec spec;
  spec.mode = ThinkingMode::kChat;
  spec.response_schema_json = R"({"type": "object", "properties": {"n": {"type": "integer",
    "minimum": 0}, "s": {"type": "array", "items": {"type": "string", "maxLength": 3}}},
    "required": ["n"]})";
  const auto masks = Masks(spec);
  EXPECT_EQ(ReadUntil(*masks, R"({"n": 12, "s": ["é漢a", "\u00e9"]}<｜end▁of▁sentence｜>)"), -1);
  EXPECT_NE(ReadUntil(*masks, R"({"s": []}<｜end▁of▁sentence｜>)"), -1);
  EXPECT_NE(ReadUntil(*masks, R"({"n": -1}<｜end▁of▁sentence｜>)"), -1);
  EXPECT_NE(ReadUntil(*masks, R"({"n": 1, "s": ["abcd"]}<｜end▁of▁sentence｜>)"), -1);
  EXPECT_NE(ReadUntil(*masks, R"(Here: {"n": 1}<｜end▁of▁sentence｜>)"), -1);
}

}  // namespace
}  // namespace reprise::engine
