// Datagrams with the address that their sender called, which a steered socket needs to know and to
// answer from.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "sandboxd/network/inside.h"

namespace reprise::sandboxd::network {

inline constexpr size_t kDatagramBytesMax = 65'507;

struct Datagram {
  Endpoint from, to;
  std::string data;
};

// The next one of a non-blocking socket, nullopt when there is none.
std::optional<Datagram> ReceiveDatagram(int fd);
// To `to` from the address `from`, and from the socket's own port. What does not fit is dropped, as
// datagrams are.
void SendDatagram(int fd, const Endpoint& from, const Endpoint& to, std::string_view data);

}  // namespace reprise::sandboxd::network
