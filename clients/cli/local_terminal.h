// The terminal that this command runs on: raw while a program in a sandbox has it, and as it was
// before in the end, whatever way the command ends.
#pragma once

#include <termios.h>

#include <atomic>
#include <cstdint>

namespace reprise::cli {

struct WindowSize {
  uint32_t rows = 24, columns = 80;
};

class LocalTerminal {
 public:
  LocalTerminal() = default;
  ~LocalTerminal() { Restore(); }
  LocalTerminal(const LocalTerminal&) = delete;
  LocalTerminal& operator=(const LocalTerminal&) = delete;

  // The window of standard output or input; the default where neither is a terminal.
  static WindowSize Size();
  // Keys go to the program as they are, Ctrl-C too. Nothing where standard input is no terminal.
  void MakeRaw();
  // From any thread.
  void Restore();

 private:
  termios before_{};
  std::atomic<bool> raw_{false};
};

}  // namespace reprise::cli
