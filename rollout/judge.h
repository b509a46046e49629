// Asks judges that are HTTP services, many at one time, without holding a thread for any of them: a
// slow judge delays nothing but the trajectories that it judges. What goes wrong is tried again
// within the bounds of the job, and in the end is a judgement without a value, never a reward of 0.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "reprise/journal/v1/journal.pb.h"
#include "rollout/job.h"

namespace reprise::rollout {

namespace journal = ::reprise::journal::v1;

// Questions that are asked together; others wait for their turn, in order.
inline constexpr size_t kQuestionsAtOnce = 128;

class Judge {
 public:
  Judge();
  // Drops what is under way: no answer comes of it.
  ~Judge();

  struct Question {
    HttpJudge judge;
    std::string id;    // Idempotency-Key: the same in every attempt and after a restart
    std::string body;  // JSON
  };
  // `answer` runs once, on a thread of this. REQUIRES: no other question of this id is under way.
  void Ask(Question question, std::function<void(journal::RewardDone)> answer);
  // Ends a question soon, without a value; nothing when it is not under way.
  void Drop(const std::string& id);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace reprise::rollout
