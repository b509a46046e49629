// What happens in a directory, or in all directories below it, told in order: inotify with the
// watches of new and moved directories kept right. What the kernel dropped is told as an overflow,
// and the watches are made anew.
#pragma once

#include <sys/inotify.h>

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "sandboxd/agent/os.h"
#include "sandboxd/agent/protocol.h"

namespace reprise::sandboxd::agent {

inline constexpr size_t kWatchedDirsMax = 10'000;  // of one watch; more are told as an overflow

class TreeWatch {
 public:
  // `emit` gets the path relative to `root`, "" for itself.
  using Emit = std::function<void(WatchKind kind, const std::string& path)>;
  TreeWatch(std::string root, bool recursive, Emit emit)
      : root_(std::move(root)), recursive_(recursive), emit_(std::move(emit)) {}

  // 0, or an errno; ENOSPC: more directories than kWatchedDirsMax or than the kernel allows.
  int Open();
  int fd() const { return inotify_.get(); }
  // Tells all that is there; never blocks. False when the directory is gone.
  bool Step();

 private:
  struct Moved {
    uint32_t cookie = 0;
    std::string path;
  };

  int AddDir(const std::string& path);
  // Watches `path` and, with `recursive_`, what is below it; `announce`: its entries are told as
  // created, they may be older than the watch.
  int AddTree(const std::string& path, bool announce);
  void DropTree(const std::string& path);
  void RenameTree(const std::string& from, const std::string& to);
  // False when the directory is gone.
  bool Handle(const inotify_event& event, const std::string& name);
  bool HandleSelf(const inotify_event& event, const std::string& path);
  void HandleMovedTo(const inotify_event& event, const std::string& path);
  bool Overflow();
  void SettleMove();

  const std::string root_;
  const bool recursive_;
  const Emit emit_;
  Fd inotify_;
  std::map<int, std::string> paths_;  // of watches
  std::map<std::string, int> watches_;
  // Told as created when their directory was read; their own event, if it comes, is old news.
  std::set<std::string> announced_;
  Moved moved_;  // a directory that left its place; the next event may say where to
};

}  // namespace reprise::sandboxd::agent
