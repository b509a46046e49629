// A tier whose sandboxes are small virtual machines with reprise-agent under our own init, on any
// board. A supervisor process owns each machine and the agent owns its calls, so both live on when
// the daemon dies. Sandboxes of one kind are clones of a machine that was booted once.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "sandboxd/link/agent_tier.h"
#include "sandboxd/microvm/accelerator.h"
#include "sandboxd/microvm/disk_store.h"
#include "sandboxd/microvm/ready_pool.h"
#include "sandboxd/microvm/snapshot_store.h"
#include "sandboxd/microvm/template_store.h"
#include "sandboxd/microvm/vm_config.h"

namespace reprise::sandboxd {

enum class VmmChoice {
  kAuto,  // Firecracker where it is and KVM runs guests, else QEMU
  kQemu,
  kFirecracker,
};

struct MachineTierOptions {
  std::string state_dir;   // private to the daemon; the tier keeps its files in STATE_DIR/TIER
  std::string helper_dir;  // where reprise-microvm, reprise-guest and reprise-agent are
  std::string guest_dir;   // what scripts/guest-kernel made; "" = HELPER_DIR/guest
  std::string qemu = "/usr/bin/qemu-system-x86_64";
  std::string firecracker = "/usr/bin/firecracker";
  VmmChoice vmm = VmmChoice::kAuto;  // of the microvm tier
  // Clones that wait for a sandbox, of each of the kinds that were wanted last (and at the start of
  // a sandbox with nothing asked for), with at most so many bytes of memory of their own.
  microvm::ReadyPool::Limits ready;
  bool snapshots = true;  // false: every sandbox boots from nothing
  bool probe =
      false;  // run the probe guest before the tier is offered (else with the first sandbox)
};

class MachineTier : public AgentTier {
 public:
  // What tells the tiers of machines apart.
  struct Kind {
    sandbox::Tier tier;
    std::string name;  // in messages, and of its directory
    microvm::Board board;
  };
  // What a tier starts with, its directories made.
  struct Parts {
    MachineTierOptions options;
    Kind kind;
    std::unique_ptr<microvm::DiskStore> disks;
    std::unique_ptr<microvm::SnapshotStore> snapshots;
    std::unique_ptr<RemoteCallLoop> loop;
  };
  // Errors: the state directory cannot be used.
  static absl::StatusOr<Parts> Prepare(const MachineTierOptions& options, Kind kind);
  explicit MachineTier(Parts parts);
  ~MachineTier() override { ready_.Close(); }
  void Shutdown() override { ready_.Close(); }

  // Which VMM machines have here with this accelerator. FAILED_PRECONDITION when it is not the one
  // that was asked for.
  absl::StatusOr<microvm::Driver> ChooseDriver(const microvm::Accelerator& accelerator) const;
  // Runs the probe guest where nothing is known; what it finds shows in Describe.
  absl::Status Probe();

  sandbox::Tier tier() const override { return kind_.tier; }
  sandbox::Limits default_limits() const override;
  sandbox::TierInfo Describe() override;
  absl::StatusOr<std::string> CreateSandbox(const std::string& id, const sandbox::SandboxSpec& spec,
                                            std::vector<sandbox::StepTime>* steps) override;
  absl::Status RecoverSandbox(const SandboxRef& sandbox) override;
  absl::Status StopSandbox(const SandboxRef& sandbox) override;
  absl::Status PauseSandbox(const SandboxRef& sandbox) override;
  absl::Status ResumeSandbox(const SandboxRef& sandbox) override;
  absl::StatusOr<SnapshotImage> SnapshotSandbox(const SandboxRef& sandbox,
                                                const std::string& name) override;
  void RecoveryDone() override;
  absl::StatusOr<sandbox::Image> ImportImage(const std::string& name,
                                             const std::string& source) override;
  absl::StatusOr<std::vector<sandbox::Image>> ListImages() override;
  absl::Status RemoveImage(const std::string& name) override;

 protected:
  std::string Dir() const { return options_.state_dir + "/" + kind_.name; }
  std::string Box(const std::string& placement) const { return Dir() + "/boxes/" + placement; }
  const MachineTierOptions& options() const { return options_; }

