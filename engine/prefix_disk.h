// States of prompts on disk, below the prefix cache in memory: they outlive the process, and there
// is room for many more. A page of 128 tokens or more is one file, named by the tokens up to its
// end and the weights that made it; a file may hold what else a sequence needs to go on from there
// (its windows and tails: the block), as far as the strategy keeps that. Format: engine/FORMAT.md.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/fd.h"
#include "engine/engine.h"
#include "engine/kv_state.h"

namespace reprise::engine {

// Thread-safe.
class PrefixDisk {
 public:
  // Makes the directory where it is missing. `layout` outlives this. FAILED_PRECONDITION when
  // another engine has the directory; INVALID_ARGUMENT for a bound or a period below 1.
  static absl::StatusOr<std::unique_ptr<PrefixDisk>> Open(const PrefixDiskOptions& options,
                                                          const KvLayout* layout);
  // Writes what is still queued.
  ~PrefixDisk();
  PrefixDisk(const PrefixDisk&) = delete;
  PrefixDisk& operator=(const PrefixDisk&) = delete;

  // How many tokens of `tokens` are known under the weights with that digest, in whole pages, and
  // how many of those up to the last block.
  struct Known {
    int64_t entries = 0, state = 0;
  };
  Known Find(const std::string& digest, absl::Span<const int32_t> tokens);
  // The state after `tokens`, which Find counted: with its block, or with a zeroed one. nullopt
  // when a file is gone or damaged; a damaged one is said in the log and removed.
  std::optional<KvState> Read(const std::string& digest, absl::Span<const int32_t> tokens,
                              bool with_block);
  // Queues what is not there yet of the state after `tokens`, a multiple of the page above 0. What
  // does not fit the queue is left out: it is a cache.
  void Insert(const std::string& digest, absl::Span<const int32_t> tokens, const KvState& state);

  // Waits until the queue is written.
  void Flush();
  int64_t bytes() const;  // of all files

 private:
  struct File {
    int64_t bytes = 0;
    bool block = false;
    std::list<std::string>::iterator use;
  };
  struct Write {
    std::string key, content;  // without its hash
    bool block = false;
  };

  PrefixDisk(const PrefixDiskOptions& options, const KvLayout* layout);
  absl::Status Scan();
  // A key for each page.
  std::vector<std::string> Keys(const std::string& digest, absl::Span<const int32_t> tokens) const;
  std::string PathOf(const std::string& key) const;
  int64_t FileBytes(bool block) const;
  void Note(const std::string& key, int64_t bytes, bool block);  // under mutex_
  void Forget(const std::string& key);                           // under mutex_
  // Removes least recently used files until the bound holds; under mutex_.
  void Evict();
  void Run();
  bool Store(const Write& write);
  // Page, and block where it is wanted; false when the file does not serve.
  bool ReadFile(const std::string& key, bool with_block, std::string* page, std::string* block,
                int64_t* mtp_length);

  const PrefixDiskOptions options_;
  const KvLayout* const layout_;
  base::UniqueFd lock_;
  mutable std::mutex mutex_;
  std::map<std::string, File> files_;  // by key
  std::list<std::string> by_use_;      // the most recently used first
  int64_t bytes_ = 0;
  std::deque<Write> queue_;
  std::map<std::string, bool> queued_;  // key, with its block
  int64_t queued_bytes_ = 0;
  bool writing_ = false, stop_ = false;
  bool failed_ = false;  // the last write did; said once
  std::condition_variable wake_, idle_;
  std::thread writer_;
};

}  // namespace reprise::engine
