// What a sandbox may reach, judged without a network: rules, addresses that nobody reaches, what
// the DNS teaches a gate, and the messages it reads and writes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "sandboxd/network/dns.h"
#include "sandboxd/network/guard.h"
#include "sandboxd/network/policy.h"

namespace reprise::sandboxd::network {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

uint32_t Address(const std::string& text) { return ParseAddress(text).value(); }

Policy Make(const std::vector<std::string>& allow, const std::vector<std::string>& deny = {},
            bool open = false) {
  absl::StatusOr<Policy> policy = Policy::Make(allow, deny, open);
  EXPECT_TRUE(policy.ok()) << policy.status();
  return policy.ok() ? *policy : Policy();
}

bool Reaches(const Policy& policy, const std::string& address, uint16_t port,
             Protocol protocol = Protocol::kTcp, const std::vector<std::string>& names = {}) {
  return policy.Allows(Address(address), port, protocol, names);
}

TEST(NetworkRule, SaysWhatIsWrongWithOne) {
  for (const auto& [rule, why] : std::vector<std::pair<std::string, std::string>>{
           {"", "names no host"},
           {"*", "names no host"},
           {"a b", "names no host"},
           {"a..b", "names no host"},
           {"*.*.a", "names no host"},
           {"host:", "no port"},
           {"host:0", "no port"},
           {"host:65536", "no port"},
           {"host:9-8", "range of ports"},
           {"10.0.0.1/8", "below its prefix length"},
           {"10.0.0.0/33", "prefix length"},
           {"host/8", "after what is no IPv4"},
           {"1.2.3.256", "neither"},
           {"127.0.0.1", "no sandbox may reach"},
           {"169.254.169.254:80", "no sandbox may reach"},
           {"224.0.0.0/8", "no sandbox may reach"},
           {"2001:db8::1", "IPv6"},
           {"[::1]:80", "IPv6"},
           {std::string(400, 'a'), "too long"}}) {
    const absl::StatusOr<Rule> parsed = ParseRule(rule);
    ASSERT_FALSE(parsed.ok()) << rule;
    EXPECT_TRUE(absl::IsInvalidArgument(parsed.status()));
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(why)) << rule;
  }
  EXPECT_FALSE(Policy::Make({}, {"a.example"}, true).ok()) << "a name can't be denied";
  EXPECT_FALSE(Policy::Make(std::vector<std::string>(kRulesMax + 1, "a.example"), {}, false).ok());
}

TEST(NetworkRule, MatchesPortsAndProtocols) {
  const Policy policy = Make({"8.8.8.8:80", "8.8.4.4:1000-2000/udp", "1.0.0.0/24"});
  EXPECT_TRUE(Reaches(policy, "8.8.8.8", 80));
  EXPECT_TRUE(Reaches(policy, "8.8.8.8", 80, Protocol::kUdp));
  EXPECT_FALSE(Reaches(policy, "8.8.8.8", 81));
  EXPECT_TRUE(Reaches(policy, "8.8.4.4", 2000, Protocol::kUdp));
  EXPECT_FALSE(Reaches(policy, "8.8.4.4", 2001, Protocol::kUdp));
  EXPECT_FALSE(Reaches(policy, "8.8.4.4", 1500, Protocol::kTcp));
  EXPECT_TRUE(Reaches(policy, "1.0.0.255", 1));
  EXPECT_FALSE(Reaches(policy, "1.0.1.0", 1));
}

TEST(NetworkRule, MatchesNames) {
  const Policy policy = Make({"Good.Example.", "*.wild.example:443/tcp"});
  for (const char* name : {"good.example", "a.wild.example", "a.b.wild.example"})
    EXPECT_TRUE(policy.Resolves(name)) << name;
  for (const char* name :
       {"a.good.example", "wild.example", "notwild.example", "awild.example", "example", ""})
    EXPECT_FALSE(policy.Resolves(name)) << name;
  EXPECT_TRUE(Reaches(policy, "8.8.8.8", 443, Protocol::kTcp, {"a.wild.example"}));
  EXPECT_FALSE(Reaches(policy, "8.8.8.8", 80, Protocol::kTcp, {"a.wild.example"}));
  EXPECT_FALSE(Reaches(policy, "8.8.8.8", 443, Protocol::kTcp, {"other.example"}));
  EXPECT_FALSE(Reaches(policy, "8.8.8.8", 443)) << "an address that no name led to";
}

