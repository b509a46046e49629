// Snapshots of machines, and machines from them: memory and devices, so processes too. The
// supervisor writes the parts into its box; the store makes them durable and gives them a name.
#include <errno.h>
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <utility>

#include "base/failpoint.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/link/agent_link.h"
#include "sandboxd/microvm/box.h"
#include "sandboxd/microvm/machine_tier.h"

namespace reprise::sandboxd {
namespace {

using microvm::VmConfig;

constexpr int64_t kSaveMs = 300'000;  // of a machine with all its memory
constexpr uint64_t kConsoleBytesMax = microvm::kConsoleFileBytesMax;

absl::Status Differs(std::string_view field, std::string_view has, std::string_view wanted) {
  return absl::InvalidArgumentError(fmt::format(
      "spec.{}: the snapshot's machine has {}, not {}; leave it out", field, has, wanted));
}

// What a machine cannot change any more.
absl::Status CheckUnchanged(const sandbox::SandboxSpec& spec, const microvm::Setup& setup) {
  const uint64_t memory = spec.limits().memory_bytes();
  if (memory != 0 && memory != setup.memory_bytes) {
    return Differs("limits.memory_bytes", std::to_string(setup.memory_bytes),
                   std::to_string(memory));
  }
  if (!spec.user().empty() && spec.user() != setup.user)
    return Differs("user", setup.user.empty() ? "root" : setup.user, spec.user());
  if (!spec.working_dir().empty() && spec.working_dir() != setup.working_dir)
    return Differs("working_dir", setup.working_dir, spec.working_dir());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SnapshotImage> MachineTier::SnapshotSandbox(const SandboxRef& sandbox,
                                                           const std::string& name) {
  RETURN_IF_ERROR(base::CheckId(sandbox.placement, "placement"));
  const std::string box = Box(sandbox.placement);
  RETURN_IF_ERROR(microvm::BoxState(box).status());
  ASSIGN_OR_RETURN(const VmConfig machine, microvm::BoxConfig(box));
  if (machine.template_id.empty()) {
    return absl::UnimplementedError(
        fmt::format("sandbox {} is a machine that booted by itself: only those that continue a "
                    "template have snapshots",
                    sandbox.id));
  }
  microvm::SnapshotRequest request;
  request.with_template = snapshots_->HasTemplate(machine.template_id) ? 0 : 1;
  RETURN_IF_ERROR(microvm::AskBox(
      box, agent::Frame(static_cast<agent::FrameType>(microvm::VmRequest::kSnapshot), request),
      kSaveMs));
  base::FailPoint("machine.saved");
  const std::string parts = fmt::format("{}/{}", box, microvm::kSnapshotDir);
  const std::string disk = fmt::format("{}/{}", parts, microvm::kImagePart);
  if (link(machine.image.c_str(), disk.c_str()) != 0)
    return base::ErrnoStatus(errno, fmt::format("link {} to {}", machine.image, disk));
  absl::StatusOr<SnapshotImage> made = snapshots_->Add(name, parts, machine);
  base::FailPoint("machine.kept");
  return made;
}

absl::Status MachineTier::Restore(const std::string& id, const std::string& name,
                                  const sandbox::SandboxSpec& spec,
                                  const microvm::MachineSnapshot& snapshot,
                                  const microvm::Accelerator& accelerator,
                                  std::vector<sandbox::StepTime>* steps) {
  RETURN_IF_ERROR(CheckUnchanged(spec, snapshot.machine.setup));
  ASSIGN_OR_RETURN(const VmConfig here, BaseConfig(accelerator));
  if (snapshot.machine.accelerator != here.accelerator || snapshot.machine.vmm != here.vmm) {
    return absl::FailedPreconditionError(fmt::format(
        "snapshot '{}' was taken with {} and accelerator {}; here are {} and {}, which do not take "
        "it",
        snapshot.image.name(), snapshot.machine.vmm, snapshot.machine.accelerator, here.vmm,
        here.accelerator));
  }
  RETURN_IF_ERROR(snapshots_->Check(snapshot));
  ASSIGN_OR_RETURN(const std::shared_ptr<const microvm::Template> from,
                   templates_.Get(snapshot.machine.template_id,
                                  [&] { return snapshots_->LoadTemplate(snapshot.machine); }));
  VmConfig config = snapshot.machine;
  config.program = here.program;
  config.kernel = here.kernel;
  config.initramfs = here.initramfs;
  config.tsc_khz = here.tsc_khz;
  config.mode = static_cast<uint8_t>(microvm::Mode::kRestore);
  config.image = fmt::format("{}/{}", snapshot.dir, microvm::kImagePart);
  config.snapshot = snapshot.dir;
  config.uid = NewUid();
  config.hostname = HostName(id);
  if (spec.limits().disk_bytes() != 0) config.disk_bytes = spec.limits().disk_bytes();
  if (spec.limits().pids() != 0) config.pids = spec.limits().pids();
  const absl::StatusOr<std::string> console =
      base::ReadFile(fmt::format("{}/{}", snapshot.dir, microvm::kConsolePart), kConsoleBytesMax);
  RETURN_IF_ERROR(StartFrom(*from, name, std::move(config), console.value_or(""), steps));
  // Calls that ran in the other machine are not calls of this one.
  const absl::Status pruned =
      AgentRequest(RunDir(name), agent::RawFrame(agent::FrameType::kPrune, ""));
  if (pruned.ok()) return pruned;
  if (absl::Status removed = microvm::RemoveBox(Box(name)); !removed.ok()) return removed;
  return pruned;
}

}  // namespace reprise::sandboxd
