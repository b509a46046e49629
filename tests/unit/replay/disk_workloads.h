// What a process does to a journal on a simulated disk, life after life, and what must be there
// afterwards: writers of a store, of the call log, of the token log and of the files of ended
// trajectories. What was acknowledged and what was executed is kept outside, where no fault
// reaches.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/unit/storage/sim_disk.h"

namespace reprise::replay {

inline constexpr char kJournalPath[] = "/journal";
inline constexpr char kArchivePath[] = "/archive";

// What the world outside knows.
struct World {
  std::set<int> begun, completed;   // calls, acknowledged
  std::map<int, int> executed;      // how often each call ran
  int entries = 0;                  // of the one trajectory, acknowledged
  std::set<int> compacted;          // trajectories that were moved into files, acknowledged
  std::set<int> dropped, dropping;  // forgotten; and asked to be
  std::set<int> sealed;             // trajectories whose entries were all acknowledged
  std::map<std::string, std::string> values;  // of the store, acknowledged
  absl::Status failure;                       // the first of this life

  // Counts an answer. A write that is taken after one that failed is wrong where `writes`.
  bool Take(const absl::Status& status, bool writes = true);
};

class Workload {
 public:
  virtual ~Workload() = default;
  virtual const char* name() const = 0;
  // One life of a process: opens, looks after what the last one left, writes, reads, closes.
  virtual void Live(storage::SimDisk* disk, int life, World* world) = 0;
  // The first thing that was acknowledged and is not there, or that is there and must not be; ""
  // when all is as it must be. An error is a reported one.
  virtual absl::StatusOr<std::string> Wrong(storage::SimDisk* disk, const World& world) = 0;
};

// The store, the call log, the token log, the files of ended trajectories.
std::vector<std::unique_ptr<Workload>> MakeWorkloads();

// The files of a disk, by path, but for locks.
using Image = std::map<std::string, std::string>;
Image ReadImage(storage::SimDisk* disk);
void WriteImage(const Image& image, storage::SimDisk* disk);

}  // namespace reprise::replay
