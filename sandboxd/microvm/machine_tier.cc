#include "sandboxd/microvm/machine_tier.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cctype>
#include <filesystem>
#include <set>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/limits.h"
#include "sandboxd/link/agent_tier.h"
#include "sandboxd/microvm/accelerator.h"
#include "sandboxd/microvm/box.h"
#include "sandboxd/microvm/disk_store.h"
#include "sandboxd/microvm/initramfs.h"
#include "sandboxd/microvm/template_store.h"

namespace reprise::sandboxd {
namespace {

using microvm::Mode;
using microvm::VmConfig;

constexpr char kSupervisorName[] = "reprise-microvm";
constexpr char kNamePrefix[] = "vm-", kOwnSystemPrefix[] = "own-";
constexpr size_t kNameBytes = 12;
constexpr uint64_t kMiB = 1 << 20;
// Beside the sandbox's own memory: the kernel with its tables, the initramfs, our processes.
constexpr uint64_t kGuestOverheadMib = 112, kGuestOverheadShare = 32;
constexpr uint64_t kMemoryMibMin = 32;
constexpr uint64_t kProbeMemoryMib = 128;
constexpr uint64_t kBootDeadlineMs = 180'000, kCloneDeadlineMs = 60'000;
// A user for each machine that nothing else on the host uses.
constexpr uint32_t kUidBase = 0x78000000, kUids = 1 << 20;

sandbox::Limits DefaultLimits() {
  sandbox::Limits limits;
  limits.set_timeout_ms(10 * 60 * 1000);
  limits.set_memory_bytes(1ull << 30);
  limits.set_pids(1024);
  limits.set_open_files(4096);
  limits.set_disk_bytes(512ull << 20);
  limits.set_output_bytes_kept(kOutputKeptDefault);
  limits.set_output_bytes_max(kOutputBytesDefault);
  return limits;
}

// Snapshots that the last daemon did not live to take.
void RemoveHalfMade(const std::string& box) {
  std::vector<std::filesystem::path> parts;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(box, error)) {
    if (entry.path().filename().string().starts_with(microvm::kSnapshotDir))
      parts.push_back(entry.path());
  }
  for (const auto& part : parts) std::filesystem::remove_all(part, error);
}

}  // namespace

// Host names are short and simple; what of the id is neither becomes '-'.
std::string MachineTier::HostName(const std::string& sandbox_id) {
  std::string name = sandbox_id.substr(0, 63);
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '-';
  }
  return name;
}

uint32_t MachineTier::NewUid() {
  if (geteuid() != 0) return 0;
  const std::string hex = base::RandomHex(4);
  return kUidBase + static_cast<uint32_t>(std::stoul(hex, nullptr, 16)) % kUids;
}

std::string MachineTier::NewName() { return kNamePrefix + base::RandomHex(kNameBytes); }

sandbox::Limits MachineTier::MachineLimits(const sandbox::SandboxSpec& spec) {
  sandbox::Limits limits = DefaultLimits();
  if (spec.limits().memory_bytes() != 0) limits.set_memory_bytes(spec.limits().memory_bytes());
  if (spec.limits().pids() != 0) limits.set_pids(spec.limits().pids());
  limits.set_disk_bytes(spec.limits().disk_bytes() != 0 ? spec.limits().disk_bytes()
                                                        : limits.memory_bytes() / 2);
  return limits;
}

absl::Status MachineTier::CheckSpec(const sandbox::SandboxSpec& spec) const {
  if (!spec.binds().empty()) {
    return absl::UnimplementedError(
        fmt::format("the {} tier shares no host directory: put the files into an image, or write "
                    "them into the sandbox",
                    kind_.name));
  }
  if (!spec.runtime().empty()) {
    return absl::InvalidArgumentError(
        fmt::format("spec.runtime: the {} tier has none; leave it empty", kind_.name));
  }
  if (MachineLimits(spec).memory_bytes() < kMemoryMibMin * kMiB) {
    return absl::InvalidArgumentError(
        fmt::format("limits.memory_bytes of {} is too little for a machine; at least {}",
                    spec.limits().memory_bytes(), kMemoryMibMin * kMiB));
  }
  return absl::OkStatus();
}

