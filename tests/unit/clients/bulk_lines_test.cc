// Goal: a bulk file is read strictly, and the same line always is the same call. Method: good lines
// field by field, a table of bad ones with the one error each must give, ids under changes.
#include "clients/cli/bulk_lines.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/fd.h"

namespace reprise::cli {
namespace {

namespace sandbox = ::reprise::sandbox::v1;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

BulkDefaults Defaults(sandbox::Tier tier = sandbox::TIER_FUNCTION) {
  BulkDefaults defaults;
  defaults.name = "run";
  defaults.spec.set_tier(tier);
  return defaults;
}

BulkLine Parse(const std::string& text, const BulkDefaults& defaults = Defaults()) {
  auto line = ParseBulkLine(text, "f:1", defaults);
  EXPECT_TRUE(line.ok()) << line.status();
  return line.ok() ? *line : BulkLine();
}

TEST(BulkLine, ReadsEveryField) {
  BulkLine line = Parse(R"({"id": "a/1", "argv": ["cat", "x"], "stdin": "in", "files": {"x": "1"},
      "env": {"K": "V"}, "limits": {"timeout_ms": 5}, "working_dir": "/tmp",
      "on_interrupt": "rerun"})");
  EXPECT_EQ(line.id, "a/1");
  EXPECT_THAT(line.request.argv(), ElementsAre("cat", "x"));
  EXPECT_EQ(line.request.stdin(), "in");
  ASSERT_EQ(line.request.files_size(), 1);
  EXPECT_EQ(line.request.files(0).path(), "x");
  EXPECT_EQ(line.request.files(0).content(), "1");
  ASSERT_EQ(line.request.env_size(), 1);
  EXPECT_EQ(line.request.env(0).name(), "K");
  EXPECT_EQ(line.request.env(0).value(), "V");
  EXPECT_EQ(line.request.limits().timeout_ms(), 5u);
  EXPECT_EQ(line.request.working_dir(), "/tmp");
  EXPECT_EQ(line.request.on_interrupt(), sandbox::INTERRUPT_POLICY_RERUN);
}

TEST(BulkLine, CommandGoesToAShell) {
  BulkLine line = Parse(R"({"id": "a", "command": "echo one two"})");
  EXPECT_THAT(line.request.argv(), ElementsAre("/bin/sh", "-c", "echo one two"));
  EXPECT_EQ(line.request.on_interrupt(), sandbox::INTERRUPT_POLICY_REPORT);
}

TEST(BulkLine, SameLineIsTheSameCallAndAChangedOneIsNot) {
  const std::string text = R"({"id": "a", "command": "true"})";
  EXPECT_EQ(Parse(text).request.call_id(), Parse(text).request.call_id());
  EXPECT_NE(Parse(text).request.call_id(),
            Parse(R"({"id": "a", "command": "false"})").request.call_id());
  BulkDefaults other = Defaults();
  other.name = "again";
  EXPECT_NE(Parse(text).request.call_id(), Parse(text, other).request.call_id());
  BulkDefaults limited = Defaults();
  limited.spec.mutable_limits()->set_pids(3);
  EXPECT_NE(Parse(text).request.call_id(), Parse(text, limited).request.call_id());
}

TEST(BulkLine, OnlyCallsThatShareNothingShareASandbox) {
  auto sandbox_of = [](const char* id, sandbox::Tier tier) {
    return Parse(std::string(R"({"command": "true", "id": ")") + id + "\"}", Defaults(tier))
        .request.sandbox_id();
  };
  EXPECT_EQ(sandbox_of("a", sandbox::TIER_FUNCTION), sandbox_of("b", sandbox::TIER_FUNCTION));
  EXPECT_NE(sandbox_of("a", sandbox::TIER_CONTAINER), sandbox_of("b", sandbox::TIER_CONTAINER));
}

TEST(BulkLine, BadLinesNameTheirPlaceAndWhatIsAllowed) {
  const std::pair<const char*, const char*> kBad[] = {
      {"{", "f:1: not valid JSON"},
      {"[]", "f:1: is [], allowed: a table"},
      {R"({"command": "x"})", "f:1: id is missing"},
      {R"({"id": "a b", "command": "x"})", "id"},
      {R"({"id": "../a", "command": "x"})", "id"},
      {R"({"id": "a"})", "f:1: argv and command: exactly one of the two is needed"},
      {R"({"id": "a", "command": "x", "argv": ["x"]})", "exactly one of the two is needed"},
      {R"({"id": "a", "argv": []})", "f:1: argv is []"},
      {R"({"id": "a", "argv": [1]})", "f:1: argv is [1]"},
      {R"({"id": "a", "command": "x", "stdn": ""})", "f:1: unknown key \"stdn\""},
      {R"({"id": "a", "command": "x", "limits": {"memory": 1}})", "unknown key \"limits.memory\""},
      {R"({"id": "a", "command": "x", "files": {"f": 1}})", "f:1: files is"},
      {R"({"id": "a", "command": "x", "on_interrupt": "retry"})", "f:1: on_interrupt is \"retry\""},
  };
  for (const auto& [text, error] : kBad) {
    auto line = ParseBulkLine(text, "f:1", Defaults());
    ASSERT_FALSE(line.ok()) << text;
    EXPECT_THAT(std::string(line.status().message()), HasSubstr(error)) << text;
    EXPECT_EQ(line.status().message().find('\n'), std::string::npos) << text;
  }
  std::string long_id(kMaxBulkIdBytes + 1, 'x');
  auto line = ParseBulkLine(R"({"command": "x", "id": ")" + long_id + "\"}", "f:1", Defaults());
  EXPECT_THAT(std::string(line.status().message()), HasSubstr("the most is 100"));
}

class BulkFileTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& text) {
    std::string path = scratch_.path() + "/in.jsonl";
    std::ofstream(path) << text;
    return path;
  }
  base::ScratchDir scratch_;
};

TEST_F(BulkFileTest, ReadsLinesAgainAndSkipsEmptyOnes) {
  auto file = BulkFile::Open(Write("{\"id\": \"a\", \"command\": \"1\"}\n\n"
                                   "{\"id\": \"b\", \"command\": \"2\"}"),
                             Defaults());
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->size(), 2u);
  EXPECT_EQ((*file)->Read(1)->id, "b");
  EXPECT_EQ((*file)->Read(0)->id, "a");
}

TEST_F(BulkFileTest, LineNumbersCountEmptyLines) {
  auto file = BulkFile::Open(Write("\n\n{\"id\": \"a\"}\n"), Defaults());
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("in.jsonl:3: argv and command"));
}

TEST_F(BulkFileTest, RefusesAnIdTwice) {
  const std::string line = "{\"id\": \"a\", \"command\": \"1\"}\n";
  auto file = BulkFile::Open(Write(line + line), Defaults());
  EXPECT_THAT(std::string(file.status().message()),
              HasSubstr("in.jsonl:2: id \"a\" is that of line 1 too"));
}

TEST_F(BulkFileTest, ReadsAcrossItsBuffer) {
  std::string text;
  for (int i = 0; i < 3; ++i) {
    text += "{\"id\": \"" + std::to_string(i) + "\", \"command\": \"" +
            std::string(700'000, static_cast<char>('a' + i)) + "\"}\n";
  }
  auto file = BulkFile::Open(Write(text), Defaults());
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->size(), 3u);
  EXPECT_EQ((*file)->Read(2)->request.argv(2), std::string(700'000, 'c'));
}

TEST_F(BulkFileTest, NoticesAChangedFile) {
  std::string path = Write("{\"id\": \"a\", \"command\": \"1\"}\n");
  auto file = BulkFile::Open(path, Defaults());
  ASSERT_TRUE(file.ok()) << file.status();
  std::fstream(path, std::ios::in | std::ios::out) << "{\"id\": \"b\", ";
  EXPECT_EQ((*file)->Read(0).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(BulkFileTest, MissingFile) {
  auto file = BulkFile::Open(scratch_.path() + "/none", Defaults());
  EXPECT_EQ(file.status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace reprise::cli
