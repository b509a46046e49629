#include "sandboxd/function/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <set>
#include <sstream>

#include "sandboxd/agent/os.h"

namespace reprise::sandboxd::function {
namespace {

constexpr size_t kFileBytesMax = 1 << 20;
constexpr int kRemoveRounds = 50;
constexpr int kRemovePauseUs = 2000;

int WriteFile(const std::string& path, const std::string& text) {
  const agent::Fd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.valid()) return errno;
  return write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : errno;
}

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

bool MakeDir(const std::string& path) { return mkdir(path.c_str(), 0755) == 0 || errno == EEXIST; }

struct Mount {
  std::string path;
  bool v2 = false;
  std::set<std::string> controllers;
};

// Lines of mountinfo: ... ROOT MOUNTPOINT OPTIONS ... - TYPE SOURCE SUPEROPTIONS
std::vector<Mount> CgroupMounts() {
  std::vector<Mount> mounts;
  std::istringstream lines(agent::ReadSmallFile("/proc/self/mountinfo", kFileBytesMax));
  for (std::string line; std::getline(lines, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream head(line.substr(0, dash)), tail(line.substr(dash + 3));
    std::string skip, point, type, source, options;
    head >> skip >> skip >> skip >> skip >> point;
    tail >> type >> source >> options;
    if (type != "cgroup" && type != "cgroup2") continue;
    Mount mount{point, type == "cgroup2", {}};
    std::istringstream names(mount.v2 ? agent::ReadSmallFile(point + "/cgroup.controllers", 4096)
                                      : options);
    for (std::string name; std::getline(names, name, mount.v2 ? ' ' : ',');) {
      while (!name.empty() && name.back() == '\n') name.pop_back();
      mount.controllers.insert(name);
    }
    mounts.push_back(std::move(mount));
  }
  return mounts;
}

// The group of this process in a hierarchy: "ID:CONTROLLERS:PATH".
std::string OwnGroup(const Mount& mount) {
  std::istringstream lines(agent::ReadSmallFile("/proc/self/cgroup", kFileBytesMax));
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1),
                      path = line.substr(second + 1);
    bool same = mount.v2 && controllers.empty();
    std::istringstream names(controllers);
    for (std::string name; !mount.v2 && std::getline(names, name, ',');)
      same |= mount.controllers.count(name) != 0;
    if (same) return path == "/" ? mount.path : mount.path + path;
  }
  return mount.path;
}

// Lets groups below `parent` use the controllers. A group with processes cannot, so this process
// moves into a leaf.
bool Delegate(const std::string& parent) {
  const std::string control = parent + "/cgroup.subtree_control";
  if (WriteFile(control, "+memory +pids") == 0) return true;
  const std::string leaf = parent + "/daemon";
  if (!MakeDir(leaf)) return false;
  if (WriteFile(leaf + "/cgroup.procs", std::to_string(getpid())) != 0) return false;
  if (getppid() > 1) WriteFile(leaf + "/cgroup.procs", std::to_string(getppid()));
  return WriteFile(control, "+memory +pids") == 0;
}

std::vector<std::string> Directories(const std::string& path) {
  std::vector<std::string> names;
  DIR* dir = opendir(path.c_str());
  if (dir == nullptr) return names;
  while (const dirent* entry = readdir(dir)) {
    const std::string name = entry->d_name;
    if (entry->d_type == DT_DIR && name != "." && name != "..") names.push_back(name);
  }
  closedir(dir);
  return names;
}

uint64_t Field(const std::string& text, const std::string& name) {
  std::istringstream lines(text);
  std::string key;
  uint64_t value = 0;
  while (lines >> key >> value) {
    if (key == name) return value;
  }
  return 0;
}

}  // namespace

CgroupTree CgroupTree::Make(const std::string& name) {
  CgroupTree tree;
  for (const Mount& mount : CgroupMounts()) {
    Hierarchy hierarchy;
    hierarchy.v2 = mount.v2;
    hierarchy.memory = mount.controllers.count("memory") != 0 && !tree.has_memory_;
    hierarchy.pids = mount.controllers.count("pids") != 0 && !tree.has_pids_;
    if (!hierarchy.memory && !hierarchy.pids) continue;
    const std::string own = OwnGroup(mount);
    hierarchy.base = own + "/" + name;
    if (mount.v2 && !Delegate(own)) continue;
    if (!MakeBase(hierarchy)) continue;
    tree.has_memory_ |= hierarchy.memory;
    tree.has_pids_ |= hierarchy.pids;
    tree.note_ += (tree.note_.empty() ? "cgroup " : ", cgroup ") +
                  std::string(mount.v2 ? "v2" : "v1") + " at " + own;
    tree.hierarchies_.push_back(std::move(hierarchy));
  }
  if (!tree.has_memory_)
    tree.note_ += (tree.note_.empty() ? "" : "; ") +
                  std::string("no writable memory cgroup: RLIMIT_AS bounds memory");
  if (!tree.has_pids_) tree.note_ += "; no writable pids cgroup: RLIMIT_NPROC bounds processes";
  return tree;
}

