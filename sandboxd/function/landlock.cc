#include "sandboxd/function/landlock.h"

#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/stat.h>
#include <sys/syscall.h>

namespace reprise::sandboxd::function {
namespace {

using Rights = unsigned long long;
constexpr Rights kRead =
    LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;
// Every right of ABI 1, and the one to rename between directories of ABI 2.
constexpr Rights kAbi1 = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1;
constexpr Rights kRefer = LANDLOCK_ACCESS_FS_MAKE_SYM << 1;
constexpr Rights kOfFiles =
    LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE;

}  // namespace

int LandlockAbi() {
  const long abi =
      syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  return abi < 0 ? 0 : static_cast<int>(abi);
}

Landlock Landlock::Make() {
  Landlock landlock;
  landlock.abi_ = LandlockAbi();
  if (landlock.abi_ == 0) return landlock;
  landlock_ruleset_attr attributes{};
  attributes.handled_access_fs = kAbi1 | (landlock.abi_ >= 2 ? kRefer : 0);
  landlock.ruleset_.Reset(static_cast<int>(
      syscall(SYS_landlock_create_ruleset, &attributes, sizeof(attributes.handled_access_fs), 0)));
  if (landlock.valid() && !landlock.Allow("/", kRead)) landlock.ruleset_.Reset();
  return landlock;
}

bool Landlock::Allow(const std::string& path, Rights rights) {
  const agent::Fd target(open(path.c_str(), O_PATH | O_CLOEXEC));
  struct stat info {};
  if (!target.valid() || fstat(target.get(), &info) != 0) return false;
  landlock_path_beneath_attr rule{};
  rule.allowed_access = S_ISDIR(info.st_mode) ? rights : rights & kOfFiles;
  rule.parent_fd = target.get();
  return syscall(SYS_landlock_add_rule, ruleset_.get(), LANDLOCK_RULE_PATH_BENEATH, &rule, 0) == 0;
}

bool Landlock::AllowWrite(const std::string& path) {
  return Allow(path, kAbi1 | (abi_ >= 2 ? kRefer : 0));
}

bool Landlock::Restrict() const {
  return !valid() || syscall(SYS_landlock_restrict_self, ruleset_.get(), 0) == 0;
}

}  // namespace reprise::sandboxd::function
