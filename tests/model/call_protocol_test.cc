// Goal: at most once, acknowledged implies durable, and same id, same answer hold in every state
// that crashes, retries and rivals can lead to; and the explorer can fail. Method: all
// interleavings of the bounded model, then the same with one fault of the protocol switched on at a
// time, each of which must be found with the promise that it breaks.
#include "tests/model/call_protocol.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

namespace reprise::model {
namespace {

TEST(CallProtocol, KeepsItsPromisesInEveryReachableState) {
  for (const char* const policy : {"report", "rerun", "restore"}) {
    for (uint8_t second : {1, 2}) {
      Protocol protocol{.requests = {1, second},
                        .rerun = policy == std::string("rerun"),
                        .restore = policy == std::string("restore")};
      const Exploration found = Explore(World(), protocol);
      EXPECT_EQ(found.broken, "") << fmt::format("{}", fmt::join(found.trace, "\n"));
      EXPECT_GT(found.states, 2000u);
      fmt::print("policy {:7} second client {:15} {:6} states {:7} steps, every promise kept\n",
                 policy, second == 1 ? "retries" : "asks otherwise", found.states, found.steps);
    }
  }
}

TEST(CallProtocol, EveryFaultOfTheProtocolIsFound) {
  struct Case {
    Fault fault;
    const char* name;
    const char* breaks;
    bool restore = false;
  };
  const Case cases[] = {
      {Fault::kAnswerBeforeResultIsDurable, "answer before RESULT is durable",
       "acknowledged implies durable"},
      {Fault::kStartBeforeIntentIsDurable, "start before INTENT is durable",
       "acknowledged implies durable"},
      {Fault::kStartBeforeRebindIsWritten, "start elsewhere before the journal says so",
       "at most once"},
      {Fault::kRestartShowsWhatIsNotDurable, "restart shows what is not durable",
       "acknowledged implies durable"},
      {Fault::kIdIsForgottenWithItsResult, "the id is forgotten with its result",
       "acknowledged implies durable"},
      {Fault::kRequestIsNotCompared, "requests are not compared", "same id, same answer"},
      {Fault::kClaimIsNotExclusive, "two claims of one id", "at most once"},
      {Fault::kLostCallRunsAgainUnasked, "a lost call runs again unasked", "at most once"},
      {Fault::kOwnerIsNotAskedAfterRestart, "no owner is asked after a restart", "at most once"},
      {Fault::kRestoreDoesNotRollBack, "a restored call finds what it left", "effects exactly once",
       true},
      {Fault::kSnapshotIsTakenAfterTheStart, "the snapshot is taken after the start",
       "effects exactly once", true},
  };
  for (const Case& each : cases) {
    Exploration found;
    for (uint8_t second : {1, 2}) {
      found =
          Explore(World(), {.requests = {1, second}, .restore = each.restore, .fault = each.fault});
      if (!found.broken.empty()) break;
    }
    EXPECT_EQ(found.broken, each.breaks) << each.name;
    fmt::print("{:40} breaks \"{}\" in {} steps\n", each.name, found.broken,
               found.trace.empty() ? 0 : found.trace.size() - 1);
  }
}

}  // namespace
}  // namespace reprise::model
