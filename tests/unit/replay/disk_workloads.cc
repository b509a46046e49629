#include "tests/unit/replay/disk_workloads.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "replay/call_log.h"
#include "replay/trajectory_log.h"

namespace reprise::replay {

using storage::SimDisk;

namespace {

constexpr int kCalls = 2, kEntries = 4, kValues = 4, kTrajectories = 2;  // of each life
constexpr char kOutput[] = "output of the call";

storage::StoreOptions Options(SimDisk* disk, std::vector<std::string> families) {
  storage::StoreOptions options;
  options.path = kJournalPath;
  options.families = std::move(families);
  options.env = disk;
  return options;
}

// Reads go on, whatever happened; who wrote was told.
void ExpectReadable(const absl::StatusOr<std::string>& wrong, storage::Store* store,
                    const World& world) {
  ASSERT_TRUE(wrong.ok()) << wrong.status();
  EXPECT_EQ(*wrong, "");
  if (!store->health().ok()) {
    EXPECT_FALSE(world.failure.ok()) << "nobody was told of " << store->health();
  }
}

class StoreWorkload final : public Workload {
 public:
  const char* name() const override { return "store"; }
  void Live(SimDisk* disk, int life, World* world) override {
    auto store = storage::Store::Open(Options(disk, {"a", "b"}));
    if (!world->Take(store.status(), false)) return;
    for (int i = life * kValues; i < (life + 1) * kValues; ++i) {
      const std::string key = fmt::format("key-{}", i), value = fmt::format("value of {}", i);
      storage::Batch batch;
      batch.Put(i % 2, key, value);
      if (world->Take((*store)->Commit(std::move(batch)))) world->values[key] = value;
    }
    // What was written is rewritten: tables, and logs that go.
    world->Take((*store)->Reclaim());
    ExpectReadable(WrongIn(store->get(), *world), store->get(), *world);
  }
  absl::StatusOr<std::string> Wrong(SimDisk* disk, const World& world) override {
    auto store = storage::Store::Open(Options(disk, {"a", "b"}));
    if (!store.ok()) return store.status();
    return WrongIn(store->get(), world);
  }

 private:
  static absl::StatusOr<std::string> WrongIn(storage::Store* store, const World& world) {
    for (const auto& [key, value] : world.values) {
      const int number = std::stoi(key.substr(4));
      auto found = store->Get(number % 2, key);
      if (absl::IsNotFound(found.status())) return key;
      if (!found.ok()) return found.status();
      if (*found != value) return "content of " + key;
    }
    return "";
  }
};

std::string CallId(int i) { return fmt::format("call-{:03}", i); }

// A daemon that runs a call once its INTENT is durable, and never one that has an INTENT already.
class CallWorkload final : public Workload {
 public:
  const char* name() const override { return "call log"; }
  void Live(SimDisk* disk, int life, World* world) override {
    auto store = storage::Store::Open(Options(disk, CallLogFamilies()));
    if (!world->Take(store.status(), false)) return;
    auto log = CallLog::Open(store->get());
    if (!world->Take(log.status(), false)) return;
    auto running = (*log)->Running();
    if (world->Take(running.status(), false)) {
      for (const journal::CallIntent& intent : *running)
        world->Take((*log)->Complete(intent.call_id(), Ended(sandbox::OUTCOME_INTERRUPTED, 0)));
    }
    // Its client sends everything that it has no answer to, again and again.
    for (int i = 0; i < (life + 1) * kCalls; ++i) {
      if (!world->completed.contains(i)) Send(log->get(), i, world);
    }
    ExpectReadable(WrongIn(log->get(), *world), store->get(), *world);
  }
  absl::StatusOr<std::string> Wrong(SimDisk* disk, const World& world) override {
    for (const auto& [i, times] : world.executed) {
      if (times > 1) return CallId(i) + " ran twice";
    }
    auto store = storage::Store::Open(Options(disk, CallLogFamilies()));
    if (!store.ok()) return store.status();
    auto log = CallLog::Open(store->get());
    if (!log.ok()) return log.status();
    return WrongIn(log->get(), world);
  }

