#include "tests/model/call_protocol.h"

#include <algorithm>
#include <deque>
#include <map>

namespace reprise::model {
namespace {

class Stepper {
 public:
  Stepper(const World& world, const Protocol& protocol) : from_(world), protocol_(protocol) {}

  std::vector<Step> All() {
    Clients();
    Disturbances();
    Owners();
    if (from_.phase == kDown) {
      World next = from_;
      next.phase = kRecovering;
      // Opening the journal makes durable what it shows.
      if (protocol_.fault != Fault::kRestartShowsWhatIsNotDurable) Sync(&next);
      Add("daemon starts", false, next);
    } else {
      Daemon();
    }
    return std::move(steps_);
  }

 private:
  bool Has(Fault fault) const { return protocol_.fault == fault; }
  void Add(std::string name, bool internal, const World& next) {
    steps_.push_back({std::move(name), internal, next});
  }

  static void Sync(World* world) {
    if (world->written == kIntent) world->intent = world->written_value;
    if (world->written == kIntent || world->written == kRebind) {
      world->intent_place = world->written_place;
    }
    if (world->written == kResult) world->result = world->written_value;
    world->written = kNothing;
    world->written_value = world->written_place = 0;
  }

  // What a read of the journal shows.
  uint8_t SeenIntent() const {
    bool cached = Has(Fault::kRestartShowsWhatIsNotDurable) && from_.written == kIntent;
    return cached ? from_.written_value : from_.intent;
  }
  uint8_t SeenResult() const {
    bool cached = Has(Fault::kRestartShowsWhatIsNotDurable) && from_.written == kResult &&
                  (from_.phase == kRecovering || from_.phase == kUnknown);
    return cached ? from_.written_value : from_.result;
  }

  static void Answer(World* world, const Protocol& protocol, int client, uint8_t value) {
    world->clients[client] = kAnswered;
    world->answers[client] = value;
    if (world->acknowledged == kNoResult) world->acknowledged = value;
    world->conflict |= world->acknowledged != value;
    world->stranger_answered |= world->intent != 0 && protocol.requests[client] != world->intent;
  }

  void Execute(World* world, uint8_t place) const {
    if (protocol_.restore) {
      if (!world->alive) world->effects = 0;
      world->alive = true;
      ++world->effects;
      if (Has(Fault::kSnapshotIsTakenAfterTheStart)) world->effects_in_snapshot = 1;
    }
    world->owners[place] = kExecuting;
    world->execution_of[place] = ++world->executions;
  }

  static void Lose(World* world, uint8_t place) {
    Owner& owner = world->owners[place];
    world->losses += (owner == kExecuting || owner == kEnded) && world->result == kNoResult;
    owner = kNobody;
  }

  static void LoseMemory(World* world) {
    world->phase = kDown;
    world->request = world->place = 0;
    world->rival = false;
    for (Client& client : world->clients) {
      if (client == kSent || client == kAttached) client = kIdle;  // it sends again
    }
  }

  void Clients() {
    for (int c = 0; c < kClients; ++c) {
      World next = from_;
      switch (from_.clients[c]) {
        case kIdle:
          if (from_.phase == kDown) break;
          next.clients[c] = kSent;
          Add("client sends", false, next);
          break;
        case kAnswered:
        case kDiverged:
          if (from_.left.sends_again == 0 || from_.phase == kDown) break;
          --next.left.sends_again;
          next.clients[c] = kSent;
          Add("client sends again", false, next);
          break;
        case kSent:
        case kAttached:
          if (from_.left.client_crashes == 0) break;
          --next.left.client_crashes;
          next.clients[c] = kIdle;
          Add("client dies", false, next);
          break;
      }
    }
  }

  void Disturbances() {
    if (from_.left.daemon_crashes > 0 && from_.phase != kDown) {
      World next = from_;
      --next.left.daemon_crashes;
      LoseMemory(&next);
      Add("daemon dies", false, next);
    }
    if (from_.left.machine_crashes > 0) {
      World next = from_;
      --next.left.machine_crashes;
      LoseMemory(&next);
      for (uint8_t place = 0; place < kPlaces; ++place) Lose(&next, place);
      if (protocol_.restore) {
        next.alive = false;
        next.effects = 0;
      }
      next.written = kNothing;  // what was not synced is gone
      next.written_value = next.written_place = 0;
      Add("machine dies", false, next);
    }
  }

