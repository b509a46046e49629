// The scheduler's part that decodes guests beside the trajectories of jobs.
#include <algorithm>
#include <utility>

#include "rollout/scheduler_parts.h"

namespace reprise::rollout {

void Scheduler::AddGuest(std::shared_ptr<Guest> guest) {
  ++guests_waiting_;
  Post([this, guest = std::move(guest)] {
    if (broken_) {
      --guests_waiting_;
      return guest->OnFailed(
          absl::UnavailableError("the journal takes no more writes, restart rolloutd"));
    }
    auto visit = std::make_shared<Visit>();
    visit->guest = guest;
    visits_.push_back(std::move(visit));
  });
}

void Scheduler::ReapGuests() {
  std::erase_if(visits_, [this](const VisitPtr& visit) {
    if (visit->guest->Wanted()) return false;
    --(visit->begun ? guests_running_ : guests_waiting_);
    return true;
  });
}

void Scheduler::AddGuestItems(bool prefill, size_t* budget, std::vector<engine::StepItem>* items,
                              std::vector<VisitPtr>* visits) {
  const size_t running = std::min(visits_.size(), kGuestsRunning);
  for (size_t i = 0; i < running; ++i) {
    if (*budget == 0) break;
    const VisitPtr& visit = visits_[i];
    if (!visit->sequence)
      visit->sequence = engine_->NewSequence(visit->guest->tokens(), current_weights_.get());
    if (!visit->begun) {
      visit->begun = true;
      --guests_waiting_;
      ++guests_running_;
      visit->guest->OnBegun(visit->sequence->length());
    }
    const size_t fed = static_cast<size_t>(visit->sequence->length());
    const size_t left = visit->guest->tokens().size() - fed;
    if ((left > 1) != prefill) continue;
    const size_t count = std::min({left, kPrefillChunk, *budget});
    *budget -= count;
    engine::StepItem item;
    item.sequence = visit->sequence.get();
    item.tokens = visit->guest->tokens().subspan(fed, count);
    item.sampling = count == left ? &visit->guest->sampling() : nullptr;
    item.weights = current_weights_.get();
    items->push_back(std::move(item));
    visits->push_back(visit);
  }
}

void Scheduler::OnGuestStepped(const VisitPtr& visit, const engine::StepItem& item) {
  if (item.sampling == nullptr) return;
  const size_t before = batch_.size();
  visit->guest->OnSampled(item.sampled[0], current_.version(), &batch_);
  if (batch_.size() > before) touched_guests_.push_back(visit->guest);
}

void Scheduler::FailGuests(const absl::Status& why) {
  for (const VisitPtr& visit : std::exchange(visits_, {})) {
    --(visit->begun ? guests_running_ : guests_waiting_);
    visit->guest->OnFailed(why);
  }
  for (const auto& guest : std::exchange(touched_guests_, {})) guest->OnFailed(why);
}

}  // namespace reprise::rollout
