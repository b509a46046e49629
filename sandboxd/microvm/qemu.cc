// The QEMU driver: starts the process with qemu_arguments.h, keeps the end of its console, and
// speaks QMP with it. The process runs as a user of its own in an empty network, with QEMU's
// system-call filter, and dies with its supervisor.
#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "sandboxd/link/agent_link.h"
#include "sandboxd/microvm/memory_image.h"
#include "sandboxd/microvm/qemu_arguments.h"
#include "sandboxd/microvm/qmp.h"
#include "sandboxd/microvm/vmm.h"
#include "sandboxd/microvm/vmm_process.h"

namespace reprise::sandboxd::microvm {
namespace {

using base::UniqueFd;
using nlohmann::json;

constexpr size_t kWordsBytesMax = 1024;  // kept of stderr
constexpr int64_t kMonitorStartMs = 60'000;
constexpr int64_t kTransferMs = 60'000;  // of a save or a load
constexpr int64_t kTransferPollUs = 1'000;
constexpr int kKeyHoldMs = 10;

class Qemu final : public Vmm {
 public:
  ~Qemu() override { End(); }

  void End() override {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    console_.Read();
    port_.Reset(), console_.fd.Reset(), words_.fd.Reset();
    monitor_.reset();
  }

  absl::Status Launch(const VmConfig& config) override {
    ASSIGN_OR_RETURN(Pair port, MakePair());
    ASSIGN_OR_RETURN(Pair monitor, MakePair());
    ASSIGN_OR_RETURN(Pair console, MakePair());
    ASSIGN_OR_RETURN(Pair words, MakePair());
    inherited_ = {port.theirs.get(), monitor.theirs.get(), console.theirs.get()};
    // Kept until it has them: paths of the daemon's private directories mean nothing to the user
    // that it runs as.
    std::vector<UniqueFd> files;
    const QemuFile file = [&](const std::string& path, int flags) -> absl::StatusOr<std::string> {
      UniqueFd fd(open(path.c_str(), flags | O_CLOEXEC));
      if (!fd.valid()) return base::ErrnoStatus(errno, "open " + path);
      if (flags != O_RDONLY && config.uid != 0 && fchown(fd.get(), config.uid, config.uid) != 0)
        return base::ErrnoStatus(errno, "give away " + path);
      inherited_.push_back(fd.get());
      files.push_back(std::move(fd));
      return fmt::format("/proc/self/fd/{}", files.back().get());
    };
    ASSIGN_OR_RETURN(
        const std::vector<std::string> arguments,
        QemuArguments(config, {port.theirs.get(), monitor.theirs.get(), console.theirs.get()},
                      file));
    const auto mode = static_cast<Mode>(config.mode);
    if (mode == Mode::kTemplate || FromTemplate(mode)) inherited_.push_back(kRamFd);
    const pid_t parent = getpid();
    pid_ = fork();
    if (pid_ < 0) return base::ErrnoStatus(errno, "fork the machine");
    if (pid_ == 0) BecomeVmm(config, {arguments, words.theirs.get(), parent, inherited_});
    port_ = std::move(port.ours);
    console_.fd = std::move(console.ours);
    words_.fd = std::move(words.ours);
    monitor_ = std::make_unique<Qmp>(std::move(monitor.ours));
    monitor.theirs.Reset(), words.theirs.Reset();
    absl::Status started = monitor_->Start(kMonitorStartMs);
    if (started.ok()) return started;
    Attend();
    return absl::InternalError(
        fmt::format("{} did not start: {} ({})", config.program, started.message(), LastWords()));
  }

  absl::Status Save(int state_fd) override {
    RETURN_IF_ERROR(Pause());
    RETURN_IF_ERROR(KeepMemoryOut());
    RETURN_IF_ERROR(monitor_->Command("getfd", R"({"fdname":"state"})", state_fd).status());
    RETURN_IF_ERROR(monitor_->Command("migrate", R"({"uri":"fd:state"})").status());
    const int64_t deadline = base::MonotonicMicros() + kTransferMs * 1000;
    while (base::MonotonicMicros() < deadline) {
      ASSIGN_OR_RETURN(const std::string text, monitor_->Command("query-migrate"));
      const json answer = json::parse(text, nullptr, false);
      const std::string status =
          answer.is_object() ? answer.value("status", std::string()) : std::string();
      if (status == "completed") return absl::OkStatus();
      if (status == "failed") return absl::InternalError("the machine could not be saved");
      usleep(kTransferPollUs);
    }
    return absl::DeadlineExceededError("the machine was not saved in time");
  }

  absl::Status Load(int state_fd) override {
    RETURN_IF_ERROR(KeepMemoryOut());
    RETURN_IF_ERROR(monitor_->Command("getfd", R"({"fdname":"state"})", state_fd).status());
    RETURN_IF_ERROR(monitor_->Command("migrate-incoming", R"({"uri":"fd:state"})").status());
    const int64_t deadline = base::MonotonicMicros() + kTransferMs * 1000;
    while (base::MonotonicMicros() < deadline) {
      ASSIGN_OR_RETURN(const std::string status, Status());
      if (status != "inmigrate") return absl::OkStatus();
      usleep(kTransferPollUs);
    }
    return absl::DeadlineExceededError("the machine was not loaded in time");
  }

