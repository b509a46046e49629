#include "clients/cli/sandbox_input.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "clients/cli/local_terminal.h"

namespace reprise::cli {
namespace {

constexpr size_t kStdinPiece = 64 << 10;

}  // namespace

CallInput::CallInput(const std::unique_ptr<SandboxApi>* api, std::string call_id,
                     bool forward_stdin, bool on_terminal)
    : api_(api),
      call_id_(std::move(call_id)),
      forward_stdin_(forward_stdin),
      on_terminal_(on_terminal),
      wake_(::eventfd(0, EFD_CLOEXEC)) {
  sigemptyset(&signals_);
  if (on_terminal_) {
    sigaddset(&signals_, SIGWINCH);
    sigaddset(&signals_, SIGHUP);
  }
  pthread_sigmask(SIG_BLOCK, &signals_, &before_);
  signal_fd_.Reset(::signalfd(-1, &signals_, SFD_CLOEXEC));
}

CallInput::~CallInput() {
  if (thread_.joinable()) {
    ::eventfd_write(wake_.get(), 1);
    thread_.join();
  }
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

void CallInput::Start() {
  if (!thread_.joinable() && (forward_stdin_ || on_terminal_))
    thread_ = std::thread([this] { Run(); });
}

void CallInput::Run() {
  bool open = forward_stdin_;
  while (true) {
    pollfd ready[] = {{wake_.get(), POLLIN, 0},
                      {signal_fd_.get(), POLLIN, 0},
                      {open ? STDIN_FILENO : -1, POLLIN, 0}};
    if (::poll(ready, 3, -1) < 0) continue;
    if (ready[0].revents != 0) return;
    if (ready[1].revents != 0) HandleSignal();
    if (ready[2].revents != 0) open = ForwardPiece();
  }
}

bool CallInput::ForwardPiece() {
  std::string piece(kStdinPiece, '\0');
  const ssize_t got = ::read(STDIN_FILENO, piece.data(), piece.size());
  if (got < 0 && (errno == EINTR || errno == EAGAIN)) return true;
  sandbox_wire::WriteStdinRequest request;
  request.set_call_id(call_id_);
  request.set_eof(got <= 0);
  if (got > 0) request.set_data(piece.data(), static_cast<size_t>(got));
  // Refused once the call has ended: nobody reads it.
  return (*api_)->WriteStdin(request).ok() && got > 0;
}

// A call that has ended in the meantime refuses both, which is no news.
void CallInput::HandleSignal() {
  signalfd_siginfo info;
  if (::read(signal_fd_.get(), &info, sizeof(info)) != sizeof(info)) return;
  if (info.ssi_signo == SIGHUP) {  // our terminal is gone, so the one inside goes too
    (*api_)->Cancel(call_id_).IgnoreError();
    return;
  }
  const WindowSize size = LocalTerminal::Size();
  sandbox_wire::ResizeRequest request;
  request.set_call_id(call_id_);
  request.set_rows(size.rows);
  request.set_columns(size.columns);
  (*api_)->Resize(request).IgnoreError();
}

}  // namespace reprise::cli
