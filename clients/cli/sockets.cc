#include "clients/cli/sockets.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "base/fd.h"

namespace reprise::cli {
namespace {

constexpr std::string_view kUnixScheme = "unix:";

}  // namespace

std::string SocketOf(const std::string& state, const std::string& name) {
  std::error_code ignored;
  std::filesystem::path path = std::filesystem::absolute(state, ignored).lexically_normal();
  return fmt::format("unix:{}", (path / name).string());
}

bool Answers(const std::string& address) {
  if (!address.starts_with(kUnixScheme)) return true;
  std::string path = address.substr(kUnixScheme.size());
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (path.size() >= sizeof(name.sun_path)) return false;
  std::memcpy(name.sun_path, path.data(), path.size());
  base::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return false;
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&name), sizeof(name)) == 0) return true;
  return errno == EAGAIN;  // its backlog is full
}

}  // namespace reprise::cli