  absl::Status SaveTo(const std::string& dir) override {
    ASSIGN_OR_RETURN(const UniqueFd memory, MakePart(dir, kMemoryPart));
    ASSIGN_OR_RETURN(const UniqueFd devices, MakePart(dir, kDevicesPart));
    RETURN_IF_ERROR(SaveOwnPages(pid_, kRamFd, memory.get()).status());
    RETURN_IF_ERROR(monitor_->Command("add-fd", R"({"fdset-id":2})", devices.get()).status());
    // What a migration writes beside the memory, which only this command leaves out of a private
    // mapping.
    const absl::Status saved =
        monitor_
            ->Command("xen-save-devices-state", R"({"filename":"/dev/fdset/2","live":false})",
                      /*pass=*/-1, kTransferMs)
            .status();
    RETURN_IF_ERROR(monitor_->Command("remove-fd", R"({"fdset-id":2})").status());
    return saved;
  }

  absl::Status LoadFrom(const std::string& dir) override {
    ASSIGN_OR_RETURN(const UniqueFd memory, OpenPart(dir, kMemoryPart));
    ASSIGN_OR_RETURN(const UniqueFd devices, OpenPart(dir, kDevicesPart));
    RETURN_IF_ERROR(LoadOwnPages(memory.get(), pid_, kRamFd).status());
    return Load(devices.get());
  }

  absl::Status Pause() override { return monitor_->Command("stop").status(); }
  absl::Status Resume() override { return monitor_->Command("cont").status(); }

  UniqueFd TakePort() override { return std::move(port_); }
  pid_t pid() const override { return pid_; }
  void AddPollFds(std::vector<pollfd>* fds) const override {
    for (const int fd :
         {monitor_ != nullptr ? monitor_->fd() : -1, console_.fd.get(), words_.fd.get()})
      fds->push_back({fd, POLLIN, 0});  // poll passes over -1
  }
  void Attend() override {
    if (monitor_ != nullptr) monitor_->DropEvents();
    console_.Read();
    words_.Read();
  }
  std::string LastWords() const override {
    const std::string words = LastLine(words_.text()), console = LastLine(console_.text());
    if (words.empty()) return console.empty() ? "it said nothing" : console;
    return console.empty() ? words : fmt::format("{}; its console: {}", words, console);
  }

  ConsoleData Console(uint64_t from) const override { return console_.From(from); }
  void BeginConsole(std::string text) override { console_.Append(text); }
  absl::Status TypeAtConsole(std::string_view text) override {
    const ssize_t count =
        send(console_.fd.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count == static_cast<ssize_t>(text.size())) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        fmt::format("the guest took {} of {} bytes typed at its console",
                    std::max<ssize_t>(count, 0), text.size()));
  }

  absl::Status Screenshot(int fd) override {
    RETURN_IF_ERROR(monitor_->Command("add-fd", R"({"fdset-id":1})", fd).status());
    const absl::Status taken =
        monitor_->Command("screendump", R"({"filename":"/dev/fdset/1","format":"png"})").status();
    RETURN_IF_ERROR(monitor_->Command("remove-fd", R"({"fdset-id":1})").status());
    return taken;
  }

  absl::Status Send(const Input& input) override {
    switch (static_cast<InputKind>(input.kind)) {
      case InputKind::kKeys: {
        json keys = json::array();
        for (const std::string& name : input.names)
          keys.push_back({{"type", "qcode"}, {"data", name}});
        const json arguments = {{"keys", keys}, {"hold-time", kKeyHoldMs}};
        return monitor_->Command("send-key", arguments.dump()).status();
      }
      case InputKind::kMove: {
        auto axis = [](const char* name, uint32_t value) {
          return json{{"type", "abs"}, {"data", {{"axis", name}, {"value", value}}}};
        };
        return SendEvents({axis("x", input.x), axis("y", input.y)});
      }
      case InputKind::kButton: {
        if (input.names.size() != 1) break;
        const json data = {{"button", input.names.front()}, {"down", input.down != 0}};
        return SendEvents({json{{"type", "btn"}, {"data", data}}});
      }
      case InputKind::kPower:
        return monitor_->Command("system_powerdown").status();
    }
    return absl::InvalidArgumentError("no such input");
  }

 private:
  absl::Status SendEvents(std::vector<json> events) {
    const json arguments = {{"events", events}};
    return monitor_->Command("input-send-event", arguments.dump()).status();
  }

  static absl::StatusOr<UniqueFd> MakePart(const std::string& dir, const char* name) {
    const std::string path = fmt::format("{}/{}", dir, name);
    UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!fd.valid()) return base::ErrnoStatus(errno, "make " + path);
    return fd;
  }
  static absl::StatusOr<UniqueFd> OpenPart(const std::string& dir, const char* name) {
    const std::string path = fmt::format("{}/{}", dir, name);
    UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.valid()) return base::ErrnoStatus(errno, "open " + path);
    return fd;
  }

  // Memory is in a file that both sides map: it is not part of the stream.
  absl::Status KeepMemoryOut() {
    return monitor_
        ->Command("migrate-set-capabilities",
                  R"({"capabilities":[{"capability":"x-ignore-shared","state":true}]})")
        .status();
  }

  absl::StatusOr<std::string> Status() {
    ASSIGN_OR_RETURN(const std::string text, monitor_->Command("query-status"));
    const json answer = json::parse(text, nullptr, false);
    if (!answer.is_object() || !answer.contains("status") || !answer["status"].is_string())
      return absl::DataLossError("the monitor of the machine broke QMP");
    return answer["status"].get<std::string>();
  }

  pid_t pid_ = -1;
  UniqueFd port_;
  std::unique_ptr<Qmp> monitor_;
  Tail console_{kConsoleBytesMax}, words_{kWordsBytesMax};
  std::vector<int> inherited_;
};

}  // namespace

std::unique_ptr<Vmm> MakeQemu() { return std::make_unique<Qemu>(); }

}  // namespace reprise::sandboxd::microvm
