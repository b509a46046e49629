// Machines that were booted once, saved when their agent listened, and are continued for every
// sandbox of the same kind: memory in a sealed file that all clones map privately, devices in
// another. Both are anonymous files of the daemon; the next daemon makes its own.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/fd.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/microvm/vm_config.h"

namespace reprise::sandboxd::microvm {

namespace sandbox = ::reprise::sandbox::v1;

struct Template {
  std::string id;  // of this one memory; another boot of the same kind makes another
  base::UniqueFd ram;
  base::UniqueFd state;  // of its devices; none where only its memory was kept
  std::string console;   // what its console said
};

// A memory file that can be sealed. `bytes`: its size, all zeros and no memory yet.
absl::StatusOr<base::UniqueFd> MakeMemoryFile(const char* name, uint64_t bytes);
// No machine that maps it, and nobody else, can change the template any more.
absl::Status Seal(const Template& made);

class TemplateStore {
 public:
  // `scratch_dir` exists; boxes of templates are made in it. `program` is reprise-microvm.
  TemplateStore(std::string scratch_dir, std::string program)
      : scratch_dir_(std::move(scratch_dir)), program_(std::move(program)) {}

  // Which machines continue the same template: all that have this in common.
  static std::string KeyOf(const VmConfig& config);
  // The template of machines like `config` (whose mode, user, host name, disk
  // and processes do not matter); made
  // where there is none, which takes as long as a boot. One that is being made is waited for.
  absl::StatusOr<std::shared_ptr<const Template>> Get(const VmConfig& config,
                                                      std::vector<sandbox::StepTime>* steps);
  // The template `id`, which `load` brings back from where it was kept when it is not here.
  using Load = std::function<absl::StatusOr<std::shared_ptr<const Template>>()>;
  absl::StatusOr<std::shared_ptr<const Template>> Get(const std::string& id, const Load& load);

 private:
  struct Slot {
    std::string key;
    absl::Mutex mutex;  // held while it is made
    std::shared_ptr<const Template> made ABSL_GUARDED_BY(mutex);
  };
  std::shared_ptr<Slot> SlotOf(const std::string& key);
  absl::StatusOr<std::shared_ptr<const Template>> Make(const VmConfig& config,
                                                       std::vector<sandbox::StepTime>* steps) const;

  const std::string scratch_dir_, program_;
  absl::Mutex mutex_;
  std::list<std::shared_ptr<Slot>> slots_ ABSL_GUARDED_BY(mutex_);  // the last used first
};

}  // namespace reprise::sandboxd::microvm
