#include "engine/parallel/frame.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/status_macros.h"

namespace reprise::engine {
namespace {

constexpr std::string_view kUnix = "unix:";
constexpr size_t kNonceBytes = 32;
constexpr int kBacklog = 64;
// Without an answer for so long, a host counts as gone.
constexpr int kUserTimeoutMs = 60'000;
constexpr int kHandshakeSeconds = 10;

using Nonce = std::array<unsigned char, kNonceBytes>;

struct Resolved {
  sockaddr_storage storage = {};
  socklen_t length = 0;
  int family = 0;
};

absl::StatusOr<Resolved> Resolve(const std::string& address, bool passive) {
  Resolved out;
  if (address.rfind(kUnix, 0) == 0) {
    auto* un = reinterpret_cast<sockaddr_un*>(&out.storage);
    const std::string path = address.substr(kUnix.size());
    if (path.empty() || path.size() >= sizeof(un->sun_path)) {
      return absl::InvalidArgumentError(fmt::format("rank address \"{}\": a path of 1 to {} bytes",
                                                    address, sizeof(un->sun_path) - 1));
    }
    un->sun_family = AF_UNIX;
    std::memcpy(un->sun_path, path.c_str(), path.size() + 1);
    out.family = AF_UNIX;
    out.length = sizeof(sockaddr_un);
    return out;
  }
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == address.size()) {
    return absl::InvalidArgumentError(
        fmt::format("rank address \"{}\": possible: HOST:PORT or unix:PATH", address));
  }
  std::string host = address.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found);
  if (error != 0) {
    return absl::InvalidArgumentError(
        fmt::format("rank address \"{}\": {}", address, ::gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owned(found, ::freeaddrinfo);
  std::memcpy(&out.storage, found->ai_addr, found->ai_addrlen);
  out.length = found->ai_addrlen;
  out.family = found->ai_family;
  return out;
}

void TuneTcp(int fd, int family) {
  if (family == AF_UNIX) return;
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &kUserTimeoutMs, sizeof(kUserTimeoutMs));
}

absl::Status Gone(int error) {
  return absl::UnavailableError(error == 0 ? "closed its connection" : std::strerror(error));
}

absl::Status SendAll(int fd, const void* data, size_t size) {
  const auto* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t sent = ::send(fd, at, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return Gone(errno);
    at += sent;
    size -= static_cast<size_t>(sent);
  }
  return absl::OkStatus();
}

absl::Status ReceiveAll(int fd, void* data, size_t size) {
  auto* at = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t got = ::recv(fd, at, size, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return Gone(got == 0 ? 0 : errno);
    at += got;
    size -= static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

Nonce Challenge() {
  Nonce nonce;
  // The generator fails only where the system has none, and then nothing else is safe either.
  if (RAND_bytes(nonce.data(), kNonceBytes) != 1) std::abort();
  return nonce;
}

// Bound to the side that proves, so that no answer can be sent back as one's own.
Nonce Proof(std::string_view secret, std::string_view side, Role role, const Nonce& nonce) {
  std::string text(side);
  text.append(reinterpret_cast<const char*>(&role), sizeof(role));
  text.append(reinterpret_cast<const char*>(nonce.data()), kNonceBytes);
  Nonce out;
  HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
       reinterpret_cast<const unsigned char*>(text.data()), text.size(), out.data(), nullptr);
  return out;
}

absl::Status SetTimeout(int fd, int seconds) {
  const timeval limit = {seconds, 0};
  if (::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) != 0)
    return base::ErrnoStatus(errno, "cannot bound a handshake between ranks");
  return absl::OkStatus();
}

const absl::Status& OtherSecret() {
  static const absl::Status status = absl::PermissionDeniedError(
      "the other end has another secret: give all ranks the same --secret-file");
  return status;
}

}  // namespace

absl::StatusOr<base::UniqueFd> Listen(const std::string& address, std::string* bound) {
  ASSIGN_OR_RETURN(Resolved at, Resolve(address, /*passive=*/true));
  base::UniqueFd fd(::socket(at.family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  if (fd.valid() && at.family != AF_UNIX)
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (!fd.valid() || ::bind(fd.get(), reinterpret_cast<sockaddr*>(&at.storage), at.length) != 0 ||
      ::listen(fd.get(), kBacklog) != 0) {
    return base::ErrnoStatus(errno, fmt::format("cannot listen on {}", address));
  }
  *bound = address;
  if (at.family == AF_UNIX) return fd;
  socklen_t length = sizeof(at.storage);
  if (::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&at.storage), &length) != 0)
    return base::ErrnoStatus(errno, fmt::format("cannot listen on {}", address));
  const uint16_t port = at.family == AF_INET
                            ? reinterpret_cast<sockaddr_in*>(&at.storage)->sin_port
                            : reinterpret_cast<sockaddr_in6*>(&at.storage)->sin6_port;
  *bound = fmt::format("{}:{}", address.substr(0, address.rfind(':')), ntohs(port));
  return fd;
}

absl::StatusOr<base::UniqueFd> Dial(const std::string& address) {
  ASSIGN_OR_RETURN(const Resolved at, Resolve(address, /*passive=*/false));
  base::UniqueFd fd(::socket(at.family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid() ||
      ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&at.storage), at.length) != 0) {
    return absl::UnavailableError(
        fmt::format("no rank answers at {}: {}", address, std::strerror(errno)));
  }
  TuneTcp(fd.get(), at.family);
  return fd;
}

