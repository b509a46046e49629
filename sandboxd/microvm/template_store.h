// Machines that were booted once, saved when their agent listened, and are continued for every
// sandbox of the same kind: memory in a sealed file that all clones map privately, devices in
// another. Both are anonymous files of the daemon; the next daemon makes its own.
#pragma once

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
  base::UniqueFd ram, state;
  std::string console;  // what its console said
};

class TemplateStore {
 public:
  // `scratch_dir` exists; boxes of templates are made in it. `program` is reprise-microvm.
  TemplateStore(std::string scratch_dir, std::string program)
      : scratch_dir_(std::move(scratch_dir)), program_(std::move(program)) {}

  // The template of machines like `config` (whose mode, user, host name, disk
  // and processes do not matter); made
  // where there is none, which takes as long as a boot. One that is being made is waited for.
  absl::StatusOr<std::shared_ptr<const Template>> Get(const VmConfig& config,
                                                      std::vector<sandbox::StepTime>* steps);

 private:
  struct Slot {
    std::string key;
    absl::Mutex mutex;  // held while it is made
    std::shared_ptr<const Template> made ABSL_GUARDED_BY(mutex);
  };
  absl::StatusOr<std::shared_ptr<const Template>> Make(const VmConfig& config,
                                                       std::vector<sandbox::StepTime>* steps) const;

  const std::string scratch_dir_, program_;
  absl::Mutex mutex_;
  std::list<std::shared_ptr<Slot>> slots_ ABSL_GUARDED_BY(mutex_);  // the last used first
};

}  // namespace reprise::sandboxd::microvm
