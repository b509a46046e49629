// Goal: sandboxd does what the model of the call protocol says. Method: what a test can cause from
// outside (requests, ends, deaths) leads from one quiet state of the model to the next, the daemon
// doing all that it does by itself in between; for each such state and each thing that can happen
// in it, the real journal and managers are led there over a scripted tier, and what can be seen of
// them is compared with the model after every step. Ways that ask the same deaths of the daemon are
// gone together, one call each.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <optional>
#include <thread>

#include "tests/model/call_protocol.h"
#include "tests/unit/sandboxd/node.h"

namespace reprise::sandboxd {
namespace {

using model::World;

constexpr int kExitCode = 7;
constexpr absl::Duration kPatience = absl::Seconds(20);

enum class Event {
  kFirstSends,
  kSecondSends,
  kDaemonDiesBeforeTheStart,  // instead of starting a call that the first client asks for
  kCallEnds,
  kOwnerDies,
  kDaemonDies,
  kMachineDies,
  kDaemonStarts,
};
constexpr Event kEvents[] = {
    Event::kFirstSends,  Event::kSecondSends, Event::kDaemonDiesBeforeTheStart,
    Event::kCallEnds,    Event::kOwnerDies,   Event::kDaemonDies,
    Event::kMachineDies, Event::kDaemonStarts};

World Quiet(World world, const model::Protocol& protocol, model::Phase until) {
  while (world.phase != until) {
    bool moved = false;
    for (model::Step& step : model::Next(world, protocol)) {
      if (!step.internal) continue;
      world = step.world;
      moved = true;
      break;
    }
    if (!moved) break;
  }
  return world;
}
constexpr model::Phase kUntilNothingMoves = static_cast<model::Phase>(0xff);

// The first step with that name that `client` (-1: nobody) takes.
const World* Find(const std::vector<model::Step>& steps, const World& from, std::string_view name,
                  int client) {
  for (const model::Step& step : steps) {
    if (step.name != name) continue;
    if (client < 0 || step.world.clients[client] != from.clients[client]) return &step.world;
  }
  return nullptr;
}

// The quiet state after an event, if it can happen.
std::optional<World> After(const World& world, Event event, const model::Protocol& protocol) {
  const std::vector<model::Step> steps = model::Next(world, protocol);
  const World* next = nullptr;
  const int client = event == Event::kSecondSends ? 1 : 0;
  switch (event) {
    case Event::kFirstSends:
    case Event::kSecondSends:
      next = Find(steps, world, "client sends", client);
      break;
    case Event::kDaemonDiesBeforeTheStart: {
      next = world.intent == 0 ? Find(steps, world, "client sends", 0) : nullptr;
      if (next == nullptr) return std::nullopt;
      World begun = Quiet(*next, protocol, model::kBegun);
      const std::vector<model::Step> deaths = model::Next(begun, protocol);
      next = Find(deaths, begun, "daemon dies", -1);
      return next == nullptr ? std::nullopt : std::optional<World>(*next);
    }
    case Event::kCallEnds:
      next = Find(steps, world, "call ends", -1);
      break;
    case Event::kOwnerDies:
      // Not while the daemon follows it: a tier tells of that death itself.
      if (world.phase != model::kDown) return std::nullopt;
      next = Find(steps, world, "owner dies", -1);
      // The scripted tier keeps its reservations.
      if (next != nullptr && next->losses == world.losses) return std::nullopt;
      break;
    case Event::kDaemonDies:
      next = Find(steps, world, "daemon dies", -1);
      break;
    case Event::kMachineDies:
      next = Find(steps, world, "machine dies", -1);
      break;
    case Event::kDaemonStarts:
      next = Find(steps, world, "daemon starts", -1);
      break;
  }
  if (next == nullptr) return std::nullopt;
  return Quiet(*next, protocol, kUntilNothingMoves);
}

// One call id of a real daemon, led through events.
class Subject {
 public:
  // `box`: its sandbox, where it is alone when it may be rolled back.
  Subject(Node* node, std::string id, std::string box, const model::Protocol& protocol)
      : node_(node), id_(std::move(id)), box_(std::move(box)), protocol_(protocol) {}

  // What this call does before the daemon goes, comes, or goes on.
  void Cause(Event event) {
    switch (event) {
      case Event::kFirstSends:
      case Event::kSecondSends: {
        const int client = event == Event::kSecondSends ? 1 : 0;
        streams_[client] = node_->calls().Execute(Request(client));
        break;
      }
      case Event::kDaemonDiesBeforeTheStart:
        node_->tier().LoseStarts(true);
        streams_[0] = node_->calls().Execute(Request(0));
        Await([&] { return node_->log().FindById(id_).ok(); });
        break;
      case Event::kCallEnds:
        node_->tier().End(id_, sandbox::OUTCOME_EXITED, kExitCode);
        break;
      case Event::kOwnerDies:
        node_->tier().Forget(id_);
        break;
      case Event::kMachineDies:
      case Event::kDaemonDies:
      case Event::kDaemonStarts:
        break;
    }
  }
  // The daemon went, or came.
  void OnDaemon(bool down) {
    down_ = down;
    if (!down) return;
    for (auto& stream : streams_) stream.reset();
  }

