// Stop strings: nothing of one is ever given out, and nothing else is lost, wherever the text is cut.
#include <gtest/gtest.h>

#include <string>

#include "rollout/http/generation.h"

namespace reprise::rollout::http {
namespace {

TEST(StopStrings, EndTheTextAtEveryCut) {
  const std::string text = "one two\nTHE END three";
  for (size_t first = 0; first <= text.size(); ++first) {
    for (size_t second = first; second <= text.size(); ++second) {
      StopStrings stop({"\nTHE END", "three"}, /*include=*/false);
      std::string out;
      std::optional<std::string> found;
      for (const std::string& piece : {text.substr(0, first), text.substr(first, second - first),
                                       text.substr(second)}) {
        if (!found.has_value()) found = stop.Push(piece, &out);
      }
      ASSERT_EQ(found, "\nTHE END");
      ASSERT_EQ(out, "one two");
    }
  }
}

TEST(StopStrings, GiveBackWhatOnlyLookedLikeOne) {
  StopStrings stop({"abcd"}, false);
  std::string out;
  EXPECT_FALSE(stop.Push("xab", &out).has_value());
  EXPECT_EQ(out, "x");
  EXPECT_FALSE(stop.Push("abc", &out).has_value());
  EXPECT_EQ(out, "xab");
  EXPECT_EQ(stop.Finish(), "abc");
}

TEST(StopStrings, MayBePartOfTheText) {
  StopStrings stop({"."}, /*include=*/true);
  std::string out;
  EXPECT_EQ(stop.Push("a. b", &out), ".");
  EXPECT_EQ(out, "a.");
}

}  // namespace
}  // namespace reprise::rollout::http
