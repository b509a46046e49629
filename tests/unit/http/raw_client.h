// A client that sends bytes as they are given: what a careful HTTP library would never send.
#pragma once

#include <string>
#include <string_view>

#include "base/fd.h"

namespace reprise::http {

class RawClient {
 public:
  // Connects to "HOST:PORT" on the loopback.
  explicit RawClient(const std::string& address);
  void Send(std::string_view bytes);
  // Reads until the peer closes.
  std::string ReadAll();
  // Reads until `text` has come, or the peer closes.
  std::string ReadUntil(std::string_view text);

 private:
  bool ReadSome();

  base::UniqueFd fd_;
  std::string buffer_;
};

}  // namespace reprise::http
