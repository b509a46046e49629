#include "sandboxd/sandbox_gate.h"

#include <fmt/format.h>

#include <utility>

namespace reprise::sandboxd {

bool SandboxGate::Open(const std::string& sandbox_id) const {
  auto room = rooms_.find(sandbox_id);
  return room == rooms_.end() || !room->second.closed;
}

void SandboxGate::Tidy(const std::string& sandbox_id) {
  auto room = rooms_.find(sandbox_id);
  if (room != rooms_.end() && room->second.inside.empty() && !room->second.closed)
    rooms_.erase(room);
}

absl::Status SandboxGate::Enter(const std::string& sandbox_id, const std::string& call_id,
                                bool alone) {
  absl::MutexLock lock(&mutex_);
  auto open = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return Open(sandbox_id); };
  mutex_.Await(absl::Condition(&open));
  Room& room = rooms_[sandbox_id];
  if (!room.alone.empty() && room.alone != call_id) {
    return absl::UnavailableError(
        fmt::format("call {} may be rolled back (on_interrupt = restore) and has sandbox {} to "
                    "itself: try again when it has ended",
                    room.alone, sandbox_id));
  }
  if (alone && !room.inside.empty() && !room.inside.contains(call_id)) {
    return absl::UnavailableError(fmt::format(
        "call {} asks for on_interrupt = restore and so for sandbox {} to itself, where "
        "{} runs: try again when it has ended",
        call_id, sandbox_id, *room.inside.begin()));
  }
  room.inside.insert(call_id);
  if (alone) room.alone = call_id;
  return absl::OkStatus();
}

void SandboxGate::Adopt(const std::string& sandbox_id, const std::string& call_id, bool alone) {
  absl::MutexLock lock(&mutex_);
  Room& room = rooms_[sandbox_id];
  room.inside.insert(call_id);
  if (alone) room.alone = call_id;
}

void SandboxGate::Leave(const std::string& sandbox_id, const std::string& call_id) {
  absl::MutexLock lock(&mutex_);
  auto room = rooms_.find(sandbox_id);
  if (room == rooms_.end()) return;
  room->second.inside.erase(call_id);
  if (room->second.alone == call_id) room->second.alone.clear();
  Tidy(sandbox_id);
}

SandboxGate::Closed::Closed(SandboxGate* gate, std::string sandbox_id)
    : gate_(gate), sandbox_id_(std::move(sandbox_id)) {
  absl::MutexLock lock(&gate_->mutex_);
  auto open = [this]()
                  ABSL_SHARED_LOCKS_REQUIRED(gate_->mutex_) { return gate_->Open(sandbox_id_); };
  gate_->mutex_.Await(absl::Condition(&open));
  Room& room = gate_->rooms_[sandbox_id_];
  room.closed = true;
  quiet_ = room.inside.empty();
}

SandboxGate::Closed::~Closed() {
  absl::MutexLock lock(&gate_->mutex_);
  gate_->rooms_[sandbox_id_].closed = false;
  gate_->Tidy(sandbox_id_);
}

}  // namespace reprise::sandboxd