bool CgroupTree::MakeBase(const Hierarchy& hierarchy) {
  return MakeDir(hierarchy.base) &&
         (!hierarchy.v2 ||
          WriteFile(hierarchy.base + "/cgroup.subtree_control", "+memory +pids") == 0);
}

int CgroupTree::CreateGroup(const std::string& id) const {
  for (const Hierarchy& h : hierarchies_) {
    // The last worker of a daemon that died takes the base with it, perhaps after Make found it.
    for (int round = 0; mkdir((h.base + "/" + id).c_str(), 0755) != 0; ++round) {
      if (errno != ENOENT || round == kRemoveRounds) return errno;
      MakeBase(h);
    }
  }
  return 0;
}

void CgroupTree::RemoveBase() const {
  for (const Hierarchy& h : hierarchies_) rmdir(h.base.c_str());
}

int CgroupTree::AddProcess(const std::string& id, pid_t pid) const {
  for (const Hierarchy& h : hierarchies_) {
    if (int error = WriteFile(h.base + "/" + id + "/cgroup.procs", std::to_string(pid)); error != 0)
      return error;
  }
  return 0;
}

int CgroupTree::SetLimits(const std::string& id, uint64_t memory_bytes, uint64_t pids) const {
  for (const Hierarchy& h : hierarchies_) {
    const std::string group = h.base + "/" + id;
    int error = 0;
    if (h.memory && memory_bytes > 0) {
      error = WriteFile(group + (h.v2 ? "/memory.max" : "/memory.limit_in_bytes"),
                        std::to_string(memory_bytes));
      // Swap would let a program have more; hosts without swap accounting have no such file.
      const std::string swap = group + (h.v2 ? "/memory.swap.max" : "/memory.memsw.limit_in_bytes");
      if (error == 0 && Exists(swap))
        error = WriteFile(swap, h.v2 ? "0" : std::to_string(memory_bytes));
    }
    if (error == 0 && h.pids && pids > 0)
      error = WriteFile(group + "/pids.max", std::to_string(pids));
    if (error != 0) return error;
  }
  return 0;
}

uint64_t CgroupTree::OomKills(const std::string& id) const {
  for (const Hierarchy& h : hierarchies_) {
    if (!h.memory) continue;
    const std::string file = h.base + "/" + id + (h.v2 ? "/memory.events" : "/memory.oom_control");
    return Field(agent::ReadSmallFile(file, 4096), "oom_kill");
  }
  return 0;
}

uint64_t CgroupTree::PeakMemory(const std::string& id) const {
  for (const Hierarchy& h : hierarchies_) {
    if (!h.memory) continue;
    const std::string file =
        h.base + "/" + id + (h.v2 ? "/memory.peak" : "/memory.max_usage_in_bytes");
    return std::strtoull(agent::ReadSmallFile(file, 64).c_str(), nullptr, 10);
  }
  return 0;
}

void CgroupTree::RemoveGroup(const std::string& id) const {
  for (const Hierarchy& h : hierarchies_) {
    const std::string group = h.base + "/" + id;
    for (int round = 0; round < kRemoveRounds && rmdir(group.c_str()) != 0 && errno == EBUSY;
         ++round) {
      if (round > 0) {
        std::istringstream pids(agent::ReadSmallFile(group + "/cgroup.procs", kFileBytesMax));
        for (pid_t pid = 0; pids >> pid;) kill(pid, SIGKILL);
      }
      usleep(kRemovePauseUs);
    }
  }
}

std::vector<std::string> CgroupTree::Groups() const {
  std::set<std::string> all;
  for (const Hierarchy& h : hierarchies_) {
    for (const std::string& id : Directories(h.base)) all.insert(id);
  }
  return {all.begin(), all.end()};
}

}  // namespace reprise::sandboxd::function