  void Compare(const World& before, const World& world) {
    Await([&] { return node_->tier().starts(id_) >= world.executions; });
    EXPECT_EQ(node_->tier().starts(id_), world.executions);
    if (down_) return;
    if (protocol_.restore && world.alive) {
      EXPECT_EQ(node_->tier().files_of(box_).size(), world.effects * (id_ + ";").size())
          << node_->tier().files_of(box_);
    }
    for (int client = 0; client < model::kClients; ++client) CompareClient(client, before, world);
    if (world.result != model::kNoResult) {
      Await([&] {
        auto found = node_->log().FindById(id_);
        return found.ok() && found->result.has_value();
      });
    }
    auto found = node_->log().FindById(id_);
    EXPECT_EQ(found.ok(), world.intent != 0) << found.status();
    if (!found.ok()) return;
    EXPECT_EQ(found->intent.request().argv(0), Argv(world.intent));
    EXPECT_EQ(found->result.has_value(), world.result != model::kNoResult);
    if (found->result.has_value()) CompareResult(found->result->result(), world.result);
  }

 private:
  static std::string Argv(uint8_t request) { return fmt::format("program{}", request); }
  sandbox::ExecuteRequest Request(int client) const {
    sandbox::ExecuteRequest request = Node::Request(id_);
    request.set_argv(0, Argv(protocol_.requests[client]));
    request.set_sandbox_id(box_);
    request.set_on_interrupt(protocol_.rerun     ? sandbox::INTERRUPT_POLICY_RERUN
                             : protocol_.restore ? sandbox::INTERRUPT_POLICY_RESTORE
                                                 : sandbox::INTERRUPT_POLICY_REPORT);
    return request;
  }

  void CompareClient(int client, const World& before, const World& world) {
    const model::Client state = world.clients[client];
    const bool over = state == model::kAnswered || state == model::kDiverged;
    if (streams_[client] == nullptr) return;
    if (!over) return;
    const Received got = Node::Read(streams_[client]);
    streams_[client].reset();
    if (state == model::kDiverged) {
      EXPECT_EQ(got.status.code(), absl::StatusCode::kFailedPrecondition) << got.status;
      return;
    }
    ASSERT_TRUE(got.status.ok()) << got.status;
    CompareResult(got.result, world.answers[client]);
    // What was there before it asked is said to be a replay.
    if (before.result != model::kNoResult) {
      EXPECT_TRUE(got.result.replayed());
    }
  }

  static void CompareResult(const sandbox::Result& result, uint8_t expected) {
    const bool interrupted = expected == model::kInterrupted;
    EXPECT_EQ(result.outcome(),
              interrupted ? sandbox::OUTCOME_INTERRUPTED : sandbox::OUTCOME_EXITED);
    EXPECT_EQ(result.exit_code(), interrupted ? 0 : kExitCode);
  }

  template <typename Condition>
  static void Await(const Condition& condition) {
    const absl::Time deadline = absl::Now() + kPatience;
    while (!condition() && absl::Now() < deadline) std::this_thread::yield();
    EXPECT_TRUE(condition()) << "nothing came of it";
  }

  Node* const node_;
  const std::string id_, box_;
  const model::Protocol& protocol_;
  std::array<std::shared_ptr<CallStream>, model::kClients> streams_;
  bool down_ = false;
};

struct Way {
  std::vector<Event> events;
};

// One way to every event in every quiet state.
std::vector<Way> Ways(const World& start, const model::Protocol& protocol) {
  std::map<World, std::vector<Event>> seen = {{start, {}}};
  std::deque<World> open = {start};
  std::vector<Way> ways;
  while (!open.empty()) {
    const World world = open.front();
    open.pop_front();
    for (Event event : kEvents) {
      std::optional<World> next = After(world, event, protocol);
      if (!next.has_value()) continue;
      std::vector<Event> events = seen.at(world);
      events.push_back(event);
      ways.push_back({events});
      if (seen.emplace(*next, events).second) open.push_back(*next);
    }
  }
  return ways;
}

bool IsDeath(Event event) {
  return event == Event::kDaemonDies || event == Event::kDaemonDiesBeforeTheStart ||
         event == Event::kMachineDies;
}

// What a way asks of the daemon that all calls share: its deaths and starts.
std::string SharedPart(const Way& way) {
  std::string shared;
  for (Event event : way.events) {
    if (IsDeath(event)) shared += event == Event::kMachineDies ? 'm' : 'd';
    if (event == Event::kDaemonStarts) shared += 's';
  }
  return shared;
}

// Leads one call along each of `ways`, which share the daemon's deaths and starts.
class Group {
 public:
  Group(const std::vector<Way>& ways, const World& start, const model::Protocol& protocol)
      : ways_(ways), protocol_(protocol), worlds_(ways.size(), start), at_(ways.size(), 0) {
    node_.MakeBox();
    for (size_t i = 0; i < ways.size(); ++i) {
      const std::string box = protocol_.restore ? fmt::format("box-{}", i) : "box";
      if (protocol_.restore) node_.MakeBox(box);
      subjects_.emplace_back(&node_, fmt::format("call-{}", i), box, protocol_);
    }
  }

