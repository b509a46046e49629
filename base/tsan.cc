// absl::Mutex, CondVar and Notification over pthreads, linked into every program of the
// thread-sanitizer build in place of the shared library's. Debian's Abseil is compiled without
// annotations, so the sanitizer would see no order between two holders of one lock, ours or gRPC's,
// and report every guarded field. pthread locks it knows. Readers exclude each other here: a reader
// that writes is found only when something else races with it.
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace absl {
ABSL_NAMESPACE_BEGIN
namespace {

// The lock and the queue behind one absl::Mutex; its address is kept in the object's only word,
// which is zero until the first use.
struct Monitor {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t released = PTHREAD_COND_INITIALIZER;  // for Await: some holder let go
  int waiting = 0;                                     // in Await
};

struct Queue {
  pthread_cond_t signaled = PTHREAD_COND_INITIALIZER;
};

template <typename T>
T* Behind(const void* object) {
  auto* word =
      const_cast<std::atomic<intptr_t>*>(static_cast<const std::atomic<intptr_t>*>(object));
  intptr_t value = word->load(std::memory_order_acquire);
  if (value == 0) {
    auto made = new T;
    if (word->compare_exchange_strong(value, reinterpret_cast<intptr_t>(made),
                                      std::memory_order_acq_rel)) {
      return made;
    }
    delete made;
  }
  return reinterpret_cast<T*>(value);
}

template <typename T>
void Forget(const void* object) {
  auto* word =
      const_cast<std::atomic<intptr_t>*>(static_cast<const std::atomic<intptr_t>*>(object));
  delete reinterpret_cast<T*>(word->exchange(0));
}

Monitor* Of(const Mutex* mutex) { return Behind<Monitor>(mutex); }
pthread_cond_t* Of(const CondVar* condition) { return &Behind<Queue>(condition)->signaled; }

// False: the deadline passed.
bool WaitOn(pthread_cond_t* cond, Monitor* monitor, Time deadline) {
  if (deadline == InfiniteFuture()) {
    pthread_cond_wait(cond, &monitor->mutex);
    return true;
  }
  const timespec until = ToTimespec(deadline < UnixEpoch() ? UnixEpoch() : deadline);
  return pthread_cond_timedwait(cond, &monitor->mutex, &until) != ETIMEDOUT;
}

}  // namespace

Mutex::~Mutex() { Forget<Monitor>(this); }
void Mutex::Lock() { pthread_mutex_lock(&Of(this)->mutex); }
void Mutex::Unlock() {
  Monitor* monitor = Of(this);
  if (monitor->waiting > 0) pthread_cond_broadcast(&monitor->released);
  pthread_mutex_unlock(&monitor->mutex);
}
bool Mutex::TryLock() { return pthread_mutex_trylock(&Of(this)->mutex) == 0; }
void Mutex::ReaderLock() { Lock(); }
void Mutex::ReaderUnlock() { Unlock(); }
bool Mutex::ReaderTryLock() { return TryLock(); }
void Mutex::AssertHeld() const {
  if (pthread_mutex_trylock(&Of(this)->mutex) == 0) std::abort();
}
void Mutex::AssertReaderHeld() const { AssertHeld(); }
void Mutex::AssertNotHeld() const {}

bool Mutex::AwaitWithDeadline(const Condition& cond, Time deadline) {
  if (cond.Eval()) return true;
  Monitor* monitor = Of(this);
  // What the caller changed so far may be what another waiter wants.
  if (monitor->waiting > 0) pthread_cond_broadcast(&monitor->released);
  ++monitor->waiting;
  bool in_time = true;
  while (in_time && !cond.Eval()) in_time = WaitOn(&monitor->released, monitor, deadline);
  --monitor->waiting;
  return cond.Eval();
}
bool Mutex::AwaitWithTimeout(const Condition& cond, Duration timeout) {
  return AwaitWithDeadline(cond, Now() + timeout);
}
void Mutex::Await(const Condition& cond) { AwaitWithDeadline(cond, InfiniteFuture()); }

bool Mutex::LockWhenWithDeadline(const Condition& cond, Time deadline) {
  Lock();
  return AwaitWithDeadline(cond, deadline);
}
bool Mutex::LockWhenWithTimeout(const Condition& cond, Duration timeout) {
  return LockWhenWithDeadline(cond, Now() + timeout);
}
void Mutex::LockWhen(const Condition& cond) { LockWhenWithDeadline(cond, InfiniteFuture()); }
bool Mutex::ReaderLockWhenWithDeadline(const Condition& cond, Time deadline) {
  return LockWhenWithDeadline(cond, deadline);
}
bool Mutex::ReaderLockWhenWithTimeout(const Condition& cond, Duration timeout) {
  return LockWhenWithTimeout(cond, timeout);
}
void Mutex::ReaderLockWhen(const Condition& cond) { LockWhen(cond); }

CondVar::~CondVar() { Forget<Queue>(this); }
bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  Monitor* monitor = Of(mutex);
  if (monitor->waiting > 0) pthread_cond_broadcast(&monitor->released);
  return !WaitOn(Of(this), monitor, deadline);  // true: timed out
}
bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  return WaitWithDeadline(mutex, Now() + timeout);
}
void CondVar::Wait(Mutex* mutex) { WaitWithDeadline(mutex, InfiniteFuture()); }
void CondVar::Signal() { pthread_cond_signal(Of(this)); }
void CondVar::SignalAll() { pthread_cond_broadcast(Of(this)); }

Notification::~Notification() { MutexLock lock(&mutex_); }
void Notification::Notify() {
  MutexLock lock(&mutex_);
  notified_yet_.store(true, std::memory_order_release);
}
void Notification::WaitForNotification() const {
  WaitForNotificationWithDeadline(InfiniteFuture());
}
bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  return WaitForNotificationWithDeadline(Now() + timeout);
}
bool Notification::WaitForNotificationWithDeadline(Time deadline) const {
  MutexLock lock(&mutex_);
  return mutex_.AwaitWithDeadline(Condition(this, &Notification::HasBeenNotified), deadline);
}

ABSL_NAMESPACE_END
}  // namespace absl

extern "C" const char* __tsan_default_options() { return "history_size=7"; }

// Libraries whose order between threads is made of atomics that were compiled without the
// sanitizer: RocksDB's memtable, the counts in gRPC, absl::Status and absl::Cord, one-time set-up
// of time zones. What runs on gRPC's own threads is therefore checked only where a test calls it
// without gRPC.
extern "C" const char* __tsan_default_suppressions() {
  return "race:librocksdb.so\n"
         "race:libgrpc.so\nrace:libgrpc++.so\nrace:libgpr.so\nrace:libupb.so\n"
         "race:libabsl_status.so\nrace:absl::*::Status::UnrefNonInlined\nrace:libabsl_cord.so\n"
         "race:libabsl_time_zone.so\nrace:libabsl_time.so\n";
}
