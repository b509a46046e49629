#include "sandboxd/agent/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <termios.h>

namespace reprise::sandboxd::agent {
namespace {

// Not /dev/ptmx, which programs may replace: this one is inside the mount.
constexpr char kMultiplexer[] = "/dev/pts/ptmx";
constexpr mode_t kSlaveMode = 0600;

}  // namespace

bool OpenTerminal(uint16_t rows, uint16_t columns, const Identity& owner, Terminal* terminal,
                  std::string* why) {
  auto fail = [&](const char* what) {
    *why = std::string("cannot make a terminal: ") + what + ": " + strerror(errno);
    return false;
  };
  terminal->master.Reset(
      open(kMultiplexer, O_RDWR | O_NOCTTY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!terminal->master.valid()) return fail("open /dev/pts/ptmx");
  struct statfs system {};
  if (fstatfs(terminal->master.get(), &system) != 0) return fail("look at /dev/pts");
  if (system.f_type != DEVPTS_SUPER_MAGIC) {
    errno = ENODEV;
    return fail("look at /dev/pts");
  }
  const int locked = 0;
  if (ioctl(terminal->master.get(), TIOCSPTLCK, &locked) != 0) return fail("unlock it");
  terminal->slave.Reset(ioctl(terminal->master.get(), TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!terminal->slave.valid()) return fail("open its other end");
  // The mode first: its new owner is the only one who may change it afterwards.
  if (fchmod(terminal->slave.get(), kSlaveMode) != 0) return fail("set its mode");
  struct stat info {};
  if (fstat(terminal->slave.get(), &info) != 0) return fail("look at its other end");
  if ((info.st_uid != owner.uid || info.st_gid != owner.gid) &&
      fchown(terminal->slave.get(), owner.uid, owner.gid) != 0) {
    return fail("give it to its user");
  }
  if (const int error = ResizeTerminal(terminal->master, rows, columns); error != 0) {
    errno = error;
    return fail("set its size");
  }
  return true;
}

int ResizeTerminal(const Fd& master, uint16_t rows, uint16_t columns) {
  winsize size{};
  size.ws_row = rows;
  size.ws_col = columns;
  return ioctl(master.get(), TIOCSWINSZ, &size) == 0 ? 0 : errno;
}

std::string EndOfInput(const Fd& master, bool mid_line) {
  termios settings{};
  if (tcgetattr(master.get(), &settings) != 0) return "";
  const bool lines = (settings.c_lflag & ICANON) != 0;
  const char end = static_cast<char>(settings.c_cc[VEOF]);
  return std::string(lines && mid_line ? 2 : 1, end);
}

}  // namespace reprise::sandboxd::agent
