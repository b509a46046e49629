// The Firecracker driver: starts the process, tells it over its API what to run, and carries the
// guest's byte stream over its vsock. The process runs as QEMU does, as a user of its own in an
// empty network, under Firecracker's own system-call filters, in a directory of the box that is its
// user's. Templates, clones and snapshots are its snapshots: the memory file is the template's, so
// that all machines of a kind share it and each has only what it wrote.
#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/format.h"
#include "base/status_macros.h"
#include "sandboxd/microvm/firecracker_api.h"
#include "sandboxd/microvm/memory_image.h"
#include "sandboxd/microvm/vmm.h"
#include "sandboxd/microvm/vmm_process.h"
#include "sandboxd/microvm/vsock_relay.h"

namespace reprise::sandboxd::microvm {
namespace {

using base::UniqueFd;
using nlohmann::json;

constexpr char kDir[] = "vmm";  // of the box: where the process works
constexpr char kApi[] = "api.sock", kVsock[] = "vsock.sock";
constexpr char kDevices[] = "devices", kDirty[] = "dirty";
constexpr int64_t kLookMs = 20, kStartMs = 10'000, kRequestMs = 30'000, kTransferMs = 60'000;
constexpr uint64_t kDevicesBytesMax = 64 << 20;
constexpr char kKernelArguments[] =
    "console=ttyS0 quiet loglevel=4 reboot=k panic=-1 pci=off i8042.noaux i8042.nomux "
    "cryptomgr.notests random.trust_cpu=on";

std::string InDir(const char* name) { return fmt::format("{}/{}", kDir, name); }

class Firecracker final : public Vmm {
 public:
  Firecracker() : api_(InDir(kApi)), relay_(InDir(kVsock), kGuestVsockPort) {}
  ~Firecracker() override { End(); }

