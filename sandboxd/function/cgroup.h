// Control groups of the workers, on hosts with v2, v1 or both mounted: memory and process limits,
// what the kernel counted, removal. One group per worker below one of the daemon's own. No library:
// used by the supervisor too.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace reprise::sandboxd::function {

class CgroupTree {
 public:
  // Finds the hierarchies where a group named `name` can be made below the one of this process, and
  // makes it.
  static CgroupTree Make(const std::string& name);

  bool has_memory() const { return has_memory_; }
  bool has_pids() const { return has_pids_; }
  // What is there, or what is missing and why; one line.
  const std::string& note() const { return note_; }

  // Errors are an errno, 0 when done. A worker's id is one path component.
  int CreateGroup(const std::string& id) const;
  int AddProcess(const std::string& id, pid_t pid) const;
  int SetLimits(const std::string& id, uint64_t memory_bytes, uint64_t pids) const;
  // Kills by the OOM killer in this group so far.
  uint64_t OomKills(const std::string& id) const;
  uint64_t PeakMemory(const std::string& id) const;  // bytes; 0 when unknown
  // Kills what is left in it, then removes it; gives up after some rounds, for a later call.
  void RemoveGroup(const std::string& id) const;
  // Removes the group that Make made, if nothing is in it; CreateGroup makes it again when needed.
  void RemoveBase() const;
  // Ids of all groups that exist.
  std::vector<std::string> Groups() const;

 private:
  struct Hierarchy {
    std::string base;  // directory of the daemon's group
    bool v2 = false, memory = false, pids = false;
  };
  static bool MakeBase(const Hierarchy& hierarchy);  // false: errno says why

  std::vector<Hierarchy> hierarchies_;
  bool has_memory_ = false, has_pids_ = false;
  std::string note_;
};

}  // namespace reprise::sandboxd::function
