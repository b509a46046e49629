#include "sandboxd/agent/tree_watch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <utility>

namespace reprise::sandboxd::agent {
namespace {

constexpr uint32_t kMask = IN_CREATE | IN_MODIFY | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO |
                           IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR;
constexpr size_t kAnnouncedMax = 100'000;
constexpr size_t kReadBytes = 64 << 10;

std::string Join(const std::string& directory, const std::string& name) {
  return directory.empty() ? name : directory + "/" + name;
}

bool IsBelow(const std::string& path, const std::string& directory) {
  return path.size() > directory.size() && path.compare(0, directory.size(), directory) == 0 &&
         path[directory.size()] == '/';
}

}  // namespace

int TreeWatch::Open() {
  paths_.clear();
  watches_.clear();
  announced_.clear();
  moved_ = {};
  inotify_.Reset(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  if (!inotify_.valid()) return errno;
  return AddTree("", /*announce=*/false);
}

int TreeWatch::AddDir(const std::string& path) {
  if (watches_.size() >= kWatchedDirsMax) return ENOSPC;
  const std::string full = path.empty() ? root_ : root_ + "/" + path;
  const uint32_t mask = path.empty() ? kMask : kMask | IN_DONT_FOLLOW;
  const int watch = inotify_add_watch(inotify_.get(), full.c_str(), mask);
  if (watch < 0) return errno;
  // The kernel gives a directory that is watched already the same number.
  if (const auto known = paths_.find(watch); known != paths_.end()) {
    const auto other = watches_.find(known->second);
    if (other != watches_.end() && other->second == watch) watches_.erase(other);
  }
  paths_[watch] = path;
  watches_[path] = watch;
  return 0;
}

int TreeWatch::AddTree(const std::string& path, bool announce) {
  std::vector<std::string> pending = {path};
  while (!pending.empty()) {
    const std::string at = std::move(pending.back());
    pending.pop_back();
    if (const int error = AddDir(at); error != 0) {
      if (at.empty() || error == ENOSPC || error == ENOMEM) return error;
      continue;  // gone meanwhile, or not this user's to see
    }
    if (!recursive_) return 0;
    DIR* directory = opendir((at.empty() ? root_ : root_ + "/" + at).c_str());
    if (directory == nullptr) continue;
    while (const dirent* entry = readdir(directory)) {
      const std::string name = entry->d_name;
      if (name == "." || name == "..") continue;
      const std::string child = Join(at, name);
      if (announce && (announced_.size() >= kAnnouncedMax || announced_.insert(child).second)) {
        emit_(WatchKind::kCreated, child);
      }
      struct stat info {};
      const bool is_directory =
          entry->d_type == DT_DIR ||
          (entry->d_type == DT_UNKNOWN &&
           fstatat(dirfd(directory), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISDIR(info.st_mode));
      if (is_directory) pending.push_back(child);
    }
    closedir(directory);
  }
  return 0;
}

void TreeWatch::DropTree(const std::string& path) {
  for (auto watch = watches_.lower_bound(path); watch != watches_.end();) {
    if (watch->first != path && !IsBelow(watch->first, path)) {
      if (watch->first.compare(0, path.size(), path) != 0) break;
      ++watch;  // "a-b" lies between "a" and "a/b"
      continue;
    }
    inotify_rm_watch(inotify_.get(), watch->second);
    paths_.erase(watch->second);
    watch = watches_.erase(watch);
  }
}

void TreeWatch::RenameTree(const std::string& from, const std::string& to) {
  std::map<std::string, int> renamed;
  for (const auto& [path, watch] : watches_) {
    const bool inside = path == from || IsBelow(path, from);
    const std::string now = inside ? to + path.substr(from.size()) : path;
    renamed[now] = watch;
    if (inside) paths_[watch] = now;
  }
  watches_ = std::move(renamed);
}

bool TreeWatch::Step() {
  alignas(inotify_event) char buffer[kReadBytes];
  while (true) {
    const ssize_t count = read(inotify_.get(), buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      SettleMove();
      return true;
    }
    for (ssize_t at = 0; at < count;) {
      const auto& event = *reinterpret_cast<const inotify_event*>(buffer + at);
      at += static_cast<ssize_t>(sizeof(event) + event.len);
      if ((event.mask & IN_Q_OVERFLOW) != 0) {
        if (!Overflow()) return false;
        break;  // what was read beyond it belongs to the old watches
      }
      if (!Handle(event, event.len > 0 ? std::string(event.name) : "")) return false;
    }
  }
}

bool TreeWatch::Overflow() {
  emit_(WatchKind::kOverflow, "");
  return Open() == 0;
}

// A directory that left and did not come back: nothing below it is of this tree.
void TreeWatch::SettleMove() {
  if (moved_.cookie != 0) DropTree(moved_.path);
  moved_ = {};
}

bool TreeWatch::Handle(const inotify_event& event, const std::string& name) {
  const bool completes_move =
      moved_.cookie != 0 && (event.mask & IN_MOVED_TO) != 0 && event.cookie == moved_.cookie;
  if (!completes_move) SettleMove();
  const auto found = paths_.find(event.wd);
  if (found == paths_.end()) return true;
  if (name.empty()) return HandleSelf(event, std::string(found->second));
  const std::string path = Join(found->second, name);
  const bool directory = (event.mask & IN_ISDIR) != 0;
  if ((event.mask & IN_CREATE) != 0) {
    if (announced_.erase(path) == 0) emit_(WatchKind::kCreated, path);
    if (directory && recursive_ && watches_.count(path) == 0 && AddTree(path, true) != 0)
      emit_(WatchKind::kOverflow, "");
  }
  if ((event.mask & IN_MODIFY) != 0) emit_(WatchKind::kWritten, path);
  if ((event.mask & IN_ATTRIB) != 0) emit_(WatchKind::kChmod, path);
  if ((event.mask & IN_DELETE) != 0) {
    announced_.erase(path);
    emit_(WatchKind::kRemoved, path);
  }
  if ((event.mask & IN_MOVED_FROM) != 0) {
    announced_.erase(path);
    emit_(WatchKind::kRenamed, path);
    if (directory && recursive_) moved_ = {event.cookie, path};
  }
  if ((event.mask & IN_MOVED_TO) != 0) HandleMovedTo(event, path);
  return true;
}

void TreeWatch::HandleMovedTo(const inotify_event& event, const std::string& path) {
  emit_(WatchKind::kCreated, path);
  if ((event.mask & IN_ISDIR) == 0 || !recursive_) return;
  bool announce = false;
  if (moved_.cookie != 0) {
    DropTree(path);  // of an empty directory that it replaced
    RenameTree(std::exchange(moved_, {}).path, path);
    // One that was moved before it could be watched: what is in it was not told yet.
    announce = watches_.count(path) == 0;
  }
  if (AddTree(path, announce) != 0) emit_(WatchKind::kOverflow, "");
}

// Of a watched directory itself; its parent, where it is watched, tells the same.
bool TreeWatch::HandleSelf(const inotify_event& event, const std::string& path) {
  if ((event.mask & IN_IGNORED) != 0) {
    if (const auto watch = watches_.find(path);
        watch != watches_.end() && watch->second == event.wd) {
      watches_.erase(watch);
    }
    paths_.erase(event.wd);
  }
  if (!path.empty()) return true;
  if ((event.mask & IN_DELETE_SELF) != 0) emit_(WatchKind::kRemoved, "");
  if ((event.mask & IN_MOVE_SELF) != 0) emit_(WatchKind::kRenamed, "");
  return (event.mask & (IN_MOVE_SELF | IN_IGNORED | IN_UNMOUNT)) == 0;
}

}  // namespace reprise::sandboxd::agent
