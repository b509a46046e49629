// A terminal for one call, of the devpts instance that is mounted in the sandbox: the agent keeps
// the master, the command gets the slave as its standard streams and as its controlling terminal.
#pragma once

#include <cstdint>
#include <string>

#include "sandboxd/agent/os.h"

namespace reprise::sandboxd::agent {

struct Terminal {
  Fd master;  // not blocking
  Fd slave;
};

// `rows` and `columns` from 1. The slave belongs to `owner` and is nobody else's to write to. False
// with `why`.
bool OpenTerminal(uint16_t rows, uint16_t columns, const Identity& owner, Terminal* terminal,
                  std::string* why);

// Programs on it get SIGWINCH. An errno.
int ResizeTerminal(const Fd& master, uint16_t rows, uint16_t columns);

// What ends its input, as it is set now, for whoever reads lines from it. `mid_line`: bytes before
// it form no whole line, so that a first one would only push them out.
std::string EndOfInput(const Fd& master, bool mid_line);

}  // namespace reprise::sandboxd::agent
