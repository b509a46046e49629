// Goal: whatever a disk does, nothing that was acknowledged is lost, nothing is taken after a
// failed write, what is there stays readable, and damage is an error that names the file. Method: a
// scripted workload of the call log and the trajectory log, over two lives of the process, on a
// simulated disk; one fault at every operation that it can befall; one flipped bit all over the
// files. Prints the matrix.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <set>

#include "replay/call_log.h"
#include "replay/trajectory_log.h"
#include "tests/unit/storage/sim_disk.h"

namespace reprise::replay {
namespace {

using storage::DiskFault;
using storage::SimDisk;

constexpr char kPath[] = "/journal";
constexpr int kCalls = 2, kEntries = 4;  // of each of two lives
constexpr char kOutput[] = "output of the call";

storage::StoreOptions Options(SimDisk* disk, std::vector<std::string> families) {
  storage::StoreOptions options;
  options.path = kPath;
  options.families = std::move(families);
  options.env = disk;
  return options;
}

// What was acknowledged, and whether the rest of the session behaved.
struct Acknowledged {
  std::set<int> begun, completed;
  int entries = 0;
  absl::Status failure;  // the first

  // Counts an answer; a write that is taken after a failed one is wrong.
  bool Take(const absl::Status& status, bool writes = true) {
    if (status.ok()) {
      EXPECT_TRUE(failure.ok() || !writes) << "taken after: " << failure;
      return true;
    }
    if (failure.ok()) failure = status;
    return false;
  }
};

void ExpectWhole(const absl::StatusOr<std::string>& missing) {
  ASSERT_TRUE(missing.ok()) << missing.status();
  EXPECT_EQ(*missing, "");
}

std::string CallId(int i) { return fmt::format("call-{:03}", i); }

// One life of a process that writes.
class Workload {
 public:
  virtual ~Workload() = default;
  virtual void Live(SimDisk* disk, int life, Acknowledged* acknowledged) = 0;
  // The first thing that was acknowledged and does not come back. An error is a reported one.
  virtual absl::StatusOr<std::string> Missing(SimDisk* disk, const Acknowledged& acknowledged) = 0;
};

class CallWorkload final : public Workload {
 public:
  void Live(SimDisk* disk, int life, Acknowledged* acknowledged) override {
    auto store = storage::Store::Open(Options(disk, CallLogFamilies()));
    if (!acknowledged->Take(store.status(), false)) return;
    auto log = CallLog::Open(store->get());
    if (!acknowledged->Take(log.status(), false)) return;
    for (int i = life * kCalls; i < (life + 1) * kCalls; ++i) {
      journal::CallIntent intent;
      intent.set_call_id(CallId(i));
      intent.set_sandbox_id("box");
      intent.mutable_request()->set_call_id(CallId(i));
      intent.mutable_request()->add_argv(CallId(i));
      if (!acknowledged->Take((*log)->Begin(std::move(intent)).status())) continue;
      acknowledged->begun.insert(i);
      acknowledged->Take(
          (*log)->AppendOutput(CallId(i), sandbox::STREAM_STDOUT, 0, kOutput, 1 << 20));
      sandbox::Result result;
      result.set_outcome(sandbox::OUTCOME_EXITED);
      result.set_exit_code(i);
      if (acknowledged->Take((*log)->Complete(CallId(i), result))) {
        acknowledged->completed.insert(i);
      }
    }
    // Reads go on, whatever happened.
    ExpectWhole(MissingIn(log->get(), *acknowledged));
    if (!acknowledged->failure.ok()) {
      EXPECT_EQ((*store)->health(), acknowledged->failure);
    }
  }

  absl::StatusOr<std::string> Missing(SimDisk* disk, const Acknowledged& acknowledged) override {
    auto store = storage::Store::Open(Options(disk, CallLogFamilies()));
    if (!store.ok()) return store.status();
    auto log = CallLog::Open(store->get());
    if (!log.ok()) return log.status();
    return MissingIn(log->get(), acknowledged);
  }

