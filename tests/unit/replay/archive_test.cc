// Goal: a sealed trajectory in a file is the trajectory that was in the store, whatever is killed
// when, and damage is told with its place. Method: kills at every step of compacting and dropping;
// every byte of a file changed.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/failpoint.h"
#include "base/fd.h"
#include "replay/archive.h"
#include "replay/trajectory_log.h"
#include "tests/killed_child.h"

namespace reprise::replay {
namespace {

using ::testing::HasSubstr;
using Entry = journal::TrajectoryEntry;

constexpr char kId[] = "job/000000/0";

std::vector<Entry> Entries() {
  std::vector<Entry> entries(4);
  entries[0].mutable_start()->set_trajectory_id(kId);
  entries[0].mutable_start()->set_job_id("job");
  for (int id = 0; id < 500; ++id) entries[0].mutable_start()->add_prompt_ids(id % 7);
  for (int i = 1; i <= 2; ++i) {
    auto* sampled = entries[i].mutable_sampled();
    sampled->set_position(500 + 100 * (i - 1));
    for (int id = 0; id < 100; ++id) {
      sampled->add_ids(id);
      sampled->add_logprobs(-0.5f);
    }
  }
  entries[3].mutable_sealed()->set_status("completed");
  entries[3].mutable_sealed()->set_sealed_us(77);
  return entries;
}

journal::TrajectorySummary Numbers() {
  journal::TrajectorySummary summary;
  summary.set_tokens(700);
  summary.set_sealed_us(77);
  return summary;
}

std::string Text(const std::vector<Entry>& entries) {
  std::string text;
  for (const Entry& entry : entries) text += entry.SerializeAsString() + "|";
  return text;
}

// A log and its archive in one directory.
struct Opened {
  explicit Opened(const std::string& dir) {
    storage::StoreOptions options;
    options.path = dir + "/store";
    options.families = TrajectoryLogFamilies();
    store = std::move(*storage::Store::Open(options));
    auto opened = TrajectoryLog::Open(store.get(), dir + "/archive");
    EXPECT_TRUE(opened.ok()) << opened.status();
    log = *std::move(opened);
  }
  std::unique_ptr<storage::Store> store;
  std::unique_ptr<TrajectoryLog> log;
};

absl::Status Fill(TrajectoryLog* log) {
  std::vector<TrajectoryLog::Append> appends;
  for (const Entry& entry : Entries()) appends.push_back({kId, appends.size(), entry});
  return log->AppendAll(std::move(appends));
}

size_t Files(const std::string& dir) {
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(dir + "/archive"))
    ++files;
  return files;
}

TEST(Archive, HoldsWhatTheStoreHeld) {
  base::ScratchDir dir;
  {
    Opened opened(dir.path());
    ASSERT_TRUE(Fill(opened.log.get()).ok());
    ASSERT_TRUE(opened.log->Compact(kId, Numbers()).ok());
    ASSERT_TRUE(opened.log->Compact(kId, Numbers()).ok()) << "twice is once";
    EXPECT_EQ(Text(*opened.log->Read(kId)), Text(Entries()));
    EXPECT_EQ(Files(dir.path()), 1u);
  }
  Opened opened(dir.path());
  EXPECT_EQ(Text(*opened.log->Read(kId)), Text(Entries()));
  EXPECT_EQ(*opened.log->List("job"), std::vector<std::string>{kId});
  EXPECT_EQ(opened.log->Head(kId)->summary().sealed_us(), 77);
  EXPECT_LT(opened.log->Head(kId)->bytes(), Text(Entries()).size());
  // What is sealed takes no more entries, in a file as in the store.
  EXPECT_FALSE(opened.log->AppendAll({{kId, 0, Entries()[0]}}).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(opened.log->ForgetJob("job")));
  ASSERT_TRUE(opened.log->Drop(kId, "/there/record.json").ok());
  ASSERT_TRUE(opened.log->Drop(kId, "").ok()) << "twice is once";
  ASSERT_TRUE(absl::IsNotFound(opened.log->Read(kId).status()));
  EXPECT_THAT(std::string(opened.log->Read(kId).status().message()),
              HasSubstr("/there/record.json"));
  EXPECT_EQ(Files(dir.path()), 0u);
  EXPECT_EQ(opened.log->Head(kId)->summary().tokens(), 700u);
  EXPECT_FALSE(opened.log->AppendAll({{kId, 0, Entries()[0]}}).ok()) << "its id is used up";
  ASSERT_TRUE(opened.log->ForgetJob("job").ok());
  EXPECT_TRUE(absl::IsNotFound(opened.log->Head(kId).status()));
}

TEST(Archive, TakesOnlyWhatIsSealed) {
  base::ScratchDir dir;
  Opened opened(dir.path());
  ASSERT_TRUE(opened.log->AppendAll({{kId, 0, Entries()[0]}}).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(opened.log->Compact(kId, Numbers())));
  EXPECT_TRUE(absl::IsFailedPrecondition(opened.log->Drop(kId, "")));
  EXPECT_TRUE(absl::IsNotFound(opened.log->Compact("nobody", Numbers())));
  ASSERT_TRUE(opened.log->AppendAll({{kId, 1, Entries()[1]}}).ok());
}

TEST(Archive, EveryChangedByteIsTold) {
  const std::string file = EncodeArchive(Entries());
  ASSERT_TRUE(DecodeArchive(file, "f").ok());
  for (size_t at = 0; at < file.size(); ++at) {
    std::string damaged = file;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x40);
    const auto read = DecodeArchive(damaged, "the-file");
    ASSERT_FALSE(read.ok()) << at;
    EXPECT_THAT(std::string(read.status().message()), HasSubstr("the-file"));
  }
  for (size_t size = 0; size < file.size(); ++size)
    EXPECT_TRUE(absl::IsDataLoss(DecodeArchive(file.substr(0, size), "f").status())) << size;
  base::ScratchDir dir;
  Opened opened(dir.path());
  ASSERT_TRUE(Fill(opened.log.get()).ok() && opened.log->Compact(kId, Numbers()).ok());
  const std::string path = dir.path() + "/archive/" + opened.log->Head(kId)->file();
  std::vector<Entry> others = Entries();
  others[3].mutable_sealed()->set_status("another");
  ASSERT_TRUE(base::WriteFileAtomic(path, EncodeArchive(others)).ok());
  EXPECT_TRUE(absl::IsDataLoss(opened.log->Read(kId).status())) << "whole, and another's";
  std::filesystem::remove(path);
  EXPECT_THAT(std::string(opened.log->Read(kId).status().message()), HasSubstr(path));
}

