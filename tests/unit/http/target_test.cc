// Request targets and routes.
#include "http/target.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "http/router.h"

namespace reprise::http {
namespace {

TEST(Target, DecodesSegmentsAndQuery) {
  const auto target = ParseTarget("/v2/a%2Fb/c?metadata=a%3Db&x=1+2&flag");
  ASSERT_TRUE(target.ok()) << target.status();
  EXPECT_EQ(target->segments, (std::vector<std::string>{"v2", "a/b", "c"}));
  ASSERT_EQ(target->query.size(), 3u);
  EXPECT_EQ(target->query[0].second, "a=b");
  EXPECT_EQ(target->query[1].second, "1 2");
  EXPECT_EQ(target->query[2], (std::pair<std::string, std::string>{"flag", ""}));
}

TEST(Target, RefusesWhatTwoReadersCouldReadDifferently) {
  for (const char* bad : {"", "x", "http://host/", "*", "/a/../b", "/a/./b", "/a//b", "/%2e%2e/x",
                          "/a%", "/a%0g", "/a%00b", "/a b", "/a#b", "/a\tb"}) {
    EXPECT_EQ(ParseTarget(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_FALSE(ParseTarget("/" + std::string(kTargetBytesMax, 'a')).ok());
}

TEST(Router, TellsUnknownPathsFromUnknownMethods) {
  Router router;
  Route route;
  route.method = "GET";
  route.pattern = "/sandboxes/{}/logs";
  router.Add(route);
  std::vector<std::string> params;
  bool known = false;
  EXPECT_NE(router.Find("GET", {"sandboxes", "x", "logs"}, &params, &known), nullptr);
  EXPECT_EQ(params, std::vector<std::string>{"x"});
  EXPECT_EQ(router.Find("PUT", {"sandboxes", "x", "logs"}, &params, &known), nullptr);
  EXPECT_TRUE(known);
  EXPECT_EQ(router.Find("GET", {"sandboxes", "x"}, &params, &known), nullptr);
  EXPECT_FALSE(known);
}

}  // namespace
}  // namespace reprise::http