absl::StatusOr<base::UniqueFd> Accept(int listener, absl::Duration timeout) {
  pollfd ready = {listener, POLLIN, 0};
  const int wait_ms = timeout == absl::InfiniteDuration()
                          ? -1
                          : static_cast<int>(absl::ToInt64Milliseconds(timeout));
  int polled = 0;
  do {
    polled = ::poll(&ready, 1, wait_ms);
  } while (polled < 0 && errno == EINTR);
  if (polled == 0) return absl::DeadlineExceededError("no connection came");
  base::UniqueFd fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd.valid()) return base::ErrnoStatus(errno, "cannot accept a connection");
  sockaddr_storage own = {};
  socklen_t length = sizeof(own);
  ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&own), &length);
  TuneTcp(fd.get(), own.ss_family);
  return fd;
}

absl::Status ShakeHandsAsCaller(int fd, std::string_view secret, Role role) {
  RETURN_IF_ERROR(SetTimeout(fd, kHandshakeSeconds));
  Nonce theirs;
  RETURN_IF_ERROR(ReceiveAll(fd, theirs.data(), kNonceBytes));
  const Nonce proof = Proof(secret, "caller", role, theirs), mine = Challenge();
  RETURN_IF_ERROR(SendAll(fd, &role, sizeof(role)));
  RETURN_IF_ERROR(SendAll(fd, proof.data(), kNonceBytes));
  RETURN_IF_ERROR(SendAll(fd, mine.data(), kNonceBytes));
  Nonce answer;
  // A listener that was not convinced hangs up.
  if (!ReceiveAll(fd, answer.data(), kNonceBytes).ok()) return OtherSecret();
  const Nonce wanted = Proof(secret, "listener", role, mine);
  if (CRYPTO_memcmp(answer.data(), wanted.data(), kNonceBytes) != 0) return OtherSecret();
  return SetTimeout(fd, 0);
}

absl::StatusOr<Role> ShakeHandsAsListener(int fd, std::string_view secret) {
  RETURN_IF_ERROR(SetTimeout(fd, kHandshakeSeconds));
  const Nonce mine = Challenge();
  RETURN_IF_ERROR(SendAll(fd, mine.data(), kNonceBytes));
  Role role = 0;
  Nonce proof, theirs;
  RETURN_IF_ERROR(ReceiveAll(fd, &role, sizeof(role)));
  RETURN_IF_ERROR(ReceiveAll(fd, proof.data(), kNonceBytes));
  RETURN_IF_ERROR(ReceiveAll(fd, theirs.data(), kNonceBytes));
  const Nonce wanted = Proof(secret, "caller", role, mine);
  if (CRYPTO_memcmp(proof.data(), wanted.data(), kNonceBytes) != 0) return OtherSecret();
  const Nonce answer = Proof(secret, "listener", role, theirs);
  RETURN_IF_ERROR(SendAll(fd, answer.data(), kNonceBytes));
  RETURN_IF_ERROR(SetTimeout(fd, 0));
  return role;
}

absl::Status SendMessage(int fd, const google::protobuf::MessageLite& message) {
  const std::string bytes = message.SerializeAsString();
  if (bytes.size() > kFrameBytesMax) {
    return absl::ResourceExhaustedError(fmt::format(
        "a message of {} bytes between ranks; at most {}", bytes.size(), kFrameBytesMax));
  }
  const auto size = static_cast<uint32_t>(bytes.size());
  RETURN_IF_ERROR(SendAll(fd, &size, sizeof(size)));
  return SendAll(fd, bytes.data(), bytes.size());
}

absl::Status ReceiveMessage(int fd, google::protobuf::MessageLite* message) {
  uint32_t size = 0;
  RETURN_IF_ERROR(ReceiveAll(fd, &size, sizeof(size)));
  if (size > kFrameBytesMax) {
    return absl::DataLossError(
        fmt::format("a message of {} bytes between ranks; at most {}", size, kFrameBytesMax));
  }
  std::string bytes(size, '\0');
  RETURN_IF_ERROR(ReceiveAll(fd, bytes.data(), size));
  if (!message->ParseFromString(bytes))
    return absl::DataLossError(fmt::format("{} bytes between ranks are no message", size));
  return absl::OkStatus();
}

}  // namespace reprise::engine
