// One call's connection inside the reactor: frames in on the reactor's thread, acknowledgements out
// from any thread.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sandboxd/link/agent_connection.h"
#include "sandboxd/link/call_reactor.h"

namespace reprise::sandboxd {

class CallLink {
 public:
  CallLink(AgentEndpoint endpoint, std::string call_id, AgentConnection connection, uint64_t tag,
           OutputPosition from, std::unique_ptr<CallSink> sink);

  // Reactor's thread: takes what is there, a bounded portion, and sends what waits. False when this
  // link is done: the connection ended, or nobody wants it any more.
  bool OnEvent() ABSL_LOCKS_EXCLUDED(mutex_);

  // ---- any thread
  void Acknowledge(sandbox::Stream stream, uint64_t upto) ABSL_LOCKS_EXCLUDED(mutex_);
  void Release() ABSL_LOCKS_EXCLUDED(mutex_);
  // No callback begins after this. False when something is still to be sent: the reactor keeps the
  // link for it.
  bool Detach() ABSL_LOCKS_EXCLUDED(mutex_);

  int fd() const { return connection_.fd(); }
  const std::string& run_dir() const { return endpoint_.run_dir; }
  const std::string& call_id() const { return call_id_; }
  // Where the link is going to be registered, for reading and writing: the first event is sure to
  // come, because frames may have been taken from the socket already.
  void SetPlace(int epoll_fd, uint64_t id) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status Take();
  absl::Status Handle(const AgentConnection::Received& frame);
  void End(sandbox::Result result);
  // False when the connection is broken.
  bool Flush() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Watch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const AgentEndpoint endpoint_;
  const std::string call_id_;
  const uint64_t tag_;
  AgentConnection connection_;  // received from by the reactor's thread, sent to under mutex_
  std::unique_ptr<CallSink> sink_;
  uint64_t next_[2];  // offsets that must come next; reactor's thread
  bool ended_ = false;
  std::atomic<bool> detached_ = false;

  absl::Mutex mutex_;
  int epoll_fd_ ABSL_GUARDED_BY(mutex_) = -1;
  uint64_t id_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t watched_ ABSL_GUARDED_BY(mutex_) = 0;             // epoll events
  bool begun_ ABSL_GUARDED_BY(mutex_) = false;               // the first event came
  std::string out_ ABSL_GUARDED_BY(mutex_);                  // begun frames
  uint64_t ack_wanted_[2] ABSL_GUARDED_BY(mutex_) = {0, 0};  // newest, not in out_ yet
  uint64_t ack_sent_[2] ABSL_GUARDED_BY(mutex_) = {0, 0};
  bool release_wanted_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace reprise::sandboxd