  absl::Status Launch(const VmConfig& config) override {
    std::error_code error;
    std::filesystem::remove_all(kDir, error);
    RETURN_IF_ERROR(base::MakeDirs(kDir, 0700));
    if (config.uid != 0 && chown(kDir, config.uid, config.uid) != 0)
      return base::ErrnoStatus(errno, "give away the directory of the machine");
    const UniqueFd dir(open(kDir, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!dir.valid()) return base::ErrnoStatus(errno, "open the directory of the machine");
    ASSIGN_OR_RETURN(Pair words, MakePair());
    ASSIGN_OR_RETURN(port_, relay_.Begin());
    uid_ = config.uid;
    // Paths of the daemon's private directories mean nothing to the user that it runs as.
    std::vector<int> inherited;
    std::vector<UniqueFd> files;
    auto file = [&](const std::string& path) -> absl::StatusOr<std::string> {
      UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
      if (!fd.valid()) return base::ErrnoStatus(errno, "open " + path);
      inherited.push_back(fd.get());
      files.push_back(std::move(fd));
      return fmt::format("/proc/self/fd/{}", files.back().get());
    };
    const auto mode = static_cast<Mode>(config.mode);
    std::string kernel, initramfs;
    if (!FromTemplate(mode)) {
      ASSIGN_OR_RETURN(kernel, file(config.kernel));
      ASSIGN_OR_RETURN(initramfs, file(config.initramfs));
    }
    // A snapshot names the image by the descriptor that it had, so that is always the same.
    const UniqueFd image(config.image.empty() ? -1
                                              : open(config.image.c_str(), O_RDONLY | O_CLOEXEC));
    if (!config.image.empty() && !image.valid())
      return base::ErrnoStatus(errno, "open " + config.image);
    if (mode == Mode::kTemplate || FromTemplate(mode)) inherited.push_back(kRamFd);
    const std::vector<std::string> arguments = {config.program, "--api-sock", kApi, "--id",
                                                "reprise"};
    const pid_t parent = getpid();
    pid_ = fork();
    if (pid_ < 0) return base::ErrnoStatus(errno, "fork the machine");
    if (pid_ == 0) {
      BecomeVmm(config, {arguments, words.theirs.get(), parent, inherited, dir.get(), image.get()});
    }
    words_.fd = std::move(words.ours);
    words.theirs.Reset();
    absl::Status started = AwaitApi();
    if (started.ok() && !FromTemplate(mode)) started = Boot(config, kernel, initramfs);
    if (started.ok()) return started;
    Attend();
    return absl::InternalError(
        fmt::format("{} did not start: {} ({})", config.program, started.message(), LastWords()));
  }

  void End() override {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    words_.Read();
    words_.fd.Reset();
    port_.Reset();
    relay_.End();
  }

  absl::Status Save(int state_fd) override {
    RETURN_IF_ERROR(Pause());
    RETURN_IF_ERROR(Create("Full", fmt::format("/proc/self/fd/{}", kRamFd)));
    ASSIGN_OR_RETURN(const std::string devices, base::ReadFile(InDir(kDevices), kDevicesBytesMax));
    return base::WriteAll(state_fd, devices, "write the devices of a template");
  }

  absl::Status Load(int state_fd) override {
    ASSIGN_OR_RETURN(const std::string devices,
                     base::ReadFile(fmt::format("/proc/self/fd/{}", state_fd), kDevicesBytesMax));
    const std::string path = InDir(kDevices);
    RETURN_IF_ERROR(base::WriteFileAtomic(path, devices));
    if (uid_ != 0 && chown(path.c_str(), uid_, uid_) != 0)
      return base::ErrnoStatus(errno, "give away " + path);
    const json body = {
        {"snapshot_path", kDevices},
        {"mem_backend",
         {{"backend_type", "File"}, {"backend_path", fmt::format("/proc/self/fd/{}", kRamFd)}}},
        {"enable_diff_snapshots", true},
        {"resume_vm", false}};
    RETURN_IF_ERROR(api_.Put("/snapshot/load", body.dump(), kTransferMs));
    relay_.Connect();
    return absl::OkStatus();
  }

  absl::Status SaveTo(const std::string& dir) override {
    const std::string memory = fmt::format("{}/{}", dir, kMemoryPart);
    const UniqueFd out(open(memory.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!out.valid()) return base::ErrnoStatus(errno, "make " + memory);
    RETURN_IF_ERROR(SaveOwnPages(pid_, kRamFd, out.get()).status());
    // It writes memory too, which is there already.
    RETURN_IF_ERROR(Create("Diff", kDirty));
    unlink(InDir(kDirty).c_str());
    ASSIGN_OR_RETURN(const std::string devices, base::ReadFile(InDir(kDevices), kDevicesBytesMax));
    // A guest's streams do not live through a snapshot, not even in the machine that goes on.
    relay_.Connect();
    return base::WriteFileAtomic(fmt::format("{}/{}", dir, kDevicesPart), devices);
  }

  absl::Status LoadFrom(const std::string& dir) override {
    const std::string devices = fmt::format("{}/{}", dir, kDevicesPart);
    const UniqueFd state(open(devices.c_str(), O_RDONLY | O_CLOEXEC));
    if (!state.valid()) return base::ErrnoStatus(errno, "open " + devices);
    const std::string memory = fmt::format("{}/{}", dir, kMemoryPart);
    const UniqueFd in(open(memory.c_str(), O_RDONLY | O_CLOEXEC));
    if (!in.valid()) return base::ErrnoStatus(errno, "open " + memory);
    RETURN_IF_ERROR(Load(state.get()));
    return LoadOwnPages(in.get(), pid_, kRamFd).status();
  }

  absl::Status Pause() override { return api_.Patch("/vm", R"({"state":"Paused"})", kRequestMs); }
  absl::Status Resume() override { return api_.Patch("/vm", R"({"state":"Resumed"})", kRequestMs); }

  UniqueFd TakePort() override { return std::move(port_); }
  pid_t pid() const override { return pid_; }
  void AddPollFds(std::vector<pollfd>* fds) const override {
    fds->push_back({words_.fd.get(), POLLIN, 0});  // poll passes over -1
    relay_.AddPollFds(fds);
  }
  void Attend() override {
    words_.Read();
    relay_.Step();
  }
  std::string LastWords() const override {
    const std::string words = LastLine(words_.text());
    return words.empty() ? "it said nothing" : words;
  }
  // The console is the process's own output.
  ConsoleData Console(uint64_t from) const override { return words_.From(from); }
  void BeginConsole(std::string text) override { words_.Append(text); }

 private:
  absl::Status AwaitApi() const {
    const int64_t deadline = base::MonotonicMicros() + kStartMs * 1000;
    while (true) {
      const absl::Status there = api_.Await(kLookMs);
      siginfo_t info{};
      // Left to be reaped by End.
      const bool ended =
          waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
          info.si_pid != 0;
      if (ended) return absl::UnavailableError("it ended");
      if (there.ok() || base::MonotonicMicros() > deadline) return there;
    }
  }

  absl::Status Boot(const VmConfig& config, const std::string& kernel,
                    const std::string& initramfs) {
    const json machine = {{"vcpu_count", config.cpus}, {"mem_size_mib", config.memory_mib}};
    RETURN_IF_ERROR(api_.Put("/machine-config", machine.dump(), kRequestMs));
    const json source = {
        {"kernel_image_path", kernel}, {"initrd_path", initramfs}, {"boot_args", kKernelArguments}};
    RETURN_IF_ERROR(api_.Put("/boot-source", source.dump(), kRequestMs));
    if (!config.image.empty()) {
      const json drive = {{"drive_id", "image"},
                          {"path_on_host", fmt::format("/proc/self/fd/{}", kImageFd)},
                          {"is_root_device", false},
                          {"is_read_only", true}};
      RETURN_IF_ERROR(api_.Put("/drives/image", drive.dump(), kRequestMs));
    }
    const json vsock = {{"guest_cid", kGuestCid}, {"uds_path", kVsock}};
    RETURN_IF_ERROR(api_.Put("/vsock", vsock.dump(), kRequestMs));
    RETURN_IF_ERROR(api_.Put("/actions", R"({"action_type":"InstanceStart"})", kRequestMs));
    relay_.Connect();
    return absl::OkStatus();
  }

  absl::Status Create(const char* type, const std::string& memory) {
    const json body = {
        {"snapshot_type", type}, {"snapshot_path", kDevices}, {"mem_file_path", memory}};
    return api_.Put("/snapshot/create", body.dump(), kTransferMs);
  }

  const FirecrackerApi api_;
  VsockRelay relay_;
  pid_t pid_ = -1;
  uint32_t uid_ = 0;
  UniqueFd port_;
  Tail words_{kConsoleBytesMax};
};

}  // namespace

std::unique_ptr<Vmm> MakeFirecracker() { return std::make_unique<Firecracker>(); }

}  // namespace reprise::sandboxd::microvm