  // The machine of a sandbox, but for its user and host name.
  virtual absl::StatusOr<microvm::VmConfig> Configure(const sandbox::SandboxSpec& spec,
                                                      const microvm::Accelerator& accelerator);
  // The same for a guest of ours without an image.
  absl::StatusOr<microvm::VmConfig> BaseConfig(const microvm::Accelerator& accelerator);
  absl::StatusOr<microvm::VmConfig> BaseConfig(const microvm::Accelerator& accelerator,
                                               microvm::Driver driver);
  // Starts machine `name`, which boots. `steps` as for CreateSandbox.
  virtual absl::Status Boot(const std::string& name, microvm::VmConfig config,
                            std::vector<sandbox::StepTime>* steps);
  // What a guest's init is told of a sandbox whose image has this configuration.
  static microvm::Setup SetupOf(const sandbox::SandboxSpec& spec, const ImageConfig& image);
  // Whether the machine runs a system of its own (VmConfig::base).
  static bool HasOwnSystem(const std::string& placement);
  // The limits that the machine has.
  static sandbox::Limits MachineLimits(const sandbox::SandboxSpec& spec);
  static std::string HostName(const std::string& sandbox_id);
  // As whom a machine runs; 0: as this process.
  static uint32_t NewUid();
  // Of the box of a machine whose system is ours.
  static std::string NewName();

  std::string RunDir(const std::string& placement) const override { return Box(placement); }
  CallOwner Owner(const std::string& placement) const override;
  absl::StatusOr<bool> Paused(const std::string& placement) override;
  absl::Status CheckCallLimits(const sandbox::Limits& call,
                               const sandbox::SandboxSpec& spec) const override;
  // Asks the supervisor, once the machine is known to live.
  absl::Status Ask(const SandboxRef& sandbox, const std::string& frame);

 private:
  std::string ScratchDir() const { return Dir() + "/scratch"; }
  std::string InitramfsPath(microvm::Driver driver) const {
    return Dir() + (driver == microvm::Driver::kQemu ? "/initramfs" : "/initramfs-vsock");
  }
  std::string AboutVmm(const microvm::Accelerator& accelerator) const;
  std::string GuestDir() const {
    return options_.guest_dir.empty() ? options_.helper_dir + "/guest" : options_.guest_dir;
  }
  absl::Status Usable() const;
  absl::Status CheckSpec(const sandbox::SandboxSpec& spec) const;
  absl::Status ProbeGuest(const microvm::Accelerator& accelerator, int64_t deadline_ms);
  // Continues a template as machine `name`; the template is made where there is none.
  absl::Status Clone(const std::string& name, microvm::VmConfig config,
                     std::vector<sandbox::StepTime>* steps);
  // A machine of this kind that waits, or none.
  std::optional<std::string> TakeReady(const microvm::VmConfig& config);
  // Makes one that waits.
  absl::StatusOr<microvm::ReadyMachine> MakeReady(microvm::VmConfig config);
  // From now on machines are made ready, first of all for a sandbox with nothing asked for.
  void StartReady();
  // Continues a snapshot as machine `name` of sandbox `id`.
  absl::Status Restore(const std::string& id, const std::string& name,
                       const sandbox::SandboxSpec& spec, const microvm::MachineSnapshot& snapshot,
                       const microvm::Accelerator& accelerator,
                       std::vector<sandbox::StepTime>* steps);
  // `config` as a machine that begins with `from`, in a new box with a link to its disk.
  absl::Status StartFrom(const microvm::Template& from, const std::string& name,
                         microvm::VmConfig config, const std::string& console,
                         std::vector<sandbox::StepTime>* steps, base::UniqueFd* lifeline = nullptr);
  // Machines of this daemon's state that the journal does not know, and what was being made.
  void RemoveOthers(const std::set<std::string>& known);

  const MachineTierOptions options_;
  const Kind kind_;
  const std::string program_;
  const std::unique_ptr<microvm::DiskStore> disks_;
  const std::unique_ptr<microvm::SnapshotStore> snapshots_;
  microvm::TemplateStore templates_;
  microvm::AcceleratorProbe accelerator_;
  microvm::ReadyPool ready_;

  // Held for reading while a machine is made that is not known yet, for writing while others are
  // removed.
  absl::Mutex making_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);
  absl::Mutex mutex_;
  std::set<microvm::Driver> initramfs_made_ ABSL_GUARDED_BY(mutex_);
  absl::Status probed_ ABSL_GUARDED_BY(mutex_);  // not OK: no guest ran here
};

}  // namespace reprise::sandboxd