absl::StatusOr<MachineTier::Parts> MachineTier::Prepare(const MachineTierOptions& options,
                                                        Kind kind) {
  const std::string dir = options.state_dir + "/" + kind.name;
  for (const char* const part : {"boxes", "scratch"})
    RETURN_IF_ERROR(base::MakeDirs(fmt::format("{}/{}", dir, part), 0700));
  ASSIGN_OR_RETURN(auto disks, microvm::DiskStore::Open(dir + "/images"));
  ASSIGN_OR_RETURN(auto loop, RemoteCallLoop::Make());
  ASSIGN_OR_RETURN(auto snapshots, microvm::SnapshotStore::Open(dir + "/snapshots"));
  return Parts{options, std::move(kind), std::move(disks), std::move(snapshots), std::move(loop)};
}

MachineTier::MachineTier(Parts parts)
    : AgentTier("machine", std::move(parts.loop)),
      options_(std::move(parts.options)),
      kind_(std::move(parts.kind)),
      program_(options_.helper_dir + "/" + kSupervisorName),
      disks_(std::move(parts.disks)),
      snapshots_(std::move(parts.snapshots)),
      templates_(ScratchDir(), program_),
      accelerator_(Dir() + "/accelerator", options_.qemu,
                   [this](const microvm::Accelerator& accelerator, int64_t deadline_ms) {
                     return ProbeGuest(accelerator, deadline_ms);
                   }),
      ready_(options_.ready, [this](microvm::ReadyMachine machine) {
        if (absl::Status removed = microvm::RemoveBox(Box(machine.name)); !removed.ok())
          base::LogWarn(std::string(removed.message()));
      }) {}

sandbox::Limits MachineTier::default_limits() const { return DefaultLimits(); }

sandbox::TierInfo MachineTier::Describe() {
  sandbox::TierInfo info;
  info.set_tier(tier());
  *info.mutable_default_limits() = DefaultLimits();
  for (const char* const verb : {"create", "execute", "stdin", "pty", "signal", "stop", "files",
                                 "watch", "pause", "resume", "images"}) {
    (*info.mutable_verbs())[verb] = "yes";
  }
  for (const char* const verb : {"snapshot", "fork"})
    (*info.mutable_verbs())[verb] =
        options_.snapshots ? "yes" : "its machines continue no template";
  absl::Status usable = Usable();
  {
    absl::MutexLock lock(&mutex_);
    if (usable.ok()) usable = probed_;
  }
  info.set_usable(usable.ok());
  if (!usable.ok()) {
    info.set_reason(std::string(usable.message()));
    return info;
  }
  const std::optional<microvm::Accelerator> known = accelerator_.Known();
  info.set_reason(known ? AboutVmm(*known) : "the first sandbox finds the accelerator");
  return info;
}

absl::Status MachineTier::Probe() {
  absl::Status status = Usable();
  if (!status.ok()) return status;
  const absl::StatusOr<microvm::Accelerator> found = accelerator_.Get();
  status = found.ok() ? ChooseDriver(*found).status() : found.status();
  absl::MutexLock lock(&mutex_);
  probed_ = status;
  return status;
}

absl::StatusOr<std::string> MachineTier::CreateSandbox(const std::string& id,
                                                       const sandbox::SandboxSpec& spec,
                                                       std::vector<sandbox::StepTime>* steps) {
  RETURN_IF_ERROR(CheckSpec(spec));
  RETURN_IF_ERROR(Usable());
  base::Stopwatch watch;
  auto step = [&](const char* name) {
    if (steps != nullptr) {
      sandbox::StepTime& taken = steps->emplace_back();
      taken.set_step(name);
      taken.set_duration_us(watch.ElapsedMicros());
    }
    watch.Restart();
  };
  RETURN_IF_ERROR(Probe());
  ASSIGN_OR_RETURN(const microvm::Accelerator accelerator, accelerator_.Get());
  step("accelerator");
  absl::ReaderMutexLock making(&making_mutex_);
  ASSIGN_OR_RETURN(const std::optional<microvm::MachineSnapshot> snapshot,
                   snapshots_->Find(spec.image()));
  if (snapshot) {
    const std::string name = NewName();
    RETURN_IF_ERROR(Restore(id, name, spec, *snapshot, accelerator, steps));
    Know(name);
    return name;
  }
  ASSIGN_OR_RETURN(VmConfig config, Configure(spec, accelerator));
  step("image");
  config.uid = NewUid();
  config.hostname = HostName(id);
  const bool own_system = !config.base.empty();
  if (std::optional<std::string> ready = own_system ? std::nullopt : TakeReady(config); ready) {
    step("ready");
    Know(*ready);
    return *std::move(ready);
  }
  const std::string name = own_system ? kOwnSystemPrefix + base::RandomHex(kNameBytes) : NewName();
  RETURN_IF_ERROR(options_.snapshots && !own_system ? Clone(name, std::move(config), steps)
                                                    : Boot(name, std::move(config), steps));
  Know(name);
  return name;
}

