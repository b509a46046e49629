#include "sandboxd/microvm/ready_pool.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/format.h"
#include "base/log.h"

namespace reprise::sandboxd::microvm {
namespace {

constexpr size_t kKindsMax = 4;

}  // namespace

void ReadyPool::Start(std::function<void()> first) {
  absl::MutexLock lock(&mutex_);
  if (limits_.of_a_kind == 0 || started_ || closed_) return;
  started_ = true;
  thread_ = std::thread([this, first = std::move(first)] { Run(first); });
}

std::optional<ReadyMachine> ReadyPool::Take(const std::string& kind, Make make) {
  absl::MutexLock lock(&mutex_);
  Want(kind, std::move(make));
  if (!started_ || closed_ || kinds_.front().ready.empty()) return std::nullopt;
  ReadyMachine taken = std::move(kinds_.front().ready.front());
  kinds_.front().ready.pop_front();
  return taken;
}

void ReadyPool::Prepare(const std::string& kind, Make make) {
  absl::MutexLock lock(&mutex_);
  Want(kind, std::move(make));
}

void ReadyPool::Want(const std::string& kind, Make make) {
  if (!started_ || closed_) return;
  auto found = std::find_if(kinds_.begin(), kinds_.end(),
                            [&](const Kind& other) { return other.name == kind; });
  if (found == kinds_.end()) {
    kinds_.push_front({kind, {}, {}, false});
  } else {
    kinds_.splice(kinds_.begin(), kinds_, found);
  }
  kinds_.front().make = std::move(make);
  kinds_.front().failed = false;
}

// The kind wanted last that has too few, if there is room for one more of it.
ReadyPool::Kind* ReadyPool::Short() {
  for (Kind& kind : kinds_) {
    if (kind.failed || kind.ready.size() >= static_cast<size_t>(limits_.of_a_kind)) continue;
    const uint64_t bytes = Bytes();
    uint64_t behind = 0;  // of kinds that would give theirs up for this one
    for (auto it = kinds_.rbegin(); &*it != &kind; ++it) {
      for (const ReadyMachine& machine : it->ready) behind += machine.bytes;
    }
    const uint64_t each = kind.ready.empty() ? 0 : kind.ready.front().bytes;
    if (bytes - behind + each <= limits_.bytes_max) return &kind;
  }
  return nullptr;
}

uint64_t ReadyPool::Bytes() const {
  uint64_t bytes = 0;
  for (const Kind& kind : kinds_) {
    for (const ReadyMachine& machine : kind.ready) bytes += machine.bytes;
  }
  return bytes;
}

void ReadyPool::Run(const std::function<void()>& first) {
  first();
  while (true) {
    std::string kind;
    Make make;
    {
      absl::MutexLock lock(&mutex_);
      auto work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return closed_ || kinds_.size() > kKindsMax || Short() != nullptr;
      };
      mutex_.Await(absl::Condition(&work));
      if (closed_) return;
      if (const Kind* const missing = Short(); missing != nullptr) {
        kind = missing->name;
        make = missing->make;
      }
    }
    MakeOne(kind, make);
  }
}

void ReadyPool::MakeOne(const std::string& kind, const Make& make) {
  absl::StatusOr<ReadyMachine> made = absl::UnavailableError("none is wanted");
  if (make) made = make();
  if (make && !made.ok())
    base::LogWarn(fmt::format("no machine could be made ready: {}", made.status().message()));
  std::vector<ReadyMachine> dropped;
  {
    absl::MutexLock lock(&mutex_);
    auto found = std::find_if(kinds_.begin(), kinds_.end(),
                              [&](const Kind& other) { return other.name == kind; });
    if (found != kinds_.end()) {
      found->failed = !made.ok();
      if (made.ok()) found->ready.push_back(*std::move(made));
    } else if (made.ok()) {
      dropped.push_back(*std::move(made));
    }
    auto over = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return kinds_.size() > kKindsMax || Bytes() > limits_.bytes_max;
    };
    while (over() && !kinds_.empty()) {
      std::list<ReadyMachine>& last = kinds_.back().ready;
      if (last.empty() && (kinds_.size() > kKindsMax || kinds_.size() > 1)) {
        kinds_.pop_back();
        continue;
      }
      if (last.empty()) break;
      dropped.push_back(std::move(last.back()));
      last.pop_back();
      // One alone is too large: not again before somebody wants it.
      kinds_.back().failed = true;
    }
  }
  for (ReadyMachine& machine : dropped) drop_(std::move(machine));
}

std::set<std::string> ReadyPool::Names() const {
  absl::MutexLock lock(&mutex_);
  std::set<std::string> names;
  for (const Kind& kind : kinds_) {
    for (const ReadyMachine& machine : kind.ready) names.insert(machine.name);
  }
  return names;
}

void ReadyPool::Close() {
  std::list<Kind> kinds;
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }
  if (thread_.joinable()) thread_.join();
  {
    absl::MutexLock lock(&mutex_);
    kinds.swap(kinds_);
  }
  for (Kind& kind : kinds) {
    for (ReadyMachine& machine : kind.ready) drop_(std::move(machine));
  }
}

}  // namespace reprise::sandboxd::microvm
