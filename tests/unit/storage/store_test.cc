// Goal: what the store acknowledged is there after any end of the process or of the disk, and
// damage is an error that names the place. Method: a real RocksDB in a scratch directory; children
// killed at fail points; an Env that fails the n-th write or sync for every n; bytes flipped in the
// files.
#include "storage/store.h"

#include <gtest/gtest.h>
#include <rocksdb/env.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/failpoint.h"
#include "base/fd.h"
#include "tests/killed_child.h"

namespace reprise::storage {
namespace {

StoreOptions Options(const std::string& path, rocksdb::Env* env = nullptr) {
  StoreOptions options;
  options.path = path;
  options.families = {"a", "b"};
  options.env = env;
  return options;
}

std::string Key(int i) { return "key" + std::to_string(1000 + i); }

absl::Status PutOne(Store* store, int i) {
  Batch batch;
  batch.Put(0, Key(i), "value" + std::to_string(i));
  batch.Put(1, Key(i), "twin" + std::to_string(i));
  return store->Commit(std::move(batch));
}

// Number of leading keys present; fails the test when there is a hole or when families disagree.
int Prefix(Store* store) {
  int count = 0;
  absl::Status status = store->Scan(0, "key", [&](std::string_view key, std::string_view payload) {
    EXPECT_EQ(key, Key(count));
    EXPECT_EQ(payload, "value" + std::to_string(count));
    absl::StatusOr<std::string> twin = store->Get(1, key);
    EXPECT_TRUE(twin.ok()) << twin.status();
    ++count;
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return count;
}

TEST(Store, ReopenKeepsEverything) {
  base::ScratchDir dir;
  {
    auto store = Store::Open(Options(dir.path()));
    ASSERT_TRUE(store.ok()) << store.status();
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(PutOne(store->get(), i).ok());
    Batch batch;
    for (int i = 15; i < 18; ++i) ASSERT_TRUE((*store)->DeleteAll(0, Key(i), &batch).ok());
    batch.Delete(0, Key(18));
    batch.Delete(0, Key(19));
    ASSERT_TRUE((*store)->Commit(std::move(batch)).ok());
  }
  auto store = Store::Open(Options(dir.path()));
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(Prefix(store->get()), 15);
  EXPECT_EQ((*store)->Get(0, "none").status().code(), absl::StatusCode::kNotFound);
}

TEST(Store, RefusesASecondOwnerAndOtherFamilies) {
  base::ScratchDir dir;
  {
    auto store = Store::Open(Options(dir.path()));
    ASSERT_TRUE(store.ok());
    auto second = Store::Open(Options(dir.path()));
    EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable) << second.status();
  }
  StoreOptions other = Options(dir.path());
  other.families = {"b", "a"};
  EXPECT_EQ(Store::Open(other).status().code(), absl::StatusCode::kDataLoss);
}

TEST(Store, GainsFamiliesBehindThoseItHas) {
  base::ScratchDir dir;
  {
    auto store = Store::Open(Options(dir.path()));
    ASSERT_TRUE(store.ok() && PutOne(store->get(), 0).ok());
  }
  StoreOptions more = Options(dir.path());
  more.families = {"a", "b", "c"};
  {
    auto store = Store::Open(more);
    ASSERT_TRUE(store.ok()) << store.status();
    EXPECT_EQ(Prefix(store->get()), 1);
  }
  EXPECT_TRUE(Store::Open(more).ok());
  EXPECT_EQ(Store::Open(Options(dir.path())).status().code(), absl::StatusCode::kDataLoss);
}

TEST(Store, ManyWritersShareGroups) {
  base::ScratchDir dir;
  auto store = Store::Open(Options(dir.path()));
  ASSERT_TRUE(store.ok());
  std::atomic<int> done{0};
  for (int i = 0; i < 500; ++i) {
    Batch batch;
    batch.Put(0, Key(i), "value" + std::to_string(i));
    batch.Put(1, Key(i), "t");
    (*store)->CommitAsync(std::move(batch), Sync::kDurable,
                          [&](absl::Status status) { done += status.ok(); });
  }
  ASSERT_TRUE((*store)->Commit(Batch()).ok());
  EXPECT_EQ(done, 500);
  EXPECT_LT((*store)->stats().groups, 400u);
  EXPECT_EQ(Prefix(store->get()), 500);
}

// Tells of each commit that was acknowledged, until it is killed.
TEST(StoreChild, DISABLED_Commits) {
  if (ChildDir().empty()) GTEST_SKIP() << "runs as a child of Store.AcknowledgedSurvives...";
  auto store = Store::Open(Options(ChildDir()));
  ASSERT_TRUE(store.ok() && base::ArmFailPoint(ChildPoint()).ok());
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(PutOne(store->get(), i).ok() && Report());
}

// The child is killed at the n-th group.
void KillAt(const std::string& point, int n) {
  base::ScratchDir dir;
  const ChildEnd end =
      RunChild("StoreChild.DISABLED_Commits", dir.path(), point + ":" + std::to_string(n));
  ASSERT_TRUE(WIFSIGNALED(end.status) && WTERMSIG(end.status) == SIGKILL) << end.status;
  auto store = Store::Open(Options(dir.path()));
  ASSERT_TRUE(store.ok()) << store.status();
  const int recovered = Prefix(store->get());
  EXPECT_EQ(end.reports, static_cast<uint64_t>(n - 1));
  EXPECT_EQ(recovered, point == "commit.before" ? n - 1 : n);
}

TEST(Store, AcknowledgedSurvivesAKillAtEveryGroup) {
  for (int n = 1; n <= 8; ++n) {
    KillAt("commit.before", n);
    KillAt("commit.after", n);
  }
}

// Fails every write or sync from the n-th on with the given error.
class FailingEnv final : public rocksdb::EnvWrapper {
 public:
  FailingEnv() : rocksdb::EnvWrapper(rocksdb::Env::Default()) {}

  rocksdb::Status Next() {
    if (!armed || --remaining >= 0) return rocksdb::Status::OK();
    return no_space ? rocksdb::Status::NoSpace("injected") : rocksdb::Status::IOError("injected");
  }

  class File final : public rocksdb::WritableFileWrapper {
   public:
    File(std::unique_ptr<rocksdb::WritableFile> file, FailingEnv* env)
        : rocksdb::WritableFileWrapper(file.get()), file_(std::move(file)), env_(env) {}
    rocksdb::Status Append(const rocksdb::Slice& data) override {
      rocksdb::Status status = env_->Next();
      // A torn write: half of it reaches the file.
      if (!status.ok()) (void)file_->Append(rocksdb::Slice(data.data(), data.size() / 2));
      return status.ok() ? file_->Append(data) : status;
    }
    rocksdb::Status Sync() override {
      rocksdb::Status status = env_->Next();
      return status.ok() ? file_->Sync() : status;
    }

   private:
    std::unique_ptr<rocksdb::WritableFile> file_;
    FailingEnv* env_;
  };

  rocksdb::Status NewWritableFile(const std::string& name,
                                  std::unique_ptr<rocksdb::WritableFile>* result,
                                  const rocksdb::EnvOptions& options) override {
    std::unique_ptr<rocksdb::WritableFile> file;
    rocksdb::Status status = target()->NewWritableFile(name, &file, options);
    if (status.ok()) *result = std::make_unique<File>(std::move(file), this);
    return status;
  }

  std::atomic<bool> armed{false};
  std::atomic<int> remaining{0};
  bool no_space = false;
};

TEST(Store, FailedWritesAreFinalAndLoseNothingAcknowledged) {
  for (bool no_space : {true, false}) {
    for (int n = 0; n < 12; ++n) {
      base::ScratchDir dir;
      FailingEnv env;
      env.no_space = no_space;
      int acknowledged = 0;
      {
        auto store = Store::Open(Options(dir.path(), &env));
        ASSERT_TRUE(store.ok()) << store.status();
        env.remaining = n;
        env.armed = true;
        absl::Status failure;
        for (int i = 0; i < 20; ++i) {
          absl::Status status = PutOne(store->get(), i);
          if (status.ok()) {
            ASSERT_TRUE(failure.ok()) << "a commit was taken after a failed one";
            ++acknowledged;
          } else if (failure.ok()) {
            failure = status;
          }
        }
        ASSERT_FALSE(failure.ok());
        EXPECT_EQ(failure.code(),
                  no_space ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kDataLoss);
        EXPECT_NE(std::string(failure.message()).find(dir.path()), std::string::npos) << failure;
        EXPECT_EQ((*store)->health(), failure);
        EXPECT_GE(Prefix(store->get()), acknowledged);  // reads go on
      }
      auto store = Store::Open(Options(dir.path()));
      ASSERT_TRUE(store.ok()) << store.status();
      EXPECT_GE(Prefix(store->get()), acknowledged) << "n=" << n;
    }
  }
}

std::string NewestFile(const std::string& dir, const std::string& extension) {
  std::string newest;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    if (entry.path().extension() == extension && entry.file_size() > 0) {
      newest = std::max(newest, entry.path().string());
    }
  }
  return newest;
}

void FlipByte(const std::string& path, double where) {
  const auto size = static_cast<double>(std::filesystem::file_size(path));
  const auto at = static_cast<std::streamoff>(size * where);
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(at);
  char byte = static_cast<char>(file.get());
  file.seekp(at);
  file.put(static_cast<char>(byte ^ 0x20));
}

TEST(Store, ATornTailIsCutOffAndDamageBeforeItIsAnError) {
  base::ScratchDir dir;
  {
    auto store = Store::Open(Options(dir.path()));
    ASSERT_TRUE(store.ok());
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(PutOne(store->get(), i).ok());
  }
  base::ScratchDir torn;
  base::ScratchDir flipped;
  std::filesystem::copy(dir.path(), torn.path(), std::filesystem::copy_options::recursive);
  std::filesystem::copy(dir.path(), flipped.path(), std::filesystem::copy_options::recursive);

  const std::string log = NewestFile(torn.path(), ".log");
  ASSERT_FALSE(log.empty());
  std::filesystem::resize_file(log, std::filesystem::file_size(log) - 7);
  auto store = Store::Open(Options(torn.path()));
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(Prefix(store->get()), 49);

  FlipByte(NewestFile(flipped.path(), ".log"), 0.4);
  auto damaged = Store::Open(Options(flipped.path()));
  EXPECT_EQ(damaged.status().code(), absl::StatusCode::kDataLoss) << damaged.status();
  EXPECT_NE(std::string(damaged.status().message()).find(flipped.path()), std::string::npos);
}

// RocksDB looks at the last word of a table's properties before it looks at their checksum.
TEST(Store, AFlippedBitBehindATablesDataIsAnErrorAndNoAbort) {
  constexpr int kBegin = 300, kEnd = 53;  // bytes from the end: properties' end, metadata; footer
  base::ScratchDir dir;
  {
    auto store = Store::Open(Options(dir.path()));
    ASSERT_TRUE(store.ok());
    ASSERT_TRUE(PutOne(store->get(), 0).ok());
    ASSERT_TRUE((*store)->Reclaim().ok());
  }
  const std::string table = NewestFile(dir.path(), ".sst");
  ASSERT_FALSE(table.empty());
  const std::string whole = *base::ReadFile(table);
  ASSERT_GT(whole.size(), size_t{kBegin});
  int reported = 0;
  for (int from_end = kBegin; from_end > kEnd; --from_end) {
    std::string damaged = whole;
    damaged[whole.size() - from_end] ^= static_cast<char>(0x80);
    ASSERT_TRUE(base::WriteFileAtomic(table, damaged).ok());
    auto store = Store::Open(Options(dir.path()));
    if (store.ok()) continue;
    ++reported;
    EXPECT_EQ(store.status().code(), absl::StatusCode::kDataLoss) << store.status();
    EXPECT_NE(std::string(store.status().message()).find(table), std::string::npos)
        << store.status();
  }
  EXPECT_GT(reported, 0);
  ASSERT_TRUE(base::WriteFileAtomic(table, whole).ok());
  EXPECT_TRUE(Store::Open(Options(dir.path())).ok());
}

}  // namespace
}  // namespace reprise::storage
