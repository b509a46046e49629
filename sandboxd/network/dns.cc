#include "sandboxd/network/dns.h"

#include <arpa/nameser.h>
#include <resolv.h>
#include <string.h>

#include <algorithm>

#include "sandboxd/network/policy.h"

namespace reprise::sandboxd::network {
namespace {

constexpr size_t kHeaderBytes = NS_HFIXEDSZ;
constexpr uint16_t kNameOfQuestion = 0xc000 | kHeaderBytes;  // a pointer to it

absl::Status Malformed() {
  return absl::InvalidArgumentError("not a DNS message that can be used");
}

const unsigned char* Bytes(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

// The one question of a message that was parsed.
bool OneQuestion(ns_msg* message, ns_rr* question) {
  return ns_msg_count(*message, ns_s_qd) == 1 && ns_parserr(message, ns_s_qd, 0, question) == 0;
}

void Put16(std::string* out, uint16_t value) {
  out->push_back(static_cast<char>(value >> 8));
  out->push_back(static_cast<char>(value & 255));
}
void Put32(std::string* out, uint32_t value) {
  Put16(out, static_cast<uint16_t>(value >> 16));
  Put16(out, static_cast<uint16_t>(value));
}
void PutHeader(std::string* out, uint16_t id, uint16_t flags, uint16_t answers) {
  Put16(out, id), Put16(out, flags), Put16(out, 1), Put16(out, answers), Put16(out, 0),
      Put16(out, 0);
}

}  // namespace

absl::StatusOr<DnsQuestion> ReadDnsQuestion(std::string_view message) {
  ns_msg parsed;
  ns_rr record;
  if (message.size() < kHeaderBytes || message.size() > kDnsMessageBytesMax ||
      ns_initparse(Bytes(message), static_cast<int>(message.size()), &parsed) != 0 ||
      ns_msg_getflag(parsed, ns_f_qr) != 0 || ns_msg_getflag(parsed, ns_f_opcode) != ns_o_query ||
      !OneQuestion(&parsed, &record)) {
    return Malformed();
  }
  const int length = dn_skipname(Bytes(message) + kHeaderBytes, Bytes(message) + message.size());
  const size_t end = kHeaderBytes + static_cast<size_t>(std::max(length, 0)) + NS_QFIXEDSZ;
  // A question whose name is a pointer has nothing that it could point to.
  if (length <= 0 || end > message.size() || (message[kHeaderBytes] & 0xc0) != 0)
    return Malformed();
  DnsQuestion question;
  question.id = ns_msg_id(parsed);
  question.type = ns_rr_type(record);
  question.wants_recursion = ns_msg_getflag(parsed, ns_f_rd) != 0;
  question.name = CanonicalName(ns_rr_name(record));
  question.wire = std::string(message.substr(kHeaderBytes, end - kHeaderBytes));
  question.asks_address = ns_rr_class(record) == ns_c_in && question.type == ns_t_a;
  return question;
}

std::string WriteDnsQuery(uint16_t id, std::string_view name) {
  std::string query;
  PutHeader(&query, id, /*flags: recursion*/ 0x0100, 0);
  for (size_t at = 0; at < name.size();) {
    const size_t end = std::min(name.find('.', at), name.size());
    query.push_back(static_cast<char>(end - at));
    query += name.substr(at, end - at);
    at = end + 1;
  }
  query.push_back('\0');
  Put16(&query, ns_t_a), Put16(&query, ns_c_in);
  return query;
}

absl::StatusOr<DnsAnswer> ReadDnsAnswer(std::string_view message, uint16_t id,
                                        std::string_view name) {
  ns_msg parsed;
  ns_rr record;
  if (message.size() < kHeaderBytes ||
      ns_initparse(Bytes(message), static_cast<int>(message.size()), &parsed) != 0 ||
      ns_msg_getflag(parsed, ns_f_qr) == 0 || ns_msg_id(parsed) != id ||
      !OneQuestion(&parsed, &record) || CanonicalName(ns_rr_name(record)) != name ||
      ns_rr_type(record) != ns_t_a) {
    return Malformed();
  }
  DnsAnswer answer;
  answer.truncated = ns_msg_getflag(parsed, ns_f_tc) != 0;
  const int code = ns_msg_getflag(parsed, ns_f_rcode);
  answer.code = code == ns_r_noerror    ? DnsCode::kOk
                : code == ns_r_nxdomain ? DnsCode::kNoName
                                        : DnsCode::kServerFailed;
  answer.ttl_s = ~0u;
  for (int i = 0; i < ns_msg_count(parsed, ns_s_an); ++i) {
    if (ns_parserr(&parsed, ns_s_an, i, &record) != 0) return Malformed();
    const bool address = ns_rr_type(record) == ns_t_a && ns_rr_rdlen(record) == NS_INADDRSZ;
    if (!address && ns_rr_type(record) != ns_t_cname) continue;
    answer.ttl_s = std::min<uint32_t>(answer.ttl_s, ns_rr_ttl(record));
    if (address && answer.addresses.size() < kDnsAddressesMax)
      answer.addresses.push_back(ns_get32(ns_rr_rdata(record)));
  }
  if (answer.addresses.empty()) answer.ttl_s = 0;
  return answer;
}

std::string WriteDnsAnswer(const DnsQuestion& question, const DnsAnswer& answer) {
  std::string message;
  // A response, recursion available.
  const uint16_t flags = static_cast<uint16_t>(0x8080 | (question.wants_recursion ? 0x0100 : 0) |
                                               static_cast<uint16_t>(answer.code));
  PutHeader(&message, question.id, flags, static_cast<uint16_t>(answer.addresses.size()));
  message += question.wire;
  for (const uint32_t address : answer.addresses) {
    Put16(&message, kNameOfQuestion), Put16(&message, ns_t_a), Put16(&message, ns_c_in);
    Put32(&message, answer.ttl_s), Put16(&message, NS_INADDRSZ), Put32(&message, address);
  }
  return message;
}

}  // namespace reprise::sandboxd::network
