#include "clients/cli/local_terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

namespace reprise::cli {

WindowSize LocalTerminal::Size() {
  for (const int fd : {STDOUT_FILENO, STDIN_FILENO}) {
    winsize size{};
    if (::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0)
      return {size.ws_row, size.ws_col};
  }
  return {};
}

void LocalTerminal::MakeRaw() {
  if (raw_.load() || ::tcgetattr(STDIN_FILENO, &before_) != 0) return;
  termios raw = before_;
  ::cfmakeraw(&raw);
  raw_ = ::tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) == 0;
}

void LocalTerminal::Restore() {
  if (raw_.exchange(false)) ::tcsetattr(STDIN_FILENO, TCSADRAIN, &before_);
}

}  // namespace reprise::cli
