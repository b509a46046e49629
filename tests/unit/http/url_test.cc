// Goal: an address in a configuration is what it looks like, or is refused. Method: both kinds.
#include "http/url.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace reprise::http {
namespace {

TEST(ParseUrl, TakesApart) {
  auto url = ParseUrl("https://judge.example/score?v=1");
  ASSERT_TRUE(url.ok()) << url.status();
  EXPECT_TRUE(url->tls);
  EXPECT_EQ(url->host, "judge.example");
  EXPECT_EQ(url->port, 443);
  EXPECT_EQ(url->target, "/score?v=1");
  EXPECT_EQ(url->authority(), "judge.example");
  url = ParseUrl("http://[::1]:8080");
  ASSERT_TRUE(url.ok()) << url.status();
  EXPECT_FALSE(url->tls);
  EXPECT_EQ(url->host, "::1");
  EXPECT_EQ(url->target, "/");
  EXPECT_EQ(url->authority(), "[::1]:8080");
  EXPECT_EQ(ParseUrl("http://h?x=1")->target, "/?x=1");
}

TEST(ParseUrl, RefusesTheRest) {
  for (const char* text : {"", "judge", "ftp://h/", "http://", "http:///x", "http://h:0/",
                           "http://h:", "http://h:65536/", "http://h:1x/", "http://u@h/",
                           "http://h/#f", "http://h/a b", "http://h/\r\nX: 1", "http://[::1"}) {
    auto url = ParseUrl(text);
    EXPECT_FALSE(url.ok()) << text;
    EXPECT_THAT(std::string(url.status().message()), testing::HasSubstr("allowed: http://"))
        << text;
  }
}

}  // namespace
}  // namespace reprise::http