 private:
  static sandbox::Result Ended(sandbox::Outcome outcome, int exit_code) {
    sandbox::Result result;
    result.set_outcome(outcome);
    result.set_exit_code(exit_code);
    return result;
  }
  static sandbox::ExecuteRequest Request(int i) {
    sandbox::ExecuteRequest request;
    request.set_call_id(CallId(i));
    request.add_argv(CallId(i));
    return request;
  }
  static void Send(CallLog* log, int i, World* world) {
    auto found = log->Find(Request(i));
    if (found.ok()) {
      // Answered from the journal; or its INTENT is there and its end could not be written.
      if (found->result.has_value()) world->completed.insert(i);
      return;
    }
    if (!absl::IsNotFound(found.status())) {
      world->Take(found.status(), false);
      return;
    }
    journal::CallIntent intent;
    intent.set_call_id(CallId(i));
    intent.set_sandbox_id("box");
    *intent.mutable_request() = Request(i);
    if (!world->Take(log->Begin(std::move(intent)).status())) return;
    world->begun.insert(i);
    ++world->executed[i];
    world->Take(log->AppendOutput(CallId(i), sandbox::STREAM_STDOUT, 0, kOutput, 1 << 20));
    if (world->Take(log->Complete(CallId(i), Ended(sandbox::OUTCOME_EXITED, i))))
      world->completed.insert(i);
  }
  static absl::StatusOr<std::string> WrongIn(CallLog* log, const World& world) {
    for (int i : world.begun) {
      auto found = log->FindById(CallId(i));
      if (absl::IsNotFound(found.status())) return "INTENT of " + CallId(i);
      if (!found.ok()) return found.status();
      if (found->intent.request().argv(0) != CallId(i)) return "request of " + CallId(i);
      if (!world.completed.contains(i)) continue;
      if (!found->result.has_value()) return "RESULT of " + CallId(i);
      if (found->result->result().outcome() == sandbox::OUTCOME_INTERRUPTED) continue;
      if (found->result->result().exit_code() != i) return "exit code of " + CallId(i);
      std::string output;
      absl::Status read = log->ReadOutput(CallId(i), [&](const journal::CallOutput& chunk) {
        output += chunk.data();
        return absl::OkStatus();
      });
      if (!read.ok()) return read;
      if (output != kOutput) return "output of " + CallId(i);
    }
    return "";
  }
};

class TrajectoryWorkload final : public Workload {
 public:
  const char* name() const override { return "token log"; }
  void Live(SimDisk* disk, int, World* world) override {
    auto store = storage::Store::Open(Options(disk, TrajectoryLogFamilies()));
    if (!world->Take(store.status(), false)) return;
    auto log = TrajectoryLog::Open(store->get());
    if (!world->Take(log.status(), false)) return;
    auto entries = (*log)->Read(kId);
    const int first = entries.ok() ? static_cast<int>(entries->size()) : 0;
    for (int i = first; i < first + kEntries; ++i) {
      TrajectoryLog::Append append{kId, static_cast<uint64_t>(i), Entry(i)};
      if (world->Take((*log)->AppendAll({append}))) world->entries = i + 1;
    }
    ExpectReadable(WrongIn(log->get(), *world), store->get(), *world);
  }
  absl::StatusOr<std::string> Wrong(SimDisk* disk, const World& world) override {
    auto store = storage::Store::Open(Options(disk, TrajectoryLogFamilies()));
    if (!store.ok()) return store.status();
    auto log = TrajectoryLog::Open(store->get());
    if (!log.ok()) return log.status();
    return WrongIn(log->get(), world);
  }

 private:
  static constexpr char kId[] = "job/0/0";
  static journal::TrajectoryEntry Entry(int i) {
    journal::TrajectoryEntry entry;
    entry.mutable_sampled()->set_position(static_cast<uint64_t>(i));
    for (int token = 0; token < 50; ++token) entry.mutable_sampled()->add_ids(i * 1000 + token);
    return entry;
  }
  static absl::StatusOr<std::string> WrongIn(TrajectoryLog* log, const World& world) {
    auto entries = log->Read(kId);
    if (absl::IsNotFound(entries.status())) return world.entries == 0 ? "" : "every entry";
    if (!entries.ok()) return entries.status();
    if (static_cast<int>(entries->size()) < world.entries)
      return fmt::format("entry {}", entries->size());
    for (int i = 0; i < world.entries; ++i) {
      if ((*entries)[i].SerializeAsString() != Entry(i).SerializeAsString())
        return fmt::format("content of entry {}", i);
    }
    return "";
  }
};

// Trajectories that are written, sealed, moved into files; every third is dropped again.
class ArchiveWorkload final : public Workload {
 public:
  const char* name() const override { return "archive"; }
  void Live(SimDisk* disk, int life, World* world) override {
    auto store = storage::Store::Open(Options(disk, TrajectoryLogFamilies()));
    if (!world->Take(store.status(), false)) return;
    auto log = TrajectoryLog::Open(store->get(), kArchivePath, disk);
    if (!world->Take(log.status(), false)) return;
    for (int i = life * kTrajectories; i < (life + 1) * kTrajectories; ++i) {
      std::vector<TrajectoryLog::Append> appends;
      for (const journal::TrajectoryEntry& entry : Entries(i))
        appends.push_back({Id(i), appends.size(), entry});
      if (world->Take((*log)->AppendAll(std::move(appends)))) world->sealed.insert(i);
    }
    // Of this life, and what the last one did not come to. A file that cannot be written is no end
    // of the journal: others go on.
    for (int i : world->sealed) {
      if (world->Take((*log)->Compact(Id(i), Numbers(i)), false)) world->compacted.insert(i);
      if (i % 3 != 0 || !world->compacted.contains(i)) continue;
      world->dropping.insert(i);
      if (world->Take((*log)->Drop(Id(i), ""), false)) world->dropped.insert(i);
    }
    world->Take((*log)->Reclaim(), false);
    ExpectReadable(WrongIn(log->get(), *world), store->get(), *world);
  }
  absl::StatusOr<std::string> Wrong(SimDisk* disk, const World& world) override {
    auto store = storage::Store::Open(Options(disk, TrajectoryLogFamilies()));
    if (!store.ok()) return store.status();
    auto log = TrajectoryLog::Open(store->get(), kArchivePath, disk);
    if (!log.ok()) return log.status();
    absl::StatusOr<std::string> wrong = WrongIn(log->get(), world);
    if (!wrong.ok() || !wrong->empty()) return wrong;
    // Nothing lies there that nobody names.
    std::set<std::string> named;
    auto ids = (*log)->List("");
    if (!ids.ok()) return ids.status();
    for (const std::string& id : *ids) {
      auto head = (*log)->Head(id);
      if (!head.ok()) return head.status();
      if (!head->file().empty()) named.insert(head->file());
    }
    for (const std::string& file : disk->Files(kArchivePath)) {
      if (!named.contains(file)) return file + " is nobody's";
    }
    return "";
  }

