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

constexpr size_t kIdBytes = 16;

// The machine that is booted for others like this one.
VmConfig KindOf(const VmConfig& config) {
  VmConfig kind = config;
  kind.mode = static_cast<uint8_t>(Mode::kTemplate);
  kind.hostname.clear();
  kind.disk_bytes = kind.pids = 0;
  return kind;
}

absl::Status SealFile(const base::UniqueFd& fd) {
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return base::ErrnoStatus(errno, "seal a template");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<base::UniqueFd> MakeMemoryFile(const char* name, uint64_t bytes) {
  base::UniqueFd fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid() || ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
    return base::ErrnoStatus(errno, "make a memory file");
  return fd;
}

absl::Status Seal(const Template& made) {
  RETURN_IF_ERROR(SealFile(made.ram));
  return made.state.valid() ? SealFile(made.state) : absl::OkStatus();
}

std::shared_ptr<TemplateStore::Slot> TemplateStore::SlotOf(const std::string& key) {
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
  return slots_.front();
}

absl::StatusOr<std::shared_ptr<const Template>> TemplateStore::Get(const std::string& id,
                                                                   const Load& load) {
  std::list<std::shared_ptr<Slot>> slots;
  {
    absl::MutexLock lock(&mutex_);
    slots = slots_;
  }
  for (const std::shared_ptr<Slot>& slot : slots) {
    // One that is being made is not the one that was kept before.
    if (!slot->mutex.TryLock()) continue;
    std::shared_ptr<const Template> made = slot->made;
    slot->mutex.Unlock();
    if (made != nullptr && made->id == id) return made;
  }
  const std::shared_ptr<Slot> slot = SlotOf("kept " + id);
  absl::MutexLock lock(&slot->mutex);
  if (slot->made == nullptr) {
    ASSIGN_OR_RETURN(slot->made, load());
  }
  return slot->made;
}

std::string TemplateStore::KeyOf(const VmConfig& config) {
  VmConfig kind = KindOf(config);
  kind.uid = 0;
  agent::Encoder encoder;
  kind.Fields(encoder);
  return encoder.Take();
}

absl::StatusOr<std::shared_ptr<const Template>> TemplateStore::Get(
    const VmConfig& config, std::vector<sandbox::StepTime>* steps) {
  const VmConfig kind = KindOf(config);
  const std::shared_ptr<Slot> slot = SlotOf(KeyOf(config));
  absl::MutexLock lock(&slot->mutex);
  if (slot->made == nullptr) {
    ASSIGN_OR_RETURN(slot->made, Make(kind, steps));
  }
  return slot->made;
}

absl::StatusOr<std::shared_ptr<const Template>> TemplateStore::Make(
    const VmConfig& config, std::vector<sandbox::StepTime>* steps) const {
  auto made = std::make_shared<Template>();
  made->id = base::RandomHex(kIdBytes);
  ASSIGN_OR_RETURN(made->ram, MakeMemoryFile("reprise-ram", config.memory_mib << 20));
  ASSIGN_OR_RETURN(made->state, MakeMemoryFile("reprise-state", 0));
  const std::string box = fmt::format("{}/template-{}", scratch_dir_, base::RandomHex(8));
  RETURN_IF_ERROR(StartBox(box, program_, config, {made->ram.get(), made->state.get()}, steps));
  made->console =
      base::ReadFile(fmt::format("{}/{}", box, kConsoleFile), kConsoleFileBytesMax).value_or("");
  // The machine is gone with its box, and its mapping too.
  RETURN_IF_ERROR(RemoveBox(box));
  RETURN_IF_ERROR(Seal(*made));
  return made;
}

}  // namespace reprise::sandboxd::microvm
