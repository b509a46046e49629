#include "sandboxd/fullvm/fullvm_tier.h"

#include <errno.h>
#include <fmt/format.h>
#include <string.h>
#include <unistd.h>

#include <utility>

#include "base/fd.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/fullvm/disk_images.h"
#include "sandboxd/fullvm/input.h"
#include "sandboxd/fullvm/qcow2.h"
#include "sandboxd/fullvm/seed.h"
#include "sandboxd/image/disk_source.h"
#include "sandboxd/microvm/box.h"

namespace reprise::sandboxd {
namespace {

using microvm::VmConfig;

constexpr char kTierName[] = "vm";
constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kOwnDiskBytes = 8ull << 30;  // that a system of its own may write, unless asked
constexpr uint64_t kScreenshotBytesMax = 32 << 20;
constexpr size_t kTypedBytesMax = 4096;
constexpr size_t kInstanceIdBytes = 16;

// Where a PNG file has its size; the first bytes of each.
constexpr unsigned char kPngMagic[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
constexpr size_t kPngWidthAt = 16, kPngHeightAt = 20, kPngHeadBytes = 24;

uint32_t Big32(const std::string& data, size_t at) {
  uint32_t value = 0;
  memcpy(&value, data.data() + at, sizeof(value));
  return be32toh(value);
}

class FullvmTier final : public MachineTier {
 public:
  FullvmTier(Parts parts, std::unique_ptr<DiskImages> systems, uint64_t stop_grace_ms)
      : MachineTier(std::move(parts)),
        systems_(std::move(systems)),
        stop_grace_ms_(stop_grace_ms) {}

  sandbox::TierInfo Describe() override {
    sandbox::TierInfo info = MachineTier::Describe();
    for (const char* const verb : {"console", "screenshot", "input"})
      (*info.mutable_verbs())[verb] = "yes";
    return info;
  }

  absl::StatusOr<sandbox::ConsoleResponse> Console(
      const SandboxRef& sandbox, const sandbox::ConsoleRequest& request) override {
    if (request.typed().size() > kTypedBytesMax) {
      return absl::InvalidArgumentError(
          fmt::format("typed: more than {} bytes; send them in parts", kTypedBytesMax));
    }
    RETURN_IF_ERROR(microvm::BoxState(Box(sandbox.placement)).status());
    ASSIGN_OR_RETURN(
        microvm::ConsoleData data,
        microvm::BoxConsole(Box(sandbox.placement), {request.offset(), request.typed()}));
    sandbox::ConsoleResponse response;
    response.set_offset(data.begin);
    response.set_end(data.end);
    response.set_data(std::move(data.data));
    return response;
  }

  absl::StatusOr<sandbox::ScreenshotResponse> Screenshot(const SandboxRef& sandbox) override {
    const std::string file = "screenshot-" + base::RandomHex(8);
    const std::string path = fmt::format("{}/{}", Box(sandbox.placement), file);
    const absl::Status taken =
        Ask(sandbox, agent::Frame(static_cast<agent::FrameType>(microvm::VmRequest::kScreenshot),
                                  microvm::ScreenshotRequest{file}));
    absl::StatusOr<std::string> png =
        taken.ok() ? base::ReadFile(path, kScreenshotBytesMax) : absl::StatusOr<std::string>(taken);
    unlink(path.c_str());
    RETURN_IF_ERROR(png.status());
    if (png->size() < kPngHeadBytes || memcmp(png->data(), kPngMagic, sizeof(kPngMagic)) != 0)
      return absl::DataLossError("the machine made a screenshot that is no PNG");
    sandbox::ScreenshotResponse response;
    response.set_width(Big32(*png, kPngWidthAt));
    response.set_height(Big32(*png, kPngHeightAt));
    response.set_png(*std::move(png));
    return response;
  }

  absl::Status SendInput(const SandboxRef& sandbox,
                         const sandbox::SendInputRequest& request) override {
    ASSIGN_OR_RETURN(const std::vector<microvm::Input> inputs, ToInputs(request));
    for (const microvm::Input& input : inputs) {
      RETURN_IF_ERROR(Ask(
          sandbox, agent::Frame(static_cast<agent::FrameType>(microvm::VmRequest::kInput), input)));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<sandbox::Image> ImportImage(const std::string& name,
                                             const std::string& source) override {
    if (IsDiskFile(source)) return systems_->Import(name, source);
    ASSIGN_OR_RETURN(sandbox::Image image, MachineTier::ImportImage(name, source));
    // The new image of this name is not a disk any more.
    if (absl::Status old = systems_->Remove(name); !old.ok() && !absl::IsNotFound(old)) return old;
    return image;
  }
  // A disk hides an image of the same name.
  absl::StatusOr<std::vector<sandbox::Image>> ListImages() override {
    ASSIGN_OR_RETURN(std::vector<sandbox::Image> images, systems_->List());
    ASSIGN_OR_RETURN(std::vector<sandbox::Image> layered, MachineTier::ListImages());
    images.insert(images.end(), layered.begin(), layered.end());
    return images;
  }
  absl::Status RemoveImage(const std::string& name) override {
    const absl::Status disk = systems_->Remove(name), layered = MachineTier::RemoveImage(name);
    return absl::IsNotFound(layered) ? disk : layered;
  }

 private:
  absl::StatusOr<VmConfig> Configure(const sandbox::SandboxSpec& spec,
                                     const microvm::Accelerator& accelerator) override {
    if (spec.image().empty()) return MachineTier::Configure(spec, accelerator);
    ASSIGN_OR_RETURN(const std::optional<DiskImage> system, systems_->Find(spec.image()));
    if (!system) return MachineTier::Configure(spec, accelerator);
    ASSIGN_OR_RETURN(VmConfig config, BaseConfig(accelerator));
    config.kernel.clear();
    config.initramfs.clear();
    config.base = system->path;
    config.base_format = system->format;
    config.base_bytes = system->virtual_bytes;
    config.stop_grace_ms = stop_grace_ms_;
    config.memory_mib = (MachineLimits(spec).memory_bytes() + kMiB - 1) / kMiB;
    config.disk_bytes =
        spec.limits().disk_bytes() != 0 ? spec.limits().disk_bytes() : kOwnDiskBytes;
    config.setup = SetupOf(spec, {});
    return config;
  }

  // A system of its own gets a disk to write to and a seed beside its base.
  absl::Status Boot(const std::string& name, VmConfig config,
                    std::vector<sandbox::StepTime>* steps) override {
    if (config.base.empty()) return MachineTier::Boot(name, std::move(config), steps);
    const std::string box = Box(name);
    config.disk = box + "/disk.qcow2";
    config.seed = box + "/seed.iso";
    auto boot = [&]() -> absl::Status {
      RETURN_IF_ERROR(base::MakeDirs(box, 0700));
      RETURN_IF_ERROR(MakeEmptyQcow2(config.disk, config.base_bytes));
      RETURN_IF_ERROR(WriteSeed(config.seed, {base::RandomHex(kInstanceIdBytes), config.hostname,
                                              options().helper_dir + "/reprise-guest",
                                              options().helper_dir + "/reprise-agent"}));
      return MachineTier::Boot(name, config, steps);
    };
    const absl::Status booted = boot();
    if (booted.ok()) return booted;
    if (absl::Status removed = microvm::RemoveBox(box); !removed.ok()) return removed;
    return booted;
  }

  absl::Status NeedsAgent(const std::string& placement) override {
    if (!HasOwnSystem(placement)) return absl::OkStatus();
    ASSIGN_OR_RETURN(const microvm::VmState state, microvm::BoxState(Box(placement)));
    if (state.agent != 0) return absl::OkStatus();
    return absl::UnimplementedError(
        "no reprise-agent has answered in this guest: until one does it has console, screenshot, "
        "input, pause, resume and stop only");
  }

  const std::unique_ptr<DiskImages> systems_;
  const uint64_t stop_grace_ms_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Substrate>> MakeFullvmTier(const FullvmTierOptions& options) {
  ASSIGN_OR_RETURN(
      MachineTier::Parts parts,
      MachineTier::Prepare(options, {sandbox::TIER_VM, kTierName, microvm::Board::kQ35}));
  ASSIGN_OR_RETURN(auto systems,
                   DiskImages::Open(fmt::format("{}/{}/disks", options.state_dir, kTierName)));
  auto tier =
      std::make_unique<FullvmTier>(std::move(parts), std::move(systems), options.stop_grace_ms);
  if (options.probe) (void)tier->Probe();
  return tier;
}

}  // namespace reprise::sandboxd
