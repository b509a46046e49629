// Unix sockets of daemons, seen from outside: where they are, and whether somebody serves them.
#pragma once

#include <string>

namespace reprise::cli {

// Whether somebody accepts connections at unix:PATH; true for other addresses, which only a request
// can tell.
bool Answers(const std::string& address);

// "unix:STATE/NAME" with STATE made absolute.
std::string SocketOf(const std::string& state, const std::string& name);

}  // namespace reprise::cli