absl::Status MachineTier::Boot(const std::string& name, VmConfig config,
                               std::vector<sandbox::StepTime>* steps) {
  config.mode = static_cast<uint8_t>(Mode::kBoot);
  config.deadline_ms = kBootDeadlineMs;
  return microvm::StartBox(Box(name), program_, config, {}, steps);
}

absl::Status MachineTier::Clone(const std::string& name, VmConfig config,
                                std::vector<sandbox::StepTime>* steps) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const microvm::Template> from,
                   templates_.Get(config, steps));
  config.mode = static_cast<uint8_t>(Mode::kClone);
  return StartFrom(*from, name, std::move(config), from->console, steps);
}

absl::Status MachineTier::StartFrom(const microvm::Template& from, const std::string& name,
                                    VmConfig config, const std::string& console,
                                    std::vector<sandbox::StepTime>* steps,
                                    base::UniqueFd* lifeline) {
  // A position of its own in the file that all clones read.
  const std::string path = fmt::format("/proc/self/fd/{}", from.state.get());
  const base::UniqueFd state(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!state.valid() && config.snapshot.empty())
    return base::ErrnoStatus(errno, "open the state of a template");
  config.template_id = from.id;
  config.deadline_ms = kCloneDeadlineMs;
  const std::string box = Box(name);
  auto start = [&]() -> absl::Status {
    RETURN_IF_ERROR(base::MakeDirs(box, 0700));
    RETURN_IF_ERROR(
        base::WriteFileAtomic(fmt::format("{}/{}", box, microvm::kConsoleFile), console));
    // The machine may be started again when the store has the disk no more.
    const std::string disk = fmt::format("{}/{}", box, microvm::kImagePart);
    if (link(config.image.c_str(), disk.c_str()) != 0)
      return base::ErrnoStatus(errno, fmt::format("link {} to {}", config.image, disk));
    config.image = disk;
    if (lifeline != nullptr) {
      ASSIGN_OR_RETURN(
          *lifeline, microvm::StartReadyBox(box, program_, config, {from.ram.get(), state.get()}));
      return absl::OkStatus();
    }
    return microvm::StartBox(box, program_, config, {from.ram.get(), state.get()}, steps);
  };
  const absl::Status started = start();
  if (started.ok()) return started;
  if (absl::Status removed = microvm::RemoveBox(box); !removed.ok()) return removed;
  return started;
}

absl::Status MachineTier::RecoverSandbox(const SandboxRef& sandbox) {
  RETURN_IF_ERROR(base::CheckId(sandbox.placement, "placement"));
  const absl::StatusOr<microvm::VmState> state = microvm::BoxState(Box(sandbox.placement));
  absl::Status found = state.status();
  // A paused agent does not answer, and some guests have none.
  if (state.ok() && state->paused == 0 && state->agent != 0) {
    const absl::Status answer = Ping(sandbox.placement);
    if (!answer.ok()) found = absl::UnavailableError(std::string(answer.message()));
  }
  if (found.ok() || absl::IsUnavailable(found)) Know(sandbox.placement);
  RemoveHalfMade(Box(sandbox.placement));
  return found;
}

absl::Status MachineTier::StopSandbox(const SandboxRef& sandbox) {
  RETURN_IF_ERROR(base::CheckId(sandbox.placement, "placement"));
  RETURN_IF_ERROR(microvm::RemoveBox(Box(sandbox.placement)));
  Forget(sandbox.placement);
  return absl::OkStatus();
}

absl::Status MachineTier::PauseSandbox(const SandboxRef& sandbox) {
  return Ask(sandbox, microvm::VmFrame(microvm::VmRequest::kPause));
}

absl::Status MachineTier::ResumeSandbox(const SandboxRef& sandbox) {
  return Ask(sandbox, microvm::VmFrame(microvm::VmRequest::kResume));
}

void MachineTier::RecoveryDone() {
  PruneCalls();
  RemoveOthers(Known());
  if (options_.snapshots) StartReady();
}

absl::StatusOr<sandbox::Image> MachineTier::ImportImage(const std::string& name,
                                                        const std::string& source) {
  ASSIGN_OR_RETURN(sandbox::Image image, disks_->Import(name, source));
  // The new image of this name is not a snapshot any more.
  if (absl::Status old = snapshots_->Remove(name); !old.ok() && !absl::IsNotFound(old)) return old;
  return image;
}
absl::StatusOr<std::vector<sandbox::Image>> MachineTier::ListImages() {
  ASSIGN_OR_RETURN(std::vector<sandbox::Image> images, snapshots_->List());
  ASSIGN_OR_RETURN(std::vector<sandbox::Image> layered, disks_->List());
  images.insert(images.end(), layered.begin(), layered.end());
  return images;
}
absl::Status MachineTier::RemoveImage(const std::string& name) {
  const absl::Status snapshot = snapshots_->Remove(name), layered = disks_->Remove(name);
  return absl::IsNotFound(layered) ? snapshot : layered;
}