 private:
  static std::string Id(int i) { return fmt::format("job/{:06}/0", i); }
  static journal::TrajectorySummary Numbers(int i) {
    journal::TrajectorySummary summary;
    summary.set_tokens(static_cast<uint64_t>(i) + 1);
    return summary;
  }
  static std::vector<journal::TrajectoryEntry> Entries(int i) {
    std::vector<journal::TrajectoryEntry> entries(3);
    entries[0].mutable_start()->set_trajectory_id(Id(i));
    for (int id = 0; id < 100; ++id) entries[1].mutable_sampled()->add_ids(i * 1000 + id * id);
    entries[2].mutable_sealed()->set_status("completed");
    return entries;
  }
  static absl::StatusOr<std::string> WrongIn(TrajectoryLog* log, const World& world) {
    for (int i : world.sealed) {
      auto head = log->Head(Id(i));
      if (absl::IsNotFound(head.status())) return Id(i);
      if (!head.ok()) return head.status();
      if (world.compacted.contains(i) && head->summary().tokens() != Numbers(i).tokens())
        return "head of " + Id(i);
      auto entries = log->Read(Id(i));
      if (absl::IsNotFound(entries.status())) {
        if (!world.dropping.contains(i)) return "entries of " + Id(i);
        continue;
      }
      if (!entries.ok()) return entries.status();
      if (world.dropped.contains(i)) return Id(i) + " is back";
      const std::vector<journal::TrajectoryEntry> expected = Entries(i);
      if (entries->size() != expected.size()) return "number of entries of " + Id(i);
      for (size_t k = 0; k < expected.size(); ++k) {
        if ((*entries)[k].SerializeAsString() != expected[k].SerializeAsString())
          return fmt::format("content of entry {} of {}", k, Id(i));
      }
    }
    return "";
  }
};

}  // namespace

bool World::Take(const absl::Status& status, bool writes) {
  if (status.ok()) {
    EXPECT_TRUE(failure.ok() || !writes) << "taken after: " << failure;
    return true;
  }
  if (failure.ok()) failure = status;
  return false;
}

std::vector<std::unique_ptr<Workload>> MakeWorkloads() {
  std::vector<std::unique_ptr<Workload>> all;
  all.push_back(std::make_unique<StoreWorkload>());
  all.push_back(std::make_unique<CallWorkload>());
  all.push_back(std::make_unique<TrajectoryWorkload>());
  all.push_back(std::make_unique<ArchiveWorkload>());
  return all;
}

Image ReadImage(SimDisk* disk) {
  Image image;
  for (const char* directory : {kJournalPath, kArchivePath}) {
    if (!disk->FileExists(directory).ok()) continue;
    for (const std::string& file : disk->Files(directory)) {
      const std::string path = fmt::format("{}/{}", directory, file);
      if (file != "LOCK") image[path] = disk->Read(path);
    }
  }
  return image;
}

void WriteImage(const Image& image, SimDisk* disk) {
  for (const char* directory : {kJournalPath, kArchivePath})
    EXPECT_TRUE(disk->CreateDirIfMissing(directory).ok());
  for (const auto& [path, content] : image) disk->Write(path, content);
}

}  // namespace reprise::replay
