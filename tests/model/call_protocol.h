// The protocol of one call id as a finite model: two clients, a daemon, the journal on its disk,
// the supervisors that own what runs. A step is the smallest thing that a crash can come before or
// after; an explorer walks all interleavings of a bounded number of crashes, and every state must
// keep the promises of the journal. Faults of the protocol itself can be switched on, so that the
// explorer is seen to find them.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <vector>

namespace reprise::model {

inline constexpr int kClients = 2;
inline constexpr int kPlaces = 6;  // placements that one call can get within the budget

enum Client : uint8_t { kIdle, kSent, kAttached, kAnswered, kDiverged };
enum Owner : uint8_t { kNobody, kReserved, kExecuting, kEnded };
// What the daemon knows of the call in memory.
enum Phase : uint8_t {
  kDown,           // no daemon
  kRecovering,     // it has opened the journal and has not looked at the call yet
  kUnknown,        // nothing in memory: the journal alone answers
  kClaimed,        // by the first request
  kIntentWritten,  // not synced
  kBegun,          // INTENT durable and told
  kRebindWritten,  // another placement, not synced
  kRolledBack,     // the sandbox is as it was before the call, in a new place
  kFollowing,      // attached to an owner
  kResultWritten,  // not synced
  kCompleted,      // RESULT durable and told; readers are to be answered
};
enum Written : uint8_t { kNothing, kIntent, kRebind, kResult };

inline constexpr uint8_t kNoResult = 0, kInterrupted = 99;  // else: the number of the execution

// How often each disturbance may still happen.
struct Budget {
  uint8_t daemon_crashes = 2, machine_crashes = 1, owner_deaths = 1, client_crashes = 1;
  uint8_t sends_again = 1;  // requests after an answer
  auto operator<=>(const Budget&) const = default;
};

struct World {
  // The journal: what is durable, and what lies in the operating system's cache behind it.
  uint8_t intent = 0;  // request: 0 = none, 1, 2
  uint8_t intent_place = 0;
  uint8_t result = kNoResult;
  Written written = kNothing;
  uint8_t written_value = 0, written_place = 0;
  // Supervisors, by placement.
  std::array<Owner, kPlaces> owners{};
  std::array<uint8_t, kPlaces> execution_of{};  // which execution runs or ran there
  uint8_t next_place = 0;
  // The sandbox, where the call may be rolled back: how many executions of the call left something
  // in it. A dead machine takes it along.
  bool alive = true;
  uint8_t effects = 0, effects_in_snapshot = 0;
  // The daemon.
  Phase phase = kUnknown;
  uint8_t request = 0, place = 0;  // of the call in memory
  bool rival = false;              // a second claim of the same id (a fault)
  // The clients.
  std::array<Client, kClients> clients{};
  std::array<uint8_t, kClients> answers{};
  // Ghosts: what an outside observer counts.
  uint8_t executions = 0, losses = 0;  // begun; begun and gone without a RESULT
  uint8_t acknowledged = kNoResult;    // first answer that any client got
  bool conflict = false;               // another client got another answer
  bool stranger_answered = false;      // a client got the answer to another request
  Budget left;

  auto operator<=>(const World&) const = default;
};

// A protocol with one of these must be caught.
enum class Fault {
  kNone,
  kAnswerBeforeResultIsDurable,
  kStartBeforeIntentIsDurable,
  kStartBeforeRebindIsWritten,
  kRestartShowsWhatIsNotDurable,
  kIdIsForgottenWithItsResult,
  kRequestIsNotCompared,
  kClaimIsNotExclusive,
  kLostCallRunsAgainUnasked,
  kOwnerIsNotAskedAfterRestart,
  kRestoreDoesNotRollBack,
  kSnapshotIsTakenAfterTheStart,
};

struct Protocol {
  std::array<uint8_t, kClients> requests = {1, 1};  // what each client sends
  bool rerun = false;                               // policy of the call
  bool restore = false;                             // policy of the call; else report
  Fault fault = Fault::kNone;
};

struct Step {
  std::string name;
  bool internal = false;  // the daemon does it by itself
  World world;
};

// All steps that can come next.
std::vector<Step> Next(const World& world, const Protocol& protocol);

// "" when every promise holds, else the one that is broken.
std::string BrokenPromise(const World& world, const Protocol& protocol);

struct Exploration {
  size_t states = 0, steps = 0;
  std::string broken;              // the first broken promise found, "" = none
  std::vector<std::string> trace;  // the shortest way there
};
Exploration Explore(const World& start, const Protocol& protocol);

}  // namespace reprise::model