TEST(ArchiveChild, DISABLED_CompactsAndDrops) {
  if (ChildDir().empty()) GTEST_SKIP() << "runs as a child of Archive.AKillAtAnyStepLosesNothing";
  Opened opened(ChildDir());
  ASSERT_TRUE(Fill(opened.log.get()).ok() && Report());
  ASSERT_TRUE(base::ArmFailPoint(ChildPoint()).ok());
  ASSERT_TRUE(opened.log->Compact(kId, Numbers()).ok() && Report());
  ASSERT_TRUE(opened.log->Drop(kId, "").ok());
}

// The bytes that the journal and the archive have on the disk.
uint64_t BytesOf(const std::string& directory) {
  uint64_t bytes = 0;
  for (const auto& file : std::filesystem::recursive_directory_iterator(directory)) {
    if (file.is_regular_file()) bytes += file.file_size();
  }
  return bytes;
}

TEST(Archive, TheJournalShrinksWithWhatIsCompactedAndTheArchiveWithWhatIsDropped) {
  constexpr int kTrajectories = 300, kIds = 20000;
  base::ScratchDir dir;
  Opened opened(dir.path());
  auto id_of = [](int i) { return fmt::format("job/{:06}/0", i); };
  uint64_t seed = 88172645463325252ull;  // xorshift: tokens that do not compress away
  uint64_t written = 0;
  for (int i = 0; i < kTrajectories; ++i) {
    std::vector<Entry> entries = Entries();
    entries[0].mutable_start()->set_trajectory_id(id_of(i));
    for (int id = 0; id < kIds; ++id) {
      seed ^= seed << 13;
      seed ^= seed >> 7;
      seed ^= seed << 17;
      entries[1].mutable_sampled()->add_ids(static_cast<int32_t>(seed % 129280));
    }
    std::vector<TrajectoryLog::Append> appends;
    for (const Entry& entry : entries) {
      written += entry.ByteSizeLong();
      appends.push_back({id_of(i), appends.size(), entry});
    }
    ASSERT_TRUE(opened.log->AppendAll(std::move(appends)).ok());
  }
  ASSERT_GT(BytesOf(dir.path() + "/store"), written);
  for (int i = 0; i < kTrajectories; ++i)
    ASSERT_TRUE(opened.log->Compact(id_of(i), Numbers()).ok());
  ASSERT_TRUE(opened.log->Reclaim().ok());
  const uint64_t journal = BytesOf(dir.path() + "/store"), files = BytesOf(dir.path() + "/archive");
  fmt::print("{} trajectories of {} bytes: journal {} bytes, files {} bytes\n", kTrajectories,
             written, journal, files);
  EXPECT_LT(journal, 1u << 20) << "tables and write-ahead logs have gone";
  EXPECT_LT(files, written);
  EXPECT_GT(files, written / 2) << "what was measured was there";
  EXPECT_EQ(opened.log->Read(id_of(7))->size(), Entries().size());
  for (int i = 0; i < kTrajectories; ++i) ASSERT_TRUE(opened.log->Drop(id_of(i), "").ok());
  ASSERT_TRUE(opened.log->ForgetJob("job").ok());
  ASSERT_TRUE(opened.log->Reclaim().ok());
  EXPECT_EQ(BytesOf(dir.path() + "/archive"), 0u);
  EXPECT_LT(BytesOf(dir.path() + "/store"), 256u << 10);
  EXPECT_TRUE(opened.log->List("")->empty());
}

TEST(Archive, AKillAtAnyStepLosesNothing) {
  struct Step {
    const char* point;
    bool there;    // the trajectory can be read
    size_t files;  // after the next start
  };
  for (const Step& step : {Step{"archive.written", true, 0}, Step{"archive.named", true, 1},
                           Step{"archive.forgotten", false, 0}}) {
    SCOPED_TRACE(step.point);
    base::ScratchDir dir;
    const ChildEnd end = RunChild("ArchiveChild.DISABLED_CompactsAndDrops", dir.path(),
                                  fmt::format("{}:1", step.point));
    ASSERT_TRUE(WIFSIGNALED(end.status) && WTERMSIG(end.status) == SIGKILL) << end.status;
    EXPECT_EQ(Files(dir.path()), 1u) << "before anybody tidies";
    Opened opened(dir.path());
    EXPECT_EQ(Files(dir.path()), step.files);
    if (!step.there) {
      EXPECT_TRUE(absl::IsNotFound(opened.log->Read(kId).status()));
      continue;
    }
    EXPECT_EQ(Text(*opened.log->Read(kId)), Text(Entries()));
    ASSERT_TRUE(opened.log->Compact(kId, Numbers()).ok());
    EXPECT_EQ(Text(*opened.log->Read(kId)), Text(Entries()));
    EXPECT_EQ(Files(dir.path()), 1u);
  }
}

}  // namespace
}  // namespace reprise::replay
