#include "sandboxd/watch_manager.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "base/format.h"
#include "base/status_macros.h"

namespace reprise::sandboxd {
namespace {

constexpr int kReadyMax = 64;
constexpr int kEventsARound = 256;  // of one watch before the others have their turn
constexpr uint64_t kWakeId = 0;

absl::Status Stopping() { return absl::UnavailableError("sandboxd is stopping: watch again"); }

}  // namespace

// ---- one watch

void WatchStream::Push(sandbox::WatchEvent event) {
  {
    absl::MutexLock lock(&mutex_);
    if (!end_.ok()) return;
    if (pending_.size() >= kWatchEventsMax) {
      pending_.clear();
      pending_.emplace_back().set_kind(sandbox::WATCH_EVENT_KIND_OVERFLOW);
    }
    pending_.push_back(std::move(event));
  }
  Pump();
}

void WatchStream::End(absl::Status status) {
  {
    absl::MutexLock lock(&mutex_);
    if (end_.ok()) end_ = std::move(status);
  }
  Pump();
}

bool WatchStream::ended() const {
  absl::MutexLock lock(&mutex_);
  return !end_.ok();
}

void WatchStream::Next(std::function<void(Event)> deliver) {
  {
    absl::MutexLock lock(&mutex_);
    waiting_ = std::move(deliver);
  }
  Pump();
}

void WatchStream::Pump() {
  std::function<void(Event)> deliver;
  Event event = absl::UnknownError("");
  {
    absl::MutexLock lock(&mutex_);
    if (waiting_ == nullptr || (pending_.empty() && end_.ok())) return;
    if (pending_.empty()) {
      event = end_;
    } else {
      event = std::move(pending_.front());
      pending_.pop_front();
    }
    deliver = std::exchange(waiting_, nullptr);
  }
  deliver(std::move(event));
}

absl::StatusOr<std::vector<sandbox::WatchEvent>> WatchStream::TakeAll() {
  absl::MutexLock lock(&mutex_);
  if (pending_.empty() && !end_.ok()) return end_;
  std::vector<sandbox::WatchEvent> events(std::make_move_iterator(pending_.begin()),
                                          std::make_move_iterator(pending_.end()));
  pending_.clear();
  return events;
}

// ---- all of them

absl::StatusOr<std::unique_ptr<WatchManager>> WatchManager::Make(SandboxManager* sandboxes) {
  std::unique_ptr<WatchManager> manager(new WatchManager(sandboxes));
  RETURN_IF_ERROR(manager->Start());
  return manager;
}

absl::Status WatchManager::Start() {
  epoll_.Reset(::epoll_create1(EPOLL_CLOEXEC));
  wake_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWakeId;
  if (!epoll_.valid() || !wake_.valid() ||
      ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) {
    return base::ErrnoStatus(errno, "cannot make the loop that reads watches");
  }
  thread_ = std::thread([this] { Loop(); });
  return absl::OkStatus();
}

WatchManager::~WatchManager() { Shutdown(); }

void WatchManager::Shutdown() {
  stop_.store(true);
  Wake();
  if (thread_.joinable()) thread_.join();
  std::map<uint64_t, EntryPtr> entries;
  {
    absl::MutexLock lock(&mutex_);
    entries.swap(entries_);
  }
  for (const auto& [id, entry] : entries) entry->stream->End(Stopping());
}

absl::Status WatchManager::CheckRoom(const std::string& sandbox_id) {
  if (stop_.load()) return Stopping();
  const auto mine = std::count_if(entries_.begin(), entries_.end(), [&](const auto& entry) {
    return entry.second->stream->sandbox_id() == sandbox_id;
  });
  if (static_cast<size_t>(mine) >= kWatchesPerSandboxMax || entries_.size() >= kWatchesMax) {
    return absl::ResourceExhaustedError(
        fmt::format("{} watches are open, {} of them in sandbox {}: the limits are {} and {}",
                    entries_.size(), mine, sandbox_id, kWatchesMax, kWatchesPerSandboxMax));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<WatchStream>> WatchManager::Open(const std::string& sandbox_id,
                                                                const std::string& path,
                                                                bool recursive) {
  {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(CheckRoom(sandbox_id));
  }
  ASSIGN_OR_RETURN(const SandboxManager::Lease lease, sandboxes_->Use(sandbox_id));
  auto entry = std::make_shared<Entry>();
  ASSIGN_OR_RETURN(entry->watch, lease.substrate->Watch(lease.ref(), path, recursive));
  entry->stream = std::make_shared<WatchStream>(sandbox_id);
  sandbox::WatchEvent started;
  started.set_kind(sandbox::WATCH_EVENT_KIND_STARTED);
  entry->stream->Push(std::move(started));
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckRoom(sandbox_id));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = next_id_++;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, entry->watch->fd(), &event) != 0)
    return base::ErrnoStatus(errno, "cannot follow a watch");
  fresh_.push_back(event.data.u64);
  entries_[event.data.u64] = entry;
  Wake();
  return entry->stream;
}

void WatchManager::Close(const std::shared_ptr<WatchStream>& stream) {
  stream->End(absl::CancelledError("the watch was closed"));
  uint64_t found = 0;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, entry] : entries_) {
      if (entry->stream == stream) found = id;
    }
  }
  if (found != 0) Forget(found);
}

void WatchManager::Wake() {
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof(one));
}

void WatchManager::Forget(uint64_t id) {
  EntryPtr entry;  // closed after the lock, or by the loop if it reads at this moment
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) return;
  entry = std::move(found->second);
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, entry->watch->fd(), nullptr);
  entries_.erase(found);
}

bool WatchManager::Read(Entry& entry, bool* more) {
  for (int i = 0; i < kEventsARound; ++i) {
    absl::StatusOr<std::optional<sandbox::WatchEvent>> event = entry.watch->TryNext();
    if (!event.ok()) {
      entry.stream->End(event.status());
      return false;
    }
    if (!event->has_value()) return true;
    entry.stream->Push(**std::move(event));
  }
  *more = true;
  return true;
}

void WatchManager::Loop() {
  std::vector<epoll_event> ready(kReadyMax);
  std::set<uint64_t> again;
  while (!stop_.load()) {
    const int count = ::epoll_wait(epoll_.get(), ready.data(), kReadyMax, again.empty() ? -1 : 0);
    std::set<uint64_t> turn = std::exchange(again, {});
    for (int i = 0; i < count; ++i) {
      const uint64_t id = ready[static_cast<size_t>(i)].data.u64;
      if (id != kWakeId) turn.insert(id);
      uint64_t wakes = 0;
      if (id == kWakeId) (void)!::read(wake_.get(), &wakes, sizeof(wakes));
    }
    {
      absl::MutexLock lock(&mutex_);
      turn.insert(fresh_.begin(), fresh_.end());
      fresh_.clear();
    }
    for (const uint64_t id : turn) {
      EntryPtr entry;
      {
        absl::MutexLock lock(&mutex_);
        const auto found = entries_.find(id);
        if (found != entries_.end()) entry = found->second;
      }
      if (entry == nullptr || stop_.load()) continue;
      bool more = false;
      if (!Read(*entry, &more)) Forget(id);
      if (more) again.insert(id);
    }
  }
}

}  // namespace reprise::sandboxd