TEST(NetworkPolicy, KeepsForbiddenAndPrivateAddressesAway) {
  const Policy wide = Make({"0.0.0.0/0", "a.example"}, {}, true);
  for (const char* never :
       {"0.0.0.1", "127.0.0.1", "127.9.9.9", "169.254.169.254", "192.0.0.192", "168.63.129.16",
        "100.100.100.200", "224.0.0.251", "239.1.1.1", "240.0.0.1", "255.255.255.255"})
    EXPECT_FALSE(Reaches(wide, never, 80, Protocol::kTcp, {"a.example"})) << never;
  for (const char* inner :
       {"10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.9", "198.18.0.1"}) {
    EXPECT_FALSE(Reaches(wide, inner, 80, Protocol::kTcp, {"a.example"})) << inner;
    EXPECT_TRUE(Reaches(Make({inner}), inner, 80)) << "asked for by itself: " << inner;
  }
  EXPECT_TRUE(Reaches(wide, "172.32.0.1", 80));
  EXPECT_FALSE(Reaches(Make({"8.0.0.0/5"}), "10.0.0.1", 80))
      << "a wide rule does not mean private networks";
}

TEST(NetworkPolicy, AllowWinsOverDenyAndDenyOverOpen) {
  const Policy policy = Make({"8.8.8.8"}, {"8.8.0.0/16", "9.9.9.9:53"}, true);
  EXPECT_TRUE(Reaches(policy, "8.8.8.8", 80));
  EXPECT_FALSE(Reaches(policy, "8.8.4.4", 80));
  EXPECT_FALSE(Reaches(policy, "9.9.9.9", 53));
  EXPECT_TRUE(Reaches(policy, "9.9.9.9", 54));
  EXPECT_TRUE(Reaches(policy, "1.1.1.1", 80));
  EXPECT_FALSE(Reaches(Make({"8.8.8.8"}, {"8.8.0.0/16"}), "1.1.1.1", 80)) << "not open";
  EXPECT_FALSE(Reaches(Policy(), "1.1.1.1", 80));
}

TEST(NetworkPolicy, SurvivesItsText) {
  const std::string text = Policy::Text({"a.example:80", "8.8.8.8"}, {"9.9.9.9"}, true);
  EXPECT_EQ(text, "allow a.example:80\nallow 8.8.8.8\ndeny 9.9.9.9\nopen\n");
  const absl::StatusOr<Policy> policy = Policy::Parse(text);
  ASSERT_TRUE(policy.ok()) << policy.status();
  EXPECT_TRUE(policy->Resolves("a.example"));
  EXPECT_FALSE(Reaches(*policy, "9.9.9.9", 1));
  EXPECT_FALSE(Policy::Parse("permit a.example\n").ok());
}

class GuardTest : public testing::Test {
 protected:
  Guard Make(const std::vector<std::string>& allow) {
    return Guard(
        network::Make(allow), [this](uint32_t address) { return address != own_; },
        [this] { return now_us_; });
  }
  static std::vector<uint32_t> Learn(Guard& guard, const std::string& name,
                                     std::vector<std::string> addresses, uint32_t ttl_s = 0) {
    DnsAnswer answer;
    answer.code = DnsCode::kOk;
    answer.ttl_s = ttl_s;
    for (const std::string& address : addresses) answer.addresses.push_back(Address(address));
    guard.Learn(name, &answer);
    return answer.addresses;
  }
  static bool Judge(Guard& guard, const std::string& address, uint16_t port = 80) {
    return guard.Judge({Address(address), port}, Protocol::kTcp).has_value();
  }

  const uint32_t own_ = 0x05060708;  // 5.6.7.8 is this host
  int64_t now_us_ = 1'000'000;
};

TEST_F(GuardTest, AnAddressIsReachedOnlyByANameAndOnlyForATime) {
  Guard guard = Make({"a.example:80"});
  EXPECT_FALSE(Judge(guard, "8.8.8.8"));
  EXPECT_THAT(Learn(guard, "a.example", {"8.8.8.8"}), ElementsAre(Address("8.8.8.8")));
  EXPECT_TRUE(Judge(guard, "8.8.8.8"));
  EXPECT_FALSE(Judge(guard, "8.8.8.8", 81));
  EXPECT_FALSE(Judge(guard, "8.8.8.9"));
  now_us_ += kAddressSecondsMin * 1'000'000 - 1;
  EXPECT_TRUE(Judge(guard, "8.8.8.8"));
  now_us_ += 1;
  EXPECT_FALSE(Judge(guard, "8.8.8.8"));
  Learn(guard, "a.example", {"8.8.8.8"}, 1000);
  now_us_ += 999'000'000;
  EXPECT_TRUE(Judge(guard, "8.8.8.8")) << "for as long as its answer said";
  now_us_ += 1'000'000;
  EXPECT_FALSE(Judge(guard, "8.8.8.8"));
}

