// DNS messages as the gate reads and writes them: one question in, the addresses of one answer out.
// Names and text of other records are never passed on. Reading is the C library's (ns_initparse),
// writing is fixed in form.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace reprise::sandboxd::network {

inline constexpr size_t kDnsMessageBytesMax = 4096;
inline constexpr size_t kDnsAddressesMax =
    15;  // passed on of one answer: fits 512 bytes with any name

struct DnsQuestion {
  uint16_t id = 0;
  uint16_t type = 0;
  bool wants_recursion = false;
  std::string name;           // canonical
  std::string wire;           // the question section as it came, to be given back
  bool asks_address = false;  // class IN, type A
};
// INVALID_ARGUMENT when it is no query with one question.
absl::StatusOr<DnsQuestion> ReadDnsQuestion(std::string_view message);

// A query for the addresses of a canonical name.
std::string WriteDnsQuery(uint16_t id, std::string_view name);

enum class DnsCode : uint8_t { kOk = 0, kServerFailed = 2, kNoName = 3, kRefused = 5 };

struct DnsAnswer {
  DnsCode code = DnsCode::kServerFailed;
  bool truncated = false;           // ask again over TCP
  std::vector<uint32_t> addresses;  // host order
  uint32_t ttl_s = 0;               // the smallest on the way to them
};
// INVALID_ARGUMENT when it does not answer that query (id, question) or is malformed.
absl::StatusOr<DnsAnswer> ReadDnsAnswer(std::string_view message, uint16_t id,
                                        std::string_view name);

std::string WriteDnsAnswer(const DnsQuestion& question, const DnsAnswer& answer);

}  // namespace reprise::sandboxd::network
