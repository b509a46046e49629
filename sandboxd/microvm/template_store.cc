#include "sandboxd/microvm/template_store.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "base/format.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/microvm/box.h"

namespace reprise::sandboxd::microvm {
namespace {

constexpr size_t kTemplatesMax = 8;  // each holds what a booted guest touched, about 100 MiB

absl::StatusOr<base::UniqueFd> MemoryFile(const char* name) {
  base::UniqueFd fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return base::ErrnoStatus(errno, "make a memory file");
  return fd;
}

// No machine that maps it, and nobody else, can change it any more.
absl::Status Seal(const base::UniqueFd& fd) {
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return base::ErrnoStatus(errno, "seal a template");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Template>> TemplateStore::Get(
    const VmConfig& config, std::vector<sandbox::StepTime>* steps) {
  VmConfig kind = config;
  kind.mode = static_cast<uint8_t>(Mode::kTemplate);
  kind.hostname.clear();
  kind.disk_bytes = kind.pids = 0;
  agent::Encoder encoder;
  VmConfig named = kind;
  named.uid = 0;
  named.Fields(encoder);
  const std::string key = encoder.Take();
  std::shared_ptr<Slot> slot;
  {
    absl::MutexLock lock(&mutex_);
    auto found = std::find_if(slots_.begin(), slots_.end(),
                              [&](const auto& other) { return other->key == key; });
    if (found != slots_.end()) {
      slots_.splice(slots_.begin(), slots_, found);
    } else {
      slots_.push_front(std::make_shared<Slot>());
      slots_.front()->key = key;
      if (slots_.size() > kTemplatesMax) slots_.pop_back();
    }
    slot = slots_.front();
  }
  absl::MutexLock lock(&slot->mutex);
  if (slot->made == nullptr) {
    ASSIGN_OR_RETURN(slot->made, Make(kind, steps));
  }
  return slot->made;
}

absl::StatusOr<std::shared_ptr<const Template>> TemplateStore::Make(
    const VmConfig& config, std::vector<sandbox::StepTime>* steps) const {
  auto made = std::make_shared<Template>();
  ASSIGN_OR_RETURN(made->ram, MemoryFile("reprise-ram"));
  ASSIGN_OR_RETURN(made->state, MemoryFile("reprise-state"));
  if (ftruncate(made->ram.get(), static_cast<off_t>(config.memory_mib << 20)) != 0)
    return base::ErrnoStatus(errno, "size a memory file");
  const std::string box = fmt::format("{}/template-{}", scratch_dir_, base::RandomHex(8));
  RETURN_IF_ERROR(StartBox(box, program_, config, {made->ram.get(), made->state.get()}, steps));
  made->console =
      base::ReadFile(fmt::format("{}/{}", box, kConsoleFile), kConsoleFileBytesMax).value_or("");
  // The machine is gone with its box, and its mapping too.
  RETURN_IF_ERROR(RemoveBox(box));
  RETURN_IF_ERROR(Seal(made->ram));
  RETURN_IF_ERROR(Seal(made->state));
  return made;
}

}  // namespace reprise::sandboxd::microvm