  // Returns the steps that were compared.
  size_t Run(const std::string& shared) {
    Local();
    for (char event : shared) {
      if (testing::Test::HasFailure()) break;
      if (event == 's') {
        node_.Restart(fmt::format("boot-{}", boot_));
      } else {
        for (size_t i = 0; i < ways_.size(); ++i) subjects_[i].Cause(ways_[i].events[at_[i]]);
        boot_ += event == 'm';
        node_.Down();
        node_.tier().LoseStarts(false);
      }
      for (size_t i = 0; i < ways_.size(); ++i) {
        const World before = worlds_[i];
        Advance(i);
        subjects_[i].OnDaemon(event != 's');
        subjects_[i].Compare(before, worlds_[i]);
      }
      Local();
    }
    return steps_;
  }

 private:
  // Every call up to its next death or start of the daemon.
  void Local() {
    for (size_t i = 0; i < ways_.size() && !testing::Test::HasFailure(); ++i) {
      const std::vector<Event>& events = ways_[i].events;
      for (; at_[i] < events.size();) {
        const Event event = events[at_[i]];
        if (IsDeath(event) || event == Event::kDaemonStarts) break;
        SCOPED_TRACE(Trace(i));
        const World before = worlds_[i];
        subjects_[i].Cause(event);
        Advance(i);
        subjects_[i].Compare(before, worlds_[i]);
      }
    }
  }
  void Advance(size_t i) {
    worlds_[i] = *After(worlds_[i], ways_[i].events[at_[i]++], protocol_);
    ++steps_;
  }
  std::string Trace(size_t i) const {
    std::string trace = fmt::format("call-{}, event {} of:", i, at_[i]);
    for (Event event : ways_[i].events) trace += fmt::format(" {}", static_cast<int>(event));
    return trace;
  }

  const std::vector<Way>& ways_;
  const model::Protocol& protocol_;
  Node node_;
  std::vector<Subject> subjects_;
  std::vector<World> worlds_;
  std::vector<size_t> at_;  // next event of each way
  int boot_ = 1;
  size_t steps_ = 0;
};

void Conform(const model::Protocol& protocol) {
  World start;
  start.left = {.daemon_crashes = 1,
                .machine_crashes = 1,
                .owner_deaths = 1,
                .client_crashes = 0,
                .sends_again = 0};
  const std::vector<Way> ways = Ways(start, protocol);
  ASSERT_GT(ways.size(), 100u);
  std::map<std::string, std::vector<Way>> groups;
  for (const Way& way : ways) groups[SharedPart(way)].push_back(way);
  size_t steps = 0;
  for (const auto& [shared, group] : groups) {
    SCOPED_TRACE(fmt::format("deaths and starts: {}", shared));
    steps += Group(group, start, protocol).Run(shared);
    ASSERT_FALSE(testing::Test::HasFailure());
  }
  fmt::print("policy {} second client {}: {} transitions of the model, {} steps compared\n",
             protocol.rerun     ? "rerun"
             : protocol.restore ? "restore"
                                : "report",
             protocol.requests[1] == 1 ? "retries" : "asks otherwise", ways.size(), steps);
}

TEST(Conformance, OfReportedCalls) { Conform({.requests = {1, 1}}); }
TEST(Conformance, OfReportedCallsWithAStranger) { Conform({.requests = {1, 2}}); }
TEST(Conformance, OfCallsThatRunAgain) { Conform({.requests = {1, 1}, .rerun = true}); }
TEST(Conformance, OfCallsThatAreRolledBack) { Conform({.requests = {1, 1}, .restore = true}); }
TEST(Conformance, OfCallsThatAreRolledBackWithAStranger) {
  Conform({.requests = {1, 2}, .restore = true});
}

}  // namespace
}  // namespace reprise::sandboxd
