#include "sandboxd/tiers.h"

#include <utility>

#include "base/status_macros.h"
#include "sandboxd/container/container_tier.h"
#include "sandboxd/fullvm/fullvm_tier.h"
#include "sandboxd/function/function_tier.h"
#include "sandboxd/microvm/microvm_tier.h"
#include "sandboxd/network/gates.h"

namespace reprise::sandboxd {

absl::StatusOr<std::vector<std::unique_ptr<Substrate>>> MakeTiers(const DaemonOptions& options) {
  std::vector<std::unique_ptr<Substrate>> tiers;
  // First: its zygote is forked while this process has few threads.
  FunctionTierOptions function;
  function.state_dir = options.state_dir + "/function";
  function.helper_dir = options.helper_dir;
  function.pool = options.function_pool;
  function.max = options.function_max;
  ASSIGN_OR_RETURN(const std::string resolver, network::ResolverAddress(options.resolver));
  function.resolver = resolver;
  ASSIGN_OR_RETURN(std::unique_ptr<Substrate> function_tier, MakeFunctionTier(function));
  tiers.push_back(std::move(function_tier));
  if (!options.containerd_address.empty()) {
    ContainerTierOptions container;
    container.state_dir = options.state_dir;
    container.helper_dir = options.helper_dir;
    container.resolver = resolver;
    container.containerd_address = options.containerd_address;
    container.chunk_images = options.chunk_images;
    container.cold = options.image_cold;
    container.disk_bytes_max = options.image_disk_bytes;
    ASSIGN_OR_RETURN(std::unique_ptr<Substrate> container_tier, MakeContainerTier(container));
    tiers.push_back(std::move(container_tier));
  }
  if (!options.qemu.empty()) {
    FullvmTierOptions machine;
    machine.state_dir = options.state_dir;
    machine.helper_dir = options.helper_dir;
    machine.guest_dir = options.guest_dir;
    machine.qemu = options.qemu;
    machine.firecracker = options.firecracker;
    machine.vmm = options.vmm == "qemu"          ? VmmChoice::kQemu
                  : options.vmm == "firecracker" ? VmmChoice::kFirecracker
                                                 : VmmChoice::kAuto;
    machine.probe = options.probe_machines;
    machine.ready = {options.machine_pool, options.machine_pool_bytes};
    ASSIGN_OR_RETURN(std::unique_ptr<Substrate> microvm_tier, MakeMicrovmTier(machine));
    tiers.push_back(std::move(microvm_tier));
    ASSIGN_OR_RETURN(std::unique_ptr<Substrate> vm_tier, MakeFullvmTier(machine));
    tiers.push_back(std::move(vm_tier));
  }
  return tiers;
}

}  // namespace reprise::sandboxd
