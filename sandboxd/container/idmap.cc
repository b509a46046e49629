#include "sandboxd/container/idmap.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "base/ids.h"
#include "base/status_macros.h"

namespace reprise::sandboxd {
namespace {

absl::Status WriteProcFile(const std::string& path, const std::string& text) {
  base::UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.valid()) return base::ErrnoStatus(errno, fmt::format("open {}", path));
  return base::WriteAll(fd.get(), text, path);
}

// A child that only holds a new user namespace open; killed when this goes out of scope.
class NamespaceHolder {
 public:
  NamespaceHolder() {
    pid_ = static_cast<pid_t>(
        syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, nullptr, nullptr, nullptr, nullptr));
    error_ = pid_ < 0 ? errno : 0;
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      while (true) pause();
    }
  }
  ~NamespaceHolder() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  NamespaceHolder(const NamespaceHolder&) = delete;
  NamespaceHolder& operator=(const NamespaceHolder&) = delete;
  pid_t pid() const { return pid_; }
  int error() const { return error_; }

 private:
  pid_t pid_ = -1;
  int error_ = 0;
};

// A directory for a directory, a file for anything else.
absl::Status MakeMountPoint(const base::UniqueFd& tree, const std::string& target) {
  struct stat info;
  if (fstat(tree.get(), &info) != 0)
    return base::ErrnoStatus(errno, fmt::format("stat what {} shows", target));
  if (S_ISDIR(info.st_mode)) {
    if (mkdir(target.c_str(), 0700) != 0 && errno != EEXIST)
      return base::ErrnoStatus(errno, "make " + target);
    return absl::OkStatus();
  }
  const base::UniqueFd file(
      open(target.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  return file.valid() ? absl::OkStatus() : base::ErrnoStatus(errno, "make " + target);
}

// A detached copy of one directory's mount, id-mapped when `userns` is valid, attached at `target`.
absl::Status AttachLayer(const std::string& source, const std::string& target,
                         const base::UniqueFd& userns) {
  base::UniqueFd tree(open_tree(AT_FDCWD, source.c_str(),
                                OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW));
  if (!tree.valid()) return base::ErrnoStatus(errno, fmt::format("clone the mount of {}", source));
  if (userns.valid()) {
    mount_attr attributes{};
    attributes.attr_set = MOUNT_ATTR_IDMAP;
    attributes.userns_fd = static_cast<uint64_t>(userns.get());
    if (mount_setattr(tree.get(), "", AT_EMPTY_PATH, &attributes, sizeof(attributes)) != 0) {
      return base::ErrnoStatus(errno, fmt::format("id-map the mount of {}", source));
    }
  }
  RETURN_IF_ERROR(MakeMountPoint(tree, target));
  if (move_mount(tree.get(), "", AT_FDCWD, target.c_str(), MOVE_MOUNT_F_EMPTY_PATH) != 0) {
    return base::ErrnoStatus(errno, fmt::format("attach a layer at {}", target));
  }
  return absl::OkStatus();
}

std::string LayerName(size_t index) { return fmt::format("l{}", index); }

// An overlay writes to its layers as who mounted it: on id-mapped ones that must be somebody whom
// they know. Changes the calling thread only; its capabilities stay.
absl::Status BecomeLayerOwner(uint32_t base_id) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct capabilities[2] = {};
  if (syscall(SYS_capget, &header, capabilities) != 0)
    return base::ErrnoStatus(errno, "read capabilities");
  setfsgid(base_id);
  setfsuid(base_id);
  if (syscall(SYS_capset, &header, capabilities) != 0)
    return base::ErrnoStatus(errno, "keep capabilities");
  return absl::OkStatus();
}

// Names are relative to `directory`, because mount(2) takes one page of options: a thread with a
// working directory of its own does it.
absl::Status MountOverlayIn(const std::string& directory, const std::string& options,
                            uint32_t base_id) {
  absl::Status status;
  std::thread([&] {
    if (unshare(CLONE_FS) != 0 || chdir(directory.c_str()) != 0) {
      status = base::ErrnoStatus(errno, fmt::format("enter {}", directory));
      return;
    }
    if (base_id != 0) status = BecomeLayerOwner(base_id);
    if (!status.ok()) return;
    if (mount("overlay", "rootfs", "overlay", MS_NODEV | MS_NOSUID, options.c_str()) != 0) {
      status = base::ErrnoStatus(errno, fmt::format("mount the overlay at {}/rootfs", directory));
    }
  }).join();
  return status;
}

absl::Status MountLayersAndOverlay(const OverlayDirs& dirs, const std::string& directory,
                                   const base::UniqueFd& userns, uint32_t base_id) {
  std::string lower;
  for (size_t i = 0; i < dirs.lower.size(); ++i) {
    RETURN_IF_ERROR(AttachLayer(dirs.lower[i], directory + "/" + LayerName(i), userns));
    lower += (i == 0 ? "" : ":") + LayerName(i);
  }
  const std::filesystem::path upper(dirs.upper), work(dirs.work);
  if (upper.parent_path() != work.parent_path()) {
    return absl::InternalError(
        fmt::format("upper {} and work {} have no common parent", dirs.upper, dirs.work));
  }
  RETURN_IF_ERROR(AttachLayer(upper.parent_path(), directory + "/upper", userns));
  RETURN_IF_ERROR(
      MountOverlayIn(directory,
                     fmt::format("index=off,redirect_dir=off,metacopy=off,lowerdir={},upperdir=upper/{},workdir=upper/{}", lower,
                                 upper.filename().string(), work.filename().string()),
                     base_id));
  struct statvfs info;
  if (statvfs((directory + "/rootfs").c_str(), &info) != 0)
    return base::ErrnoStatus(errno, "stat the overlay");
  // What the kernel makes of an upper directory that it cannot write to.
  if ((info.f_flag & ST_RDONLY) != 0)
    return absl::FailedPreconditionError("the overlay came up read-only");
  return absl::OkStatus();
}

absl::Status UnmountOne(const std::string& path) {
  if (umount2(path.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0 || errno == EINVAL ||
      errno == ENOENT) {
    return absl::OkStatus();
  }
  return base::ErrnoStatus(errno, fmt::format("unmount {}", path));
}

// The overlay keeps its layers by itself: what was attached to name them can go.
absl::Status DetachLayers(const std::string& directory) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename();
    if (name != "upper" && !name.starts_with("l")) continue;
    RETURN_IF_ERROR(UnmountOne(entry.path()));
    if (rmdir(entry.path().c_str()) != 0)
      return base::ErrnoStatus(errno, "remove " + entry.path().string());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<base::UniqueFd> MakeUserNamespace(uint32_t base_id) {
  const NamespaceHolder holder;
  if (holder.pid() < 0) return base::ErrnoStatus(holder.error(), "make a user namespace");
  const std::string proc = fmt::format("/proc/{}", holder.pid());
  const std::string map = fmt::format("0 {} {}\n", base_id, kIdsPerSandbox);
  RETURN_IF_ERROR(WriteProcFile(proc + "/uid_map", map));
  RETURN_IF_ERROR(WriteProcFile(proc + "/gid_map", map));
  base::UniqueFd fd(open((proc + "/ns/user").c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return base::ErrnoStatus(errno, fmt::format("open {}/ns/user", proc));
  return fd;
}

absl::Status MountRootfs(const OverlayDirs& dirs, const std::string& directory, uint32_t base_id) {
  base::UniqueFd userns;
  if (base_id != 0) {
    ASSIGN_OR_RETURN(userns, MakeUserNamespace(base_id));
  }
  RETURN_IF_ERROR(base::MakeDirs(directory + "/rootfs", 0700));
  absl::Status status = MountLayersAndOverlay(dirs, directory, userns, base_id);
  absl::Status detached = DetachLayers(directory);
  if (status.ok()) status = detached;
  if (!status.ok()) (void)UnmountRootfs(directory);
  return status;
}

absl::Status MountIdMapped(const std::string& source, const std::string& target, uint32_t base_id) {
  ASSIGN_OR_RETURN(const base::UniqueFd userns, MakeUserNamespace(base_id));
  return AttachLayer(source, target, userns);
}

absl::Status UnmountIdMapped(const std::string& target) {
  RETURN_IF_ERROR(UnmountOne(target));
  if (rmdir(target.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
  if (unlink(target.c_str()) == 0) return absl::OkStatus();
  return base::ErrnoStatus(errno, fmt::format("remove {}", target));
}

absl::Status UnmountRootfs(const std::string& directory) {
  RETURN_IF_ERROR(UnmountOne(directory + "/rootfs"));
  return DetachLayers(directory);
}

absl::Status ProbeIdMappedOverlay(const std::string& directory) {
  const std::string place = directory + "/probe-" + base::RandomHex(4);
  const OverlayDirs dirs{{place + "/lower"}, place + "/s/fs", place + "/s/work"};
  for (const std::string& made : {dirs.lower[0], dirs.upper, dirs.work, place + "/m"}) {
    RETURN_IF_ERROR(base::MakeDirs(made, 0755));
  }
  absl::Status status = MountRootfs(dirs, place + "/m", kFirstMappedId);
  if (status.ok()) {
    struct stat info;
    if (stat((place + "/m/rootfs").c_str(), &info) != 0) {
      status = base::ErrnoStatus(errno, "stat the probe");
    } else if (info.st_uid != kFirstMappedId) {
      status = absl::FailedPreconditionError(
          "overlayfs does not honour id-mapped layers (Linux 5.19 does)");
    }
  }
  (void)UnmountRootfs(place + "/m");
  std::error_code error;
  std::filesystem::remove_all(place, error);
  return status;
}

}  // namespace reprise::sandboxd
