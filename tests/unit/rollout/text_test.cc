// Goal: text that reaches prompts, records and programs is exact. Method: templates, UTF-8 with
// every kind of damage, cuts at every size, known digests.
#include "rollout/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rollout/identity.h"
#include "rollout/template.h"

namespace reprise::rollout {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const std::string kReplacement = "\xEF\xBF\xBD";

TEST(Template, FillsNamesAndKeepsTheRest) {
  auto parsed = Template::Parse("a {x} {{y}} {x}{z}");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(parsed->names(), ElementsAre("x", "x", "z"));
  EXPECT_EQ(parsed->Fill({{"x", "1 {z} $(rm)"}, {"y", "no"}}), "a 1 {z} $(rm) {y} 1 {z} $(rm)");
  EXPECT_EQ(Template::Parse("")->Fill({}), "");
  EXPECT_EQ(Template::Parse("{{{a}}}")->Fill({{"a", "b"}}), "{b}");
}

TEST(Template, ALoneBraceNamesItsByte) {
  for (const char* text : {"ab{", "ab{x", "ab}", "ab{}"}) {
    auto parsed = Template::Parse(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_THAT(Message(parsed.status()), HasSubstr("at byte 2")) << text;
  }
}

TEST(ToUtf8, KeepsValidTextAndReplacesEachBadByte) {
  for (const char* text : {"", "plain", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x99\x82",
                           "\xED\x9F\xBF", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_EQ(ToUtf8(text), text);
  }
  EXPECT_EQ(ToUtf8("a\xFFz"), "a" + kReplacement + "z");
  EXPECT_EQ(ToUtf8("\xE2\x82"), kReplacement + kReplacement);  // cut short
  EXPECT_EQ(ToUtf8("\xC0\xAF"), kReplacement + kReplacement);  // overlong
  EXPECT_EQ(ToUtf8("\xE0\x80\x80"), kReplacement + kReplacement + kReplacement);
  EXPECT_EQ(ToUtf8("\xED\xA0\x80").size(), 9u);       // a surrogate
  EXPECT_EQ(ToUtf8("\xF4\x90\x80\x80").size(), 12u);  // above U+10FFFF
  EXPECT_EQ(ToUtf8(std::string("a\0b", 3)), std::string("a\0b", 3));
}

TEST(CutMiddle, KeepsBothEndsAndSaysHowMuchIsGone) {
  EXPECT_EQ(CutMiddle("abcdef", 6), "abcdef");
  EXPECT_EQ(CutMiddle("abcdefgh", 4), "ab\n[4 bytes left out]\ngh");
  EXPECT_EQ(CutMiddle("abcdefgh", 0), "\n[8 bytes left out]\n");
}

TEST(CutMiddle, NeverCutsACharacter) {
  std::string text;
  for (int i = 0; i < 40; ++i)
    text += i % 3 == 0 ? "\xF0\x9F\x99\x82" : i % 3 == 1 ? "\xC3\xA9" : "x";
  for (uint64_t size = 0; size <= text.size(); ++size) {
    std::string cut = CutMiddle(text, size);
    EXPECT_EQ(ToUtf8(cut), cut) << size;
    EXPECT_LE(cut.size(), size + 64);
  }
}

TEST(Strip, TakesWhiteSpaceFromTheEndsOnly) {
  EXPECT_EQ(Strip(" \t\r\n\f\v a b \n"), "a b");
  EXPECT_EQ(Strip(" \n "), "");
  EXPECT_EQ(Strip(""), "");
}

TEST(Digest, IsSha256) {
  EXPECT_EQ(Hex(Sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Hex(std::string("\x00\xff", 2)), "00ff");
}

TEST(Identity, NamesAndSeedsFollowFromTheJobAlone) {
  EXPECT_EQ(TrajectoryId("j", 7, 3), "j/000007/3");
  EXPECT_EQ(CallId("j/000007/3", 1, 2), "j/000007/3/1/2");
  EXPECT_EQ(RewardCallId("j/000007/3"), "j/000007/3/reward/0");
  // SHA-256("reprise.seed.v1\n1\n0\nt"), its first eight bytes little-endian.
  const std::string digest = Sha256("reprise.seed.v1\n1\n0\nt");
  uint64_t expected = 0;
  for (int i = 7; i >= 0; --i) expected = expected << 8 | static_cast<uint8_t>(digest[i]);
  EXPECT_EQ(TrajectorySeed(1, "t", 0), expected);
  EXPECT_NE(TrajectorySeed(1, "t", 1), expected);
  EXPECT_NE(TrajectorySeed(2, "t", 0), expected);
  EXPECT_NE(TrajectorySeed(1, "u", 0), expected);
  EXPECT_EQ(TrajectorySeed(1, "t", 0, 0), expected);
  EXPECT_NE(TrajectorySeed(1, "t", 0, 1), expected);
  EXPECT_NE(TrajectorySeed(1, "t", 0, 1), TrajectorySeed(1, "t", 0, 2));
}

TEST(Identity, AttemptsAreInTheirIds) {
  EXPECT_EQ(AttemptId("j.r2/000001/3", 0), "j.r2/000001/3");
  EXPECT_EQ(AttemptId("j/000001/3", 12), "j/000001/3.r12");
  EXPECT_EQ(AttemptOf("j/000001/3.r12"), 12u);
  EXPECT_EQ(AttemptOf("j.r2/000001/3"), 0u);
  EXPECT_EQ(AttemptOf("j/000001/3.2"), 0u);
  EXPECT_NE(LogEngineDigest("a"), LogEngineDigest("b"));
}

}  // namespace
}  // namespace reprise::rollout
