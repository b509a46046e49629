// The three tiers together: where a read is answered from, what is verified, what is evicted, what
// survives a kill, and that simultaneous readers fetch once.
#include "storage/chunk_store.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <thread>
#include <vector>

#include "base/failpoint.h"
#include "base/fd.h"
#include "tests/unit/storage/chunk_support.h"

namespace reprise::storage {
namespace {

namespace fs = std::filesystem;

class ChunkStoreTest : public ::testing::Test {
 protected:
  std::unique_ptr<ChunkStore> Open(std::shared_ptr<ColdTier> cold = nullptr,
                                   uint64_t disk = 1ull << 30, uint64_t memory = 1 << 20) {
    auto store = ChunkStore::Open({scratch_.path() + "/chunks", disk, memory, std::move(cold)});
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }
  static ChunkId Put(ChunkStore* store, const std::string& content) {
    auto writer = store->Begin();
    EXPECT_TRUE(writer.ok());
    absl::StatusOr<ChunkId> id = (*writer)->Put(content);
    EXPECT_TRUE(id.ok()) << id.status();
    EXPECT_TRUE((*writer)->Commit().ok());
    return *id;
  }
  // The file of a chunk, "" when there is none.
  std::string FileOf(const ChunkId& id, const std::string& half) const {
    const std::string hex = id.Hex();
    const std::string path =
        scratch_.path() + "/chunks/" + half + "/" + hex.substr(0, 1) + "/" + hex;
    return fs::exists(path) ? path : "";
  }
  static void Flip(const std::string& path) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(20);
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(20);
    file.put(byte);
  }
  base::ScratchDir scratch_{"reprise-chunks"};
};

TEST_F(ChunkStoreTest, AnswersFromDiskThenFromMemory) {
  const std::string content = Noise(1, 5000);
  const ChunkId id = Put(Open().get(), content);
  auto store = Open();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(**store->Get(id), content);
  EXPECT_EQ(store->counters().disk_hits, 1u);
  EXPECT_EQ(store->counters().memory_hits, 2u);
}

TEST_F(ChunkStoreTest, StoresTheSameContentOnce) {
  auto store = Open();
  auto writer = *store->Begin();
  ASSERT_TRUE(writer->Put(Noise(1, 5000)).ok());
  ASSERT_TRUE(writer->Put(Noise(1, 5000)).ok());
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_EQ(writer->new_chunks(), 1u);
  auto again = *store->Begin();
  ASSERT_TRUE(again->Put(Noise(1, 5000)).ok());
  ASSERT_TRUE(again->Commit().ok());
  EXPECT_EQ(again->new_chunks(), 0u);
}

TEST_F(ChunkStoreTest, ABatchThatIsNotCommittedLeavesNothing) {
  auto store = Open();
  absl::StatusOr<ChunkId> id;
  {
    auto writer = *store->Begin();
    id = writer->Put(Noise(1, 5000));
    ASSERT_TRUE(id.ok());
  }
  EXPECT_EQ(store->Get(*id).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(fs::is_empty(scratch_.path() + "/chunks/kept/staging"));
}

TEST_F(ChunkStoreTest, AKilledWriterLeavesWholeChunksOnly) {
  for (const char* point : {"objects.synced:1", "objects.renamed:1", "objects.renamed:3"}) {
    Open();
    const pid_t child = fork();
    if (child == 0) {
      if (!base::ArmFailPoint(point).ok()) _exit(1);
      auto store = ChunkStore::Open({scratch_.path() + "/chunks", 1 << 30, 0, nullptr});
      auto writer = (*store)->Begin();
      for (uint32_t i = 0; i < 4; ++i) (void)(*writer)->Put(Noise(i, 9000));
      (void)(*writer)->Commit();
      _exit(2);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << point;
    auto store = Open();
    EXPECT_TRUE(fs::is_empty(scratch_.path() + "/chunks/kept/staging")) << point;
    for (uint32_t i = 0; i < 4; ++i) {
      const std::string content = Noise(i, 9000);
      const ChunkId id = HashChunk(content);
      if (FileOf(id, "kept").empty()) continue;
      EXPECT_EQ(**store->Get(id), content);
    }
    for (uint32_t i = 0; i < 4; ++i) Put(store.get(), Noise(i, 9000));
    for (uint32_t i = 0; i < 4; ++i) EXPECT_TRUE(store->Get(HashChunk(Noise(i, 9000))).ok());
    fs::remove_all(scratch_.path() + "/chunks");
  }
}

TEST_F(ChunkStoreTest, AnotherProcessDoesNotTakeALiveBatchAway) {
  auto store = Open();
  auto writer = *store->Begin();
  const ChunkId id = *writer->Put(Noise(1, 5000));
  auto other = Open();
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_TRUE(other->Get(id).ok());
}

TEST_F(ChunkStoreTest, DamageOnDiskIsAnErrorThatNamesTheChunkAndItsPlace) {
  const ChunkId id = Put(Open().get(), Noise(1, 5000));
  Flip(FileOf(id, "kept"));
  auto store = Open();
  const absl::Status status = store->Get(id).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(std::string(status.message()).find(id.Hex()), std::string::npos) << status;
  EXPECT_NE(std::string(status.message()).find("/chunks/kept"), std::string::npos) << status;
  EXPECT_EQ(store->counters().lost, 1u);
}

TEST_F(ChunkStoreTest, FetchesFromTheColdTierAndKeepsACopy) {
  auto cold = std::make_shared<FakeCold>();
  const std::string content = Noise(1, 5000);
  const ChunkId id = Put(Open(cold).get(), content);
  fs::remove_all(scratch_.path() + "/chunks");
  EXPECT_EQ(**Open(cold)->Get(id), content);
  EXPECT_EQ(cold->gets, 1);
  EXPECT_EQ(**Open(cold)->Get(id), content);
  EXPECT_EQ(cold->gets, 1) << "the copy on disk was not used";
}

TEST_F(ChunkStoreTest, ADamagedCopyIsFetchedAgain) {
  auto cold = std::make_shared<FakeCold>();
  const std::string content = Noise(1, 5000);
  const ChunkId id = Put(Open(cold).get(), content);
  Flip(FileOf(id, "copies"));
  auto store = Open(cold);
  EXPECT_EQ(**store->Get(id), content);
  EXPECT_EQ(store->counters().damaged, 1u);
  EXPECT_EQ(cold->gets, 1);
  EXPECT_EQ(**Open(cold)->Get(id), content);
  EXPECT_EQ(cold->gets, 1);
}

TEST_F(ChunkStoreTest, DamageInTheColdTierIsNeverGivenOut) {
  auto cold = std::make_shared<FakeCold>();
  const ChunkId id = Put(Open(cold).get(), Noise(1, 5000));
  fs::remove_all(scratch_.path() + "/chunks");
  cold->objects.begin()->second[100] ^= 1;
  auto store = Open(cold);
  EXPECT_EQ(store->Get(id).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(FileOf(id, "copies").empty());
}

TEST_F(ChunkStoreTest, AColdTierThatIsDownIsNoLoss) {
  auto cold = std::make_shared<FakeCold>();
  const ChunkId id = Put(Open(cold).get(), Noise(1, 5000));
  fs::remove_all(scratch_.path() + "/chunks");
  auto store = Open(cold);
  cold->down = true;
  EXPECT_EQ(store->Get(id).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(store->counters().lost, 0u);
  cold->down = false;
  EXPECT_TRUE(store->Get(id).ok());
}

TEST_F(ChunkStoreTest, ReadersOfOneChunkFetchItOnce) {
  auto cold = std::make_shared<FakeCold>();
  const std::string content = Noise(1, 5000);
  const ChunkId id = Put(Open(cold).get(), content);
  fs::remove_all(scratch_.path() + "/chunks");
  auto store = Open(cold);
  cold->hold = true;
  std::vector<std::thread> readers;
  std::atomic<int> good{0};
  for (int i = 0; i < 8; ++i) {
    readers.emplace_back([&] { good += **store->Get(id) == content ? 1 : 0; });
  }
  while (cold->gets == 0) std::this_thread::yield();
  cold->hold = false;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(good, 8);
  EXPECT_EQ(cold->gets, 1);
  EXPECT_EQ(store->counters().joined + store->counters().memory_hits, 7u);
}

TEST_F(ChunkStoreTest, EvictsTheLeastRecentlyUsedCopiesAndNothingElse) {
  auto cold = std::make_shared<FakeCold>();
  constexpr size_t kSize = 10'000;
  const ChunkId kept = Put(Open().get(), Noise(100, kSize));
  auto store = Open(cold, /*disk=*/10 * (kSize + kChunkHeaderBytes), /*memory=*/0);
  std::vector<ChunkId> ids;
  for (uint32_t i = 0; i < 8; ++i) {
    ids.push_back(Put(store.get(), Noise(i, kSize)));
    // Times of use, set by hand: chunk i was used i minutes after chunk 0; chunk 0 last of all.
    fs::last_write_time(FileOf(ids.back(), "copies"),
                        fs::file_time_type::clock::now() - std::chrono::minutes(60 - i));
  }
  fs::last_write_time(FileOf(ids[0], "copies"), fs::file_time_type::clock::now());
  for (uint32_t i = 8; i < 12; ++i) ids.push_back(Put(store.get(), Noise(i, kSize)));
  EXPECT_LE(*store->DiskBytes(), 10 * (kSize + kChunkHeaderBytes));
  EXPECT_GT(store->counters().evicted, 0u);
  EXPECT_FALSE(FileOf(ids[0], "copies").empty()) << "used last, evicted";
  EXPECT_TRUE(FileOf(ids[1], "copies").empty()) << "used first, not evicted";
  EXPECT_FALSE(FileOf(kept, "kept").empty()) << "nobody else has it, evicted";
  for (const ChunkId& id : ids) EXPECT_TRUE(store->Get(id).ok());
}

TEST_F(ChunkStoreTest, RefusesToKeepMoreThanItsBound) {
  auto store = Open(nullptr, /*disk=*/25'000);
  auto writer = *store->Begin();
  EXPECT_TRUE(writer->Put(Noise(1, 10'000)).ok());
  EXPECT_TRUE(writer->Put(Noise(2, 10'000)).ok());
  EXPECT_EQ(writer->Put(Noise(3, 10'000)).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(ChunkStoreTest, CollectRemovesWhatIsNotNamed) {
  auto store = Open(nullptr, 1 << 30, /*memory=*/0);
  std::set<ChunkId> named;
  std::vector<ChunkId> ids;
  for (uint32_t i = 0; i < 10; ++i) {
    ids.push_back(Put(store.get(), Noise(i, 1000)));
    if (i % 2 == 0) named.insert(ids.back());
  }
  auto collected = store->Collect([&](const ChunkId& id) { return named.contains(id); });
  ASSERT_TRUE(collected.ok()) << collected.status();
  EXPECT_EQ(collected->chunks, 5u);
  for (const ChunkId& id : ids) EXPECT_EQ(store->Get(id).ok(), named.contains(id));
}

TEST(MemoryTier, KeepsItsBoundAndTheNewest) {
  MemoryTier tier(10'000);
  std::vector<ChunkId> ids;
  for (uint32_t i = 0; i < 20; ++i) {
    auto content = std::make_shared<const std::string>(Noise(i, 1000));
    ids.push_back(HashChunk(*content));
    tier.Put(ids.back(), content);
    EXPECT_NE(tier.Get(ids[0]), nullptr) << "used in every round";
    EXPECT_LE(tier.bytes(), 10'000u);
  }
  EXPECT_EQ(tier.Get(ids[1]), nullptr);
  EXPECT_NE(tier.Get(ids[19]), nullptr);
  tier.Put(HashChunk("big"), std::make_shared<const std::string>(20'000, 'x'));
  EXPECT_NE(tier.Get(ids[19]), nullptr);
}

}  // namespace
}  // namespace reprise::storage