TEST_F(GuardTest, ANameLeadsToNothingOfThisHostOrOfPrivateNetworks) {
  Guard guard = Make({"a.example", "10.1.0.0/16"});
  EXPECT_THAT(Learn(guard, "a.example",
                    {"127.0.0.1", "169.254.169.254", "5.6.7.8", "10.2.0.1", "192.168.0.1"}),
              IsEmpty());
  EXPECT_FALSE(Judge(guard, "5.6.7.8"));
  EXPECT_FALSE(Judge(guard, "10.2.0.1"));
  EXPECT_THAT(Learn(guard, "a.example", {"10.1.0.1"}), ElementsAre(Address("10.1.0.1")))
      << "a rule names it";
  EXPECT_TRUE(Judge(guard, "10.1.0.1"));
}

TEST_F(GuardTest, NotEvenARuleReachesThisHost) {
  Guard guard = Make({"5.6.7.8", "5.6.7.0/24"});
  EXPECT_FALSE(Judge(guard, "5.6.7.8"));
  EXPECT_TRUE(Judge(guard, "5.6.7.9"));
}

TEST_F(GuardTest, RemembersSoManyAddressesAndNoMore) {
  Guard guard = Make({"*.a.example"});
  for (uint32_t i = 0; i < kLearntMax; ++i) {
    DnsAnswer answer;
    answer.addresses = {0x08000000 + i};
    guard.Learn("x.a.example", &answer);
  }
  Learn(guard, "x.a.example", {"9.9.9.9"});
  EXPECT_FALSE(Judge(guard, "9.9.9.9")) << "the table is full";
  EXPECT_TRUE(Judge(guard, "8.0.0.0"));
  now_us_ += kAddressSecondsMin * 1'000'000;
  Learn(guard, "x.a.example", {"9.9.9.9"});
  EXPECT_TRUE(Judge(guard, "9.9.9.9")) << "what is over makes room";
}

TEST(NetworkDns, AnswersTheQuestionThatWasAsked) {
  const std::string query = WriteDnsQuery(0x1234, "a.example");
  const absl::StatusOr<DnsQuestion> question = ReadDnsQuestion(query);
  ASSERT_TRUE(question.ok()) << question.status();
  EXPECT_EQ(question->id, 0x1234);
  EXPECT_EQ(question->name, "a.example");
  EXPECT_TRUE(question->asks_address);
  DnsAnswer answer;
  answer.code = DnsCode::kOk;
  answer.ttl_s = 77;
  answer.addresses = {Address("8.8.8.8"), Address("9.9.9.9")};
  const std::string message = WriteDnsAnswer(*question, answer);
  const absl::StatusOr<DnsAnswer> read = ReadDnsAnswer(message, 0x1234, "a.example");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->code, DnsCode::kOk);
  EXPECT_EQ(read->ttl_s, 77u);
  EXPECT_EQ(read->addresses, answer.addresses);
  EXPECT_FALSE(ReadDnsAnswer(message, 0x1235, "a.example").ok()) << "another query's";
  EXPECT_FALSE(ReadDnsAnswer(message, 0x1234, "b.example").ok()) << "another name's";
  EXPECT_FALSE(ReadDnsAnswer(query, 0x1234, "a.example").ok()) << "no answer";
}

// Every prefix, and every value of every byte: what is cut is refused, and nothing is read past its
// end (the sanitizers watch).
TEST(NetworkDns, RefusesDamagedMessages) {
  const std::string query = WriteDnsQuery(7, "a.example");
  for (size_t length = 0; length < query.size(); ++length)
    EXPECT_FALSE(ReadDnsQuestion(query.substr(0, length)).ok()) << length;
  DnsAnswer answer;
  answer.code = DnsCode::kOk;
  answer.addresses = {Address("8.8.8.8")};
  const std::string message = WriteDnsAnswer(*ReadDnsQuestion(query), answer);
  for (size_t length = 0; length < message.size(); ++length)
    EXPECT_FALSE(ReadDnsAnswer(message.substr(0, length), 7, "a.example").ok()) << length;
  for (size_t at = 0; at < message.size(); ++at) {
    std::string damaged = message;
    for (int value = 0; value < 256; ++value) {
      damaged[at] = static_cast<char>(value);
      const absl::StatusOr<DnsAnswer> read = ReadDnsAnswer(damaged, 7, "a.example");
      EXPECT_LE(read.ok() ? read->addresses.size() : 0, kDnsAddressesMax);
      (void)ReadDnsQuestion(damaged).ok();
    }
  }
}

}  // namespace
}  // namespace reprise::sandboxd::network