CallOwner MachineTier::Owner(const std::string& placement) const {
  return {Box(placement), {}, [box = Box(placement)] { return microvm::BoxEnd(box); }};
}

absl::StatusOr<bool> MachineTier::Paused(const std::string& placement) {
  ASSIGN_OR_RETURN(const microvm::VmState state, microvm::BoxState(Box(placement)));
  return state.paused != 0;
}

// Memory, processes and disk are those of the machine; a call cannot have less of them for
// itself.
absl::Status MachineTier::CheckCallLimits(const sandbox::Limits& call,
                                          const sandbox::SandboxSpec& spec) const {
  const sandbox::Limits machine = MachineLimits(spec);
  auto check = [this](std::string_view what, uint64_t asked, uint64_t has, uint64_t default_value) {
    return CheckSandboxLimit(kind_.name, what, asked, has, default_value);
  };
  RETURN_IF_ERROR(check("memory_bytes", call.memory_bytes(), machine.memory_bytes(), 0));
  RETURN_IF_ERROR(check("pids", call.pids(), machine.pids(), 0));
  return check("disk_bytes", call.disk_bytes(), machine.disk_bytes(), DefaultLimits().disk_bytes());
}

absl::Status MachineTier::Ask(const SandboxRef& sandbox, const std::string& frame) {
  RETURN_IF_ERROR(microvm::BoxState(Box(sandbox.placement)).status());
  return microvm::AskBox(Box(sandbox.placement), frame);
}

absl::Status MachineTier::Usable() const {
  auto missing = [](const std::string& path, const char* remedy) {
    return absl::UnavailableError(fmt::format("{} is missing: {}", path, remedy));
  };
  if (access(options_.qemu.c_str(), X_OK) != 0)
    return missing(options_.qemu, "'apt-get install qemu-system-x86'");
  if (access("/usr/bin/mkfs.erofs", X_OK) != 0)
    return missing("/usr/bin/mkfs.erofs", "'apt-get install erofs-utils'");
  if (access(program_.c_str(), X_OK) != 0)
    return missing(program_, "build it, or name its directory");
  const absl::Status guest =
      microvm::FindGuestFiles(GuestDir(), options_.helper_dir, kind_.board).status();
  return guest.ok() ? guest : absl::UnavailableError(std::string(guest.message()));
}

// The parts of a configuration that every machine has; the initramfs is made once a daemon.
absl::StatusOr<VmConfig> MachineTier::BaseConfig(const microvm::Accelerator& accelerator,
                                                 microvm::Driver driver) {
  const bool vsock = driver == microvm::Driver::kFirecracker;
  ASSIGN_OR_RETURN(const microvm::GuestFiles guest,
                   microvm::FindGuestFiles(GuestDir(), options_.helper_dir, kind_.board, vsock));
  absl::MutexLock lock(&mutex_);
  if (!initramfs_made_.contains(driver)) {
    RETURN_IF_ERROR(microvm::WriteInitramfs(guest, kind_.board, vsock, InitramfsPath(driver)));
    initramfs_made_.insert(driver);
  }
  VmConfig config;
  config.driver = static_cast<uint8_t>(driver);
  config.board = static_cast<uint8_t>(kind_.board);
  config.program = vsock ? options_.firecracker : options_.qemu;
  config.vmm = microvm::VmmKey(config.program);
  config.accelerator = accelerator.name;
  config.tsc_khz = accelerator.tsc_khz;
  config.kernel = guest.kernel;
  config.initramfs = InitramfsPath(driver);
  config.deadline_ms = kBootDeadlineMs;
  return config;
}

absl::StatusOr<VmConfig> MachineTier::BaseConfig(const microvm::Accelerator& accelerator) {
  ASSIGN_OR_RETURN(const microvm::Driver driver, ChooseDriver(accelerator));
  return BaseConfig(accelerator, driver);
}

