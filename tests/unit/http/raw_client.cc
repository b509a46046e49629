#include "tests/unit/http/raw_client.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <utility>

namespace reprise::http {

RawClient::RawClient(const std::string& address)
    : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  to.sin_port = htons(static_cast<uint16_t>(std::atoi(address.c_str() + address.rfind(':') + 1)));
  EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
}

void RawClient::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count <= 0) return;  // the server closed: what it said shows in the test
    bytes.remove_prefix(static_cast<size_t>(count));
  }
}

bool RawClient::ReadSome() {
  char data[4096];
  const ssize_t count = ::read(fd_.get(), data, sizeof(data));
  if (count <= 0) return false;
  buffer_.append(data, static_cast<size_t>(count));
  return true;
}

std::string RawClient::ReadAll() {
  while (ReadSome()) {
  }
  return std::exchange(buffer_, "");
}

std::string RawClient::ReadUntil(std::string_view text) {
  while (buffer_.find(text) == std::string::npos && ReadSome()) {
  }
  const size_t at = buffer_.find(text);
  const size_t end = at == std::string::npos ? buffer_.size() : at + text.size();
  std::string got = buffer_.substr(0, end);
  buffer_.erase(0, end);
  return got;
}

}  // namespace reprise::http
