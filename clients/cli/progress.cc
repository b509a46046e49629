#include "clients/cli/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/clock.h"
#include "clients/cli/output.h"

namespace reprise::cli {
namespace {

constexpr size_t kBarColumns = 24;
constexpr size_t kDefaultColumns = 80;
constexpr int64_t kRedrawMicros = 100'000;
constexpr std::string_view kClearLine = "\r\x1b[K";

size_t TerminalColumns() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return kDefaultColumns;
  return size.ws_col;
}

void Draw(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

std::string ProgressLine(std::string_view label, uint64_t done, uint64_t total,
                         std::string_view note, size_t columns) {
  done = std::min(done, total);
  size_t filled = total == 0 ? kBarColumns : static_cast<size_t>(done * kBarColumns / total);
  std::string line = fmt::format("{} [{}{}] {}/{}", label, std::string(filled, '#'),
                                 std::string(kBarColumns - filled, '.'), Count(done), Count(total));
  if (!note.empty()) line += fmt::format("  {}", note);
  return OneLine(line, columns);
}

Progress::Progress(std::string label)
    : label_(std::move(label)), terminal_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() { Clear(); }

void Progress::Update(uint64_t done, uint64_t total, std::string_view note) {
  if (!terminal_) return;
  int64_t now = base::MonotonicMicros();
  if (drawn_us_ != 0 && now - drawn_us_ < kRedrawMicros && done < total) return;
  drawn_us_ = now;
  // One column less: a full line would wrap.
  Draw(fmt::format("{}{}", kClearLine,
                   ProgressLine(label_, done, total, note, TerminalColumns() - 1)));
}

void Progress::Clear() {
  if (drawn_us_ == 0) return;
  drawn_us_ = 0;
  Draw(kClearLine);
}

}  // namespace reprise::cli