absl::StatusOr<microvm::Driver> MachineTier::ChooseDriver(
    const microvm::Accelerator& accelerator) const {
  if (kind_.board != microvm::Board::kMicrovm || options_.vmm == VmmChoice::kQemu)
    return microvm::Driver::kQemu;
  const bool there = access(options_.firecracker.c_str(), X_OK) == 0,
             kvm = accelerator.name == "kvm";
  if (there && kvm) return microvm::Driver::kFirecracker;
  if (options_.vmm == VmmChoice::kAuto) return microvm::Driver::kQemu;
  return absl::FailedPreconditionError(
      there
          ? fmt::format("Firecracker needs KVM, and here is {} ({}): choose --vmm qemu",
                        accelerator.name, accelerator.reason)
          : fmt::format("there is no Firecracker at {}: install it, name it with --firecracker, or "
                        "choose --vmm qemu",
                        options_.firecracker));
}

std::string MachineTier::AboutVmm(const microvm::Accelerator& accelerator) const {
  const absl::StatusOr<microvm::Driver> driver = ChooseDriver(accelerator);
  const bool firecracker = driver.ok() && *driver == microvm::Driver::kFirecracker;
  std::string about = fmt::format("{}, accelerator {} ({})", firecracker ? "Firecracker" : "QEMU",
                                  accelerator.name, accelerator.reason);
  if (kind_.board != microvm::Board::kMicrovm || firecracker || options_.vmm == VmmChoice::kQemu)
    return about;
  return about + (access(options_.firecracker.c_str(), X_OK) == 0
                      ? "; Firecracker needs KVM"
                      : fmt::format("; no Firecracker at {}", options_.firecracker));
}

bool MachineTier::HasOwnSystem(const std::string& placement) {
  return placement.starts_with(kOwnSystemPrefix);
}

microvm::Setup MachineTier::SetupOf(const sandbox::SandboxSpec& spec, const ImageConfig& image) {
  microvm::Setup setup;
  setup.user = spec.user().empty() ? image.user : spec.user();
  setup.working_dir = spec.working_dir().empty() ? kWorkingDirDefault : spec.working_dir();
  setup.env = image.env;
  for (const std::string& variable : setup.env) {
    if (variable.starts_with("HOME=")) setup.home = variable.substr(5);
  }
  setup.memory_bytes = MachineLimits(spec).memory_bytes();
  return setup;
}

absl::StatusOr<VmConfig> MachineTier::Configure(const sandbox::SandboxSpec& spec,
                                                const microvm::Accelerator& accelerator) {
  ASSIGN_OR_RETURN(const microvm::Disk disk, disks_->Resolve(spec.image()));
  ASSIGN_OR_RETURN(VmConfig config, BaseConfig(accelerator));
  const sandbox::Limits limits = MachineLimits(spec);
  const uint64_t memory_mib = (limits.memory_bytes() + kMiB - 1) / kMiB;
  config.image = disk.path;
  config.memory_mib = memory_mib + kGuestOverheadMib + memory_mib / kGuestOverheadShare;
  config.setup = SetupOf(spec, disk.config);
  config.disk_bytes = limits.disk_bytes();
  config.pids = limits.pids();
  return config;
}

absl::Status MachineTier::ProbeGuest(const microvm::Accelerator& accelerator, int64_t deadline_ms) {
  ASSIGN_OR_RETURN(VmConfig config, BaseConfig(accelerator, microvm::Driver::kQemu));
  config.mode = static_cast<uint8_t>(Mode::kProbe);
  config.memory_mib = kProbeMemoryMib;
  config.deadline_ms = static_cast<uint64_t>(deadline_ms);
  config.uid = NewUid();
  const std::string box = fmt::format("{}/probe-{}", ScratchDir(), base::RandomHex(8));
  const absl::Status ran = microvm::StartBox(box, program_, config, {}, nullptr);
  const absl::Status removed = microvm::RemoveBox(box);
  return ran.ok() ? removed : ran;
}

void MachineTier::RemoveOthers(const std::set<std::string>& known) {
  absl::MutexLock making(&making_mutex_);
  const std::set<std::string> ready = ready_.Names();
  std::vector<std::string> boxes;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(Dir() + "/boxes", error)) {
    const std::string name = entry.path().filename();
    if (!known.contains(name) && !ready.contains(name)) boxes.push_back(entry.path());
  }
  for (const auto& entry : std::filesystem::directory_iterator(ScratchDir(), error))
    boxes.push_back(entry.path());
  for (const std::string& box : boxes) {
    base::LogInfo(fmt::format("removing machine {}: no sandbox of the journal has it", box));
    if (absl::Status status = microvm::RemoveBox(box); !status.ok())
      base::LogWarn(std::string(status.message()));
  }
}

}  // namespace reprise::sandboxd
