// Machines that wait for a sandbox: making one, and giving it to a sandbox.
#include <fmt/format.h>

#include <fstream>
#include <string>
#include <utility>

#include "base/format.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/microvm/box.h"
#include "sandboxd/microvm/machine_tier.h"

namespace reprise::sandboxd {
namespace {

using microvm::VmConfig;

constexpr int64_t kAdoptMs = 60'000;

// Memory that a process shares with nobody, and that no file holds.
uint64_t OwnMemory(uint64_t pid) {
  std::ifstream status(fmt::format("/proc/{}/status", pid));
  uint64_t kib = 0;
  for (std::string line; std::getline(status, line);) {
    if (sscanf(line.c_str(), "RssAnon: %lu kB", &kib) == 1) break;
  }
  return kib << 10;
}

}  // namespace

std::optional<std::string> MachineTier::TakeReady(const VmConfig& config) {
  if (!options_.snapshots) return std::nullopt;
  const std::string kind = microvm::TemplateStore::KeyOf(config);
  std::optional<microvm::ReadyMachine> machine =
      ready_.Take(kind, [this, config] { return MakeReady(config); });
  if (!machine) return std::nullopt;
  const std::string box = Box(machine->name);
  const microvm::Adoption adoption{config.hostname, config.disk_bytes, config.pids};
  const absl::Status adopted = microvm::AskBox(
      box, agent::Frame(static_cast<agent::FrameType>(microvm::VmRequest::kAdopt), adoption),
      kAdoptMs);
  if (adopted.ok()) return machine->name;
  base::LogWarn(fmt::format("a ready machine is of no use: {}", adopted.message()));
  if (absl::Status removed = microvm::RemoveBox(box); !removed.ok())
    base::LogWarn(std::string(removed.message()));
  return std::nullopt;
}

absl::StatusOr<microvm::ReadyMachine> MachineTier::MakeReady(VmConfig config) {
  config.uid = NewUid();
  config.hostname.clear();
  ASSIGN_OR_RETURN(const std::shared_ptr<const microvm::Template> from,
                   templates_.Get(config, nullptr));
  config.mode = static_cast<uint8_t>(microvm::Mode::kClone);
  config.ready = 1;
  microvm::ReadyMachine made;
  made.name = NewName();
  RETURN_IF_ERROR(
      StartFrom(*from, made.name, std::move(config), from->console, nullptr, &made.lifeline));
  const absl::StatusOr<microvm::VmState> state = microvm::BoxState(Box(made.name));
  made.bytes = state.ok() ? OwnMemory(state->vmm_pid) : 0;
  return made;
}

void MachineTier::StartReady() {
  ready_.Start([this] {
    auto prepare = [this]() -> absl::Status {
      RETURN_IF_ERROR(Probe());
      ASSIGN_OR_RETURN(const microvm::Accelerator accelerator, accelerator_.Get());
      ASSIGN_OR_RETURN(const VmConfig config, Configure(sandbox::SandboxSpec(), accelerator));
      ready_.Prepare(microvm::TemplateStore::KeyOf(config),
                     [this, config] { return MakeReady(config); });
      return absl::OkStatus();
    };
    if (const absl::Status prepared = prepare(); !prepared.ok())
      base::LogWarn(fmt::format("no machine is made ready: {}", prepared.message()));
  });
}

}  // namespace reprise::sandboxd
