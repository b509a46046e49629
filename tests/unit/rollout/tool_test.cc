// Goal: a tool definition is read strictly, and a call of a model becomes exactly one command or a
// message that the model can act on. Method: every kind of wrong definition and wrong argument.
#include "rollout/tool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rollout/text.h"

namespace reprise::rollout {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kDefinition[] = R"({"type": "function", "function": {"name": "run",
  "parameters": {"type": "object", "required": ["text"], "properties": {
    "text": {"type": "string"},
    "count": {"type": "integer", "default": 3},
    "ratio": {"type": ["number", "null"]},
    "options": {"type": "object"},
    "flags": {"type": "array"},
    "on": {"type": "boolean"},
    "any": {}}}}})";

Tool MakeTool(const std::vector<std::string>& command, const std::string& stdin_template = "") {
  auto tool = Tool::Make(kDefinition, command, stdin_template, {});
  EXPECT_TRUE(tool.ok()) << tool.status();
  return *tool;
}

std::string BindError(const std::string& arguments) {
  auto command = MakeTool({"p", "{text}{any}"}).Bind(arguments);
  EXPECT_FALSE(command.ok()) << arguments;
  return command.ok() ? "" : Message(command.status());
}

TEST(Tool, BindsArgumentsIntoTheCommandUnquoted) {
  Tool tool = MakeTool({"/bin/p", "-c", "{text}", "n={count}", "{{raw}}"}, "in: {any}\n");
  EXPECT_EQ(tool.name(), "run");
  EXPECT_EQ(tool.definition(), kDefinition);
  auto command = tool.Bind(R"({"text": "a 'b' {count} $X", "any": [1, "x"]})");
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_THAT(command->argv, ElementsAre("/bin/p", "-c", "a 'b' {count} $X", "n=3", "{raw}"));
  EXPECT_EQ(command->stdin_text, "in: [1,\"x\"]\n");
}

TEST(Tool, ValuesThatAreNoStringsBecomeJson) {
  Tool tool = MakeTool({"p", "{count} {ratio} {options} {flags} {on} {any}"});
  auto command = tool.Bind(
      R"({"text": "", "count": -4, "ratio": 0.5, "options": {"a": 1}, "flags": [true], "on": false, "any": null})");
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->argv[1], R"(-4 0.5 {"a":1} [true] false null)");
  EXPECT_EQ(tool.Bind(R"({"text": "", "ratio": null})")->argv[1], "3 null    ");
}

TEST(Tool, WrongArgumentsAreExplainedToTheModel) {
  EXPECT_THAT(BindError("{\"text\": "), HasSubstr("the arguments are not valid JSON"));
  EXPECT_EQ(BindError("[]"), "the arguments are not a JSON object");
  EXPECT_EQ(BindError("{}"), "missing argument \"text\"");
  EXPECT_EQ(BindError(R"({"text": 5})"), "argument \"text\" is not of type string");
  EXPECT_EQ(BindError(R"({"text": "", "count": 1.5})"),
            "argument \"count\" is not of type integer");
  EXPECT_EQ(BindError(R"({"text": "", "ratio": "x"})"),
            "argument \"ratio\" is not of type number or null");
  EXPECT_THAT(BindError(R"({"text": "", "what": 1})"),
              HasSubstr("unknown argument \"what\", allowed: text, count"));
  EXPECT_THAT(BindError(R"({"text": "a\u0000b"})"), HasSubstr("NUL byte"));
  EXPECT_THAT(BindError("{\"text\": \"" + std::string(kMaxArgBytes + 1, 'x') + "\"}"),
              HasSubstr("an argument is 131072 bytes long, the most is 131071"));
  EXPECT_THAT(BindError(std::string(100, '[') + std::string(100, ']')), HasSubstr("nested deeper"));
  EXPECT_TRUE(MakeTool({"p", "{text}"})
                  .Bind("{\"text\": \"" + std::string(kMaxArgBytes, 'x') + "\"}")
                  .ok());
}

TEST(Tool, AProgramNeedsAName) {
  EXPECT_EQ(Message(MakeTool({"{text}"}).Bind(R"({"text": ""})").status()),
            "the program's name is empty");
}

TEST(Tool, OtherArgumentsWhereTheSchemaAllowsThem) {
  auto tool =
      Tool::Make(R"({"name": "f", "parameters": {"type": "object", "additionalProperties": true}})",
                 {"p"}, "", {});
  ASSERT_TRUE(tool.ok()) << tool.status();
  EXPECT_TRUE(tool->Bind(R"({"whatever": 1})").ok());
}

TEST(Tool, WrongDefinitionsSayWhatIsWrong) {
  struct Case {
    const char* definition;
    std::vector<std::string> command;
    const char* expected;
  };
  const std::vector<Case> cases = {
      {"{", {"p"}, "not valid JSON"},
      {"[]", {"p"}, "has no \"name\""},
      {R"({"function": 5})", {"p"}, "has no \"name\""},
      {R"({"name": 5})", {"p"}, "has no \"name\""},
      {R"({"name": ""})", {"p"}, "tool name is empty"},
      {R"({"name": "a\"b"})", {"p"}, "contains a quote"},
      {R"({"name": "f", "parameters": []})", {"p"}, "parameters is not an object"},
      {R"({"name": "f", "parameters": {"properties": 5}})", {"p"}, "properties is not an object"},
      {R"({"name": "f", "parameters": {"properties": {"x": 5}}})",
       {"p"},
       "parameter \"x\": its schema is not an object"},
      {R"({"name": "f", "parameters": {"properties": {"x": {"type": "strin"}}}})",
       {"p"},
       "type \"strin\" is unknown, allowed: string"},
      {R"({"name": "f", "parameters": {"properties": {"x": {"type": 5}}}})",
       {"p"},
       "type is neither a name nor an array of names"},
      {R"({"name": "f", "parameters": {"required": ["y"]}})", {"p"}, "which is no property"},
      {R"({"name": "f", "parameters": {"required": "y"}})", {"p"}, "required is not an array"},
      {R"({"name": "f"})", {}, "command is empty"},
      {R"({"name": "f"})", {"p", "{x}"}, "command[1] uses {x}, which is no parameter"},
      {R"({"name": "f"})", {"p {"}, "command[0] has a lone '{' at byte 2"},
  };
  for (const Case& each : cases) {
    auto tool = Tool::Make(each.definition, each.command, "", {});
    ASSERT_FALSE(tool.ok()) << each.definition;
    EXPECT_THAT(Message(tool.status()), HasSubstr(each.expected)) << each.definition;
    EXPECT_EQ(Message(tool.status()).find('\n'), std::string::npos) << each.definition;
  }
  EXPECT_THAT(Message(Tool::Make(R"({"name": "f"})", {"p"}, "}", {}).status()),
              HasSubstr("stdin has a lone '}'"));
}

}  // namespace
}  // namespace reprise::rollout