  void Owners() {
    for (uint8_t place = 0; place < kPlaces; ++place) {
      World next = from_;
      if (from_.owners[place] == kExecuting) {
        next.owners[place] = kEnded;
        Add("call ends", false, next);
      }
      if (from_.left.owner_deaths > 0 && from_.owners[place] != kNobody) {
        next = from_;
        --next.left.owner_deaths;
        Lose(&next, place);
        Add("owner dies", false, next);
      }
    }
  }

  void Daemon() {
    World next = from_;
    switch (from_.phase) {
      case kRecovering:
        Recover();
        return;
      case kClaimed:
        next.place = next.next_place++;
        next.owners[next.place] = kReserved;
        next.written = kIntent;
        next.written_value = next.request;
        next.written_place = next.place;
        next.phase = Has(Fault::kStartBeforeIntentIsDurable) ? kBegun : kIntentWritten;
        Add("INTENT is written", true, next);
        break;
      case kRolledBack:
        BindElsewhere();
        return;
      case kIntentWritten:
      case kRebindWritten:
        Sync(&next);
        next.phase = kBegun;
        if (from_.phase == kRebindWritten && from_.owners[from_.intent_place] == kReserved) {
          next.owners[from_.intent_place] = kNobody;  // it answered for the call until now
        }
        Add("INTENT is durable", true, next);
        break;
      case kBegun:
        if (from_.owners[from_.place] == kReserved) {
          Execute(&next, from_.place);
          if (from_.rival) Execute(&next, next.next_place++);
          next.rival = false;
          next.phase = kFollowing;
          Add("call starts", true, next);
        } else {
          WriteResult(kInterrupted, "its owner is gone before it starts");
        }
        break;
      case kFollowing:
        if (from_.owners[from_.place] == kEnded) {
          WriteResult(from_.execution_of[from_.place], "RESULT is written");
        } else if (from_.owners[from_.place] == kNobody) {
          WriteResult(kInterrupted, "its owner is gone");
        }
        break;
      case kResultWritten:
        if (Has(Fault::kAnswerBeforeResultIsDurable)) AnswerReaders("readers are answered early");
        next = from_;
        Sync(&next);
        next.phase = kCompleted;
        Add("RESULT is durable", true, next);
        break;
      case kCompleted:
        AnswerReaders("readers are answered");
        break;
      case kDown:
      case kUnknown:
        break;
    }
    for (int c = 0; c < kClients; ++c) {
      if (from_.clients[c] == kSent) Admit(c);
    }
  }

  void WriteResult(uint8_t value, const std::string& name) {
    World next = from_;
    next.written = kResult;
    next.written_value = value;
    next.phase = kResultWritten;
    Add(name, true, next);
  }

  void AnswerReaders(const std::string& name) {
    World next = from_;
    const uint8_t value = from_.written == kResult ? from_.written_value : from_.result;
    bool any = false;
    for (int c = 0; c < kClients; ++c) {
      if (from_.clients[c] != kAttached) continue;
      Answer(&next, protocol_, c, value);
      any = true;
    }
    if (from_.phase == kCompleted) {
      next.owners[from_.place] = kNobody;  // released
      next.phase = kUnknown;
      next.request = next.place = 0;
      if (Has(Fault::kIdIsForgottenWithItsResult)) next.intent = 0;
    } else if (!any) {
      return;
    }
    Add(name, true, next);
  }

  // A restarted daemon and a call with an INTENT and no RESULT.
  void Recover() {
    World next = from_;
    next.phase = kUnknown;
    if (from_.written != kNothing && SeenResult() != kNoResult) {
      Add("nothing to take up", true, next);
      return;
    }
    if (from_.intent == 0 || from_.result != kNoResult) {
      // A reservation that no INTENT names is given back.
      Add("nothing to take up", true, next);
      return;
    }
    next.request = from_.intent;
    next.place = from_.intent_place;
    Owner owner = from_.owners[from_.intent_place];
    if (Has(Fault::kOwnerIsNotAskedAfterRestart)) owner = kReserved;
    if (owner == kExecuting || owner == kEnded) {
      next.phase = kFollowing;
      Add("call is attached again", true, next);
      return;
    }
    if (owner != kReserved && protocol_.restore && !Has(Fault::kRestoreDoesNotRollBack)) {
      next.alive = true;
      next.effects = next.effects_in_snapshot;
      next.phase = kRolledBack;
      Add("sandbox is rolled back", true, next);
      return;
    }
    if (owner == kReserved || protocol_.rerun || protocol_.restore ||
        Has(Fault::kLostCallRunsAgainUnasked)) {
      BindElsewhere();
      return;
    }
    WriteResult(kInterrupted, "INTERRUPTED is written");
  }

