#include "sandboxd/network/netlink.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>

#include <vector>

#include "base/fd.h"
#include "base/status_macros.h"

namespace reprise::sandboxd::network {
namespace {

constexpr size_t kAnswerBytes = 8192;

// One request and its answer.
template <typename Body>
class Request {
 public:
  Request(uint16_t type, uint16_t flags) {
    message_.header.nlmsg_len = NLMSG_LENGTH(sizeof(Body));
    message_.header.nlmsg_type = type;
    message_.header.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | flags);
    message_.header.nlmsg_seq = 1;
  }
  Body& body() { return message_.body; }

  void Add(uint16_t type, uint32_t value) {
    auto* attribute = reinterpret_cast<rtattr*>(message_.bytes() + message_.header.nlmsg_len);
    attribute->rta_type = type;
    attribute->rta_len = RTA_LENGTH(sizeof(value));
    memcpy(RTA_DATA(attribute), &value, sizeof(value));
    message_.header.nlmsg_len += RTA_ALIGN(attribute->rta_len);
  }

  // The answer, header and all. An error of the kernel is its errno in `error`, 0 for an
  // acknowledgement.
  absl::StatusOr<std::vector<char>> Send(const char* what, int* error) {
    const base::UniqueFd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    if (!fd.valid()) return base::ErrnoStatus(errno, "make a netlink socket");
    sockaddr_nl kernel{};
    kernel.nl_family = AF_NETLINK;
    if (sendto(fd.get(), message_.bytes(), message_.header.nlmsg_len, 0,
               reinterpret_cast<sockaddr*>(&kernel), sizeof(kernel)) < 0) {
      return base::ErrnoStatus(errno, what);
    }
    std::vector<char> answer(kAnswerBytes);
    ssize_t count = 0;
    do {
      count = recv(fd.get(), answer.data(), answer.size(), 0);
    } while (count < 0 && errno == EINTR);
    if (count < static_cast<ssize_t>(NLMSG_LENGTH(sizeof(nlmsgerr)) - sizeof(nlmsghdr)))
      return base::ErrnoStatus(count < 0 ? errno : EPROTO, what);
    answer.resize(static_cast<size_t>(count));
    const auto* header = reinterpret_cast<const nlmsghdr*>(answer.data());
    *error = 0;
    if (header->nlmsg_type == NLMSG_ERROR)
      *error = -reinterpret_cast<const nlmsgerr*>(NLMSG_DATA(header))->error;
    return answer;
  }

  absl::Status Change(const char* what) {
    int error = 0;
    RETURN_IF_ERROR(Send(what, &error).status());
    return error == 0 || error == EEXIST ? absl::OkStatus() : base::ErrnoStatus(error, what);
  }

 private:
  struct Message {
    nlmsghdr header{};
    Body body{};
    char attributes[128] = {};
    char* bytes() { return reinterpret_cast<char*>(this); }
  } message_;
  static_assert(sizeof(nlmsghdr) == NLMSG_HDRLEN);
};

}  // namespace

absl::StatusOr<bool> LeavesHost(uint32_t address) {
  Request<rtmsg> request(RTM_GETROUTE, 0);
  request.body().rtm_family = AF_INET;
  request.body().rtm_dst_len = 32;
  request.Add(RTA_DST, htonl(address));
  int error = 0;
  ASSIGN_OR_RETURN(const std::vector<char> answer, request.Send("ask for a route", &error));
  const auto* header = reinterpret_cast<const nlmsghdr*>(answer.data());
  if (error != 0 || header->nlmsg_type != RTM_NEWROUTE) return false;
  return reinterpret_cast<const rtmsg*>(NLMSG_DATA(header))->rtm_type == RTN_UNICAST;
}

absl::Status MakeEverythingLocal(uint32_t address) {
  const unsigned loopback = if_nametoindex("lo");
  if (loopback == 0) return base::ErrnoStatus(errno, "find the loopback of a sandbox");
  Request<ifinfomsg> up(RTM_NEWLINK, NLM_F_ACK);
  up.body().ifi_family = AF_UNSPEC;
  up.body().ifi_index = static_cast<int>(loopback);
  up.body().ifi_flags = up.body().ifi_change = IFF_UP;
  RETURN_IF_ERROR(up.Change("bring the loopback of a sandbox up"));

  Request<ifaddrmsg> own(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
  own.body().ifa_family = AF_INET;
  own.body().ifa_prefixlen = 32;
  own.body().ifa_index = loopback;
  own.Add(IFA_LOCAL, htonl(address));
  own.Add(IFA_ADDRESS, htonl(address));
  RETURN_IF_ERROR(own.Change("give a sandbox its address"));

  Request<rtmsg> route(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
  route.body().rtm_family = AF_INET;
  route.body().rtm_table = RT_TABLE_MAIN;
  route.body().rtm_protocol = RTPROT_STATIC;
  route.body().rtm_scope = RT_SCOPE_HOST;
  route.body().rtm_type = RTN_LOCAL;
  route.Add(RTA_OIF, loopback);
  route.Add(RTA_PREFSRC, htonl(address));
  return route.Change("route a sandbox's connections to its gate");
}

}  // namespace reprise::sandboxd::network