 private:
  static absl::StatusOr<std::string> MissingIn(CallLog* log, const Acknowledged& acknowledged) {
    for (int i : acknowledged.begun) {
      auto found = log->FindById(CallId(i));
      if (absl::IsNotFound(found.status())) return "INTENT of " + CallId(i);
      if (!found.ok()) return found.status();
      if (found->intent.request().argv(0) != CallId(i)) return "request of " + CallId(i);
      if (!acknowledged.completed.contains(i)) continue;
      if (!found->result.has_value()) return "RESULT of " + CallId(i);
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
  void Live(SimDisk* disk, int life, Acknowledged* acknowledged) override {
    auto store = storage::Store::Open(Options(disk, TrajectoryLogFamilies()));
    if (!acknowledged->Take(store.status(), false)) return;
    auto log = TrajectoryLog::Open(store->get());
    if (!acknowledged->Take(log.status(), false)) return;
    const int first = life == 0 ? 0 : Length(log->get());
    for (int i = first; i < first + kEntries; ++i) {
      TrajectoryLog::Append append{"job/0/0", static_cast<uint64_t>(i), Entry(i)};
      if (acknowledged->Take((*log)->AppendAll({append}))) acknowledged->entries = i + 1;
    }
    ExpectWhole(MissingIn(log->get(), *acknowledged));
    if (!acknowledged->failure.ok()) {
      EXPECT_EQ((*store)->health(), acknowledged->failure);
    }
  }

  absl::StatusOr<std::string> Missing(SimDisk* disk, const Acknowledged& acknowledged) override {
    auto store = storage::Store::Open(Options(disk, TrajectoryLogFamilies()));
    if (!store.ok()) return store.status();
    auto log = TrajectoryLog::Open(store->get());
    if (!log.ok()) return log.status();
    return MissingIn(log->get(), acknowledged);
  }

 private:
  static journal::TrajectoryEntry Entry(int i) {
    journal::TrajectoryEntry entry;
    entry.mutable_sampled()->set_position(static_cast<uint64_t>(i));
    for (int token = 0; token < 50; ++token) entry.mutable_sampled()->add_ids(i * 1000 + token);
    return entry;
  }
  static int Length(TrajectoryLog* log) {
    auto entries = log->Read("job/0/0");
    return entries.ok() ? static_cast<int>(entries->size()) : 0;
  }
  static absl::StatusOr<std::string> MissingIn(TrajectoryLog* log,
                                               const Acknowledged& acknowledged) {
    auto entries = log->Read("job/0/0");
    if (absl::IsNotFound(entries.status())) {
      return acknowledged.entries == 0 ? "" : "every entry";
    }
    if (!entries.ok()) return entries.status();
    if (static_cast<int>(entries->size()) < acknowledged.entries) {
      return fmt::format("entry {}", entries->size());
    }
    for (int i = 0; i < acknowledged.entries; ++i) {
      if ((*entries)[i].SerializeAsString() != Entry(i).SerializeAsString()) {
        return fmt::format("content of entry {}", i);
      }
    }
    return "";
  }
};

// The files of a store, by name, but for its lock.
using Image = std::map<std::string, std::string>;

Image ReadImage(SimDisk* disk) {
  Image image;
  for (const std::string& file : disk->Files(kPath)) {
    if (file != "LOCK") image[file] = disk->Read(fmt::format("{}/{}", kPath, file));
  }
  return image;
}

void WriteImage(const Image& image, SimDisk* disk) {
  for (const auto& [file, content] : image) {
    disk->Write(fmt::format("{}/{}", kPath, file), content);
  }
}

struct Row {
  int points = 0, noticed = 0, lost = 0;
};

// The fault at every point of the second life: opening with recovery, working, closing.
Row InjectEverywhere(Workload* workload, DiskFault fault, int life) {
  Row row;
  Acknowledged before;
  Image image;
  if (life == 1) {
    SimDisk disk;
    EXPECT_TRUE(disk.CreateDirIfMissing(kPath).ok());
    workload->Live(&disk, 0, &before);
    EXPECT_EQ(before.failure, absl::OkStatus());
    image = ReadImage(&disk);
  }
  for (int at = 0;; ++at) {
    SCOPED_TRACE(fmt::format("point {}", at));
    SimDisk disk;
    EXPECT_TRUE(disk.CreateDirIfMissing(kPath).ok());
    WriteImage(image, &disk);
    Acknowledged acknowledged = before;
    disk.Arm(fault, at);
    workload->Live(&disk, life, &acknowledged);
    if (!disk.fired()) return row;
    ++row.points;
    if (!acknowledged.failure.ok()) {
      ++row.noticed;
      const std::string message(acknowledged.failure.message());
      EXPECT_NE(message.find(kPath), std::string::npos) << message;
      EXPECT_EQ(acknowledged.failure.code(), fault == DiskFault::kNoSpace
                                                 ? absl::StatusCode::kResourceExhausted
                                                 : absl::StatusCode::kDataLoss)
          << message;
    }
    disk.Restart();
    auto missing = workload->Missing(&disk, acknowledged);
    ExpectWhole(missing);
    row.lost += !missing.ok() || !missing->empty();
    if (testing::Test::HasFailure()) return row;
  }
}

class DiskTest : public testing::TestWithParam<bool> {
 protected:
  std::unique_ptr<Workload> Make() const {
    if (GetParam()) return std::make_unique<CallWorkload>();
    return std::make_unique<TrajectoryWorkload>();
  }
  const char* name() const { return GetParam() ? "calls" : "trajectories"; }
};

TEST_P(DiskTest, NothingAcknowledgedIsLostWhateverFailsWhereverItFails) {
  struct Kind {
    DiskFault fault;
    const char* name;
  };
  fmt::print("{:13} {:32} {:>7} {:>8} {:>5}\n", "journal", "fault", "points", "noticed", "lost");
  for (const Kind& kind :
       {Kind{DiskFault::kWriteError, "write error, torn"}, Kind{DiskFault::kNoSpace, "no space"},
        Kind{DiskFault::kSyncError, "sync error"},
        Kind{DiskFault::kRenameError, "create or rename error"}, Kind{DiskFault::kKilled, "killed"},
        Kind{DiskFault::kPowerCut, "power cut"},
        Kind{DiskFault::kPowerCutTorn, "power cut, torn tail"}}) {
    for (int life : {0, 1}) {
      SCOPED_TRACE(fmt::format("{}, life {}", kind.name, life));
      const Row row = InjectEverywhere(Make().get(), kind.fault, life);
      fmt::print("{:13} {:32} {:7} {:8} {:5}\n", name(),
                 fmt::format("{}, {}", kind.name, life == 0 ? "new" : "restarted"), row.points,
                 row.noticed, row.lost);
      EXPECT_GT(row.points, 3);
      EXPECT_EQ(row.lost, 0);
    }
  }
}

// Every bit that is flipped is reported with its file, or changes nothing.
TEST_P(DiskTest, AFlippedBitIsReportedWithItsFileOrChangesNothing) {
  constexpr size_t kPlaces = 24;  // of each file, besides its first and last bytes
  std::unique_ptr<Workload> workload = Make();
  SimDisk disk;
  ASSERT_TRUE(disk.CreateDirIfMissing(kPath).ok());
  Acknowledged acknowledged;
  workload->Live(&disk, 0, &acknowledged);
  workload->Live(&disk, 1, &acknowledged);  // the first life's log is tables now
  ASSERT_EQ(acknowledged.failure, absl::OkStatus());
  const Image image = ReadImage(&disk);
  int flips = 0, reported = 0, with_offset = 0;
  for (const auto& [file, content] : image) {
    const bool log = file.ends_with(".log") || file.starts_with("MANIFEST");
    if (!log && !file.ends_with(".sst")) continue;
    for (size_t byte = 0; byte < content.size(); ++byte) {
      const bool edge = byte < 16 || byte + 16 >= content.size();
      if (!edge && byte % (content.size() / kPlaces + 1) != 0) continue;
      SCOPED_TRACE(fmt::format("{} of {} bytes, byte {}", file, content.size(), byte));
      SimDisk damaged;
      ASSERT_TRUE(damaged.CreateDirIfMissing(kPath).ok());
      WriteImage(image, &damaged);
      damaged.Flip(fmt::format("{}/{}", kPath, file), byte, static_cast<uint8_t>(1 << (byte % 8)));
      ++flips;
      auto missing = workload->Missing(&damaged, acknowledged);
      if (missing.ok()) {
        EXPECT_EQ(*missing, "") << "lost in silence";
        EXPECT_FALSE(log) << "a log has no byte without a meaning";
        continue;
      }
      ++reported;
      const std::string message(missing.status().message());
      EXPECT_EQ(missing.status().code(), absl::StatusCode::kDataLoss) << message;
      EXPECT_NE(message.find(file), std::string::npos) << message;
      with_offset += message.find("byte ") != std::string::npos ||
                     message.find("offset ") != std::string::npos;
    }
  }
  fmt::print("{:13} flipped bits {:5}, reported {:5}, with offset {:5}, lost in silence 0\n",
             name(), flips, reported, with_offset);
  EXPECT_GT(reported, 100);
}

INSTANTIATE_TEST_SUITE_P(Journals, DiskTest, testing::Bool(), [](const auto& info) {
  return info.param ? std::string("Calls") : std::string("Trajectories");
});

}  // namespace
}  // namespace reprise::replay