  void BindElsewhere() {
    World next = from_;
    next.request = from_.intent;
    next.place = next.next_place++;
    next.owners[next.place] = kReserved;
    if (Has(Fault::kStartBeforeRebindIsWritten)) {
      next.phase = kBegun;
    } else {
      next.written = kRebind;
      next.written_place = next.place;
      next.phase = kRebindWritten;
    }
    Add("call is bound elsewhere", true, next);
  }

  void Admit(int c) {
    World next = from_;
    const uint8_t request = protocol_.requests[c];
    const bool undecided = from_.phase == kClaimed || from_.phase == kIntentWritten;
    if (undecided) {
      if (Has(Fault::kClaimIsNotExclusive) && request == from_.request && !from_.rival) {
        next.rival = true;
        next.clients[c] = kAttached;
        Add("request claims a claimed id", true, next);
      }
      return;  // waits for the decision
    }
    const uint8_t intent = SeenIntent();
    if (intent == 0) {
      if (from_.phase != kUnknown) return;
      next.phase = kClaimed;
      next.request = request;
      next.clients[c] = kAttached;
      Add("request claims the id", true, next);
      return;
    }
    if (intent != request && !Has(Fault::kRequestIsNotCompared)) {
      next.clients[c] = kDiverged;
      Add("request is refused: divergence", true, next);
    } else if (SeenResult() != kNoResult) {
      Answer(&next, protocol_, c, SeenResult());
      Add("request is answered from the journal", true, next);
    } else if (from_.phase != kUnknown) {
      next.clients[c] = kAttached;
      Add("request attaches", true, next);
    }
  }

  const World& from_;
  const Protocol& protocol_;
  std::vector<Step> steps_;
};

}  // namespace

std::vector<Step> Next(const World& world, const Protocol& protocol) {
  return Stepper(world, protocol).All();
}

std::string BrokenPromise(const World& world, const Protocol& protocol) {
  const bool again = protocol.rerun || protocol.restore;
  if (world.executions > 1 + (again ? world.losses : 0)) return "at most once";
  if (protocol.restore) {
    if (world.effects > 1) return "effects exactly once";
    const bool ended = world.result != kNoResult && world.result != kInterrupted;
    if (ended && world.alive && world.effects != 1) return "effects exactly once";
  }
  if (world.acknowledged != kNoResult && world.result != world.acknowledged) {
    return "acknowledged implies durable";
  }
  if (world.executions > 0 && world.intent == 0) return "acknowledged implies durable";
  if (world.conflict || world.stranger_answered) return "same id, same answer";
  return "";
}

Exploration Explore(const World& start, const Protocol& protocol) {
  struct Origin {
    const World* parent;
    std::string step;
  };
  Exploration result;
  std::map<World, Origin> seen;
  std::deque<const World*> open;
  open.push_back(&seen.emplace(start, Origin{nullptr, ""}).first->first);
  while (!open.empty()) {
    const World* world = open.front();
    open.pop_front();
    std::string broken = BrokenPromise(*world, protocol);
    std::vector<Step> steps = Next(*world, protocol);
    const bool answered = std::ranges::all_of(
        world->clients, [](Client client) { return client == kAnswered || client == kDiverged; });
    if (broken.empty() && steps.empty() && !answered) broken = "every request is answered";
    if (!broken.empty()) {
      result.broken = broken;
      for (; world != nullptr; world = seen.at(*world).parent) {
        result.trace.push_back(seen.at(*world).step);
      }
      std::reverse(result.trace.begin(), result.trace.end());
      break;
    }
    for (Step& step : steps) {
      ++result.steps;
      auto [at, fresh] = seen.emplace(step.world, Origin{world, step.name});
      if (fresh) open.push_back(&at->first);
    }
  }
  result.states = seen.size();
  return result;
}

}  // namespace reprise::model
