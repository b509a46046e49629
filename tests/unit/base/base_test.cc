// Goal: the small shared pieces keep their word on the cases that the rest of the tree relies on.
#include <gtest/gtest.h>

#include <thread>

#include "base/bounded_queue.h"
#include "base/crc32c.h"
#include "base/failpoint.h"
#include "base/fd.h"
#include "base/gate.h"
#include "base/ids.h"

namespace reprise::base {
namespace {

TEST(Crc32c, KnownVectors) {
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);  // RFC 3720 B.4 check value
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c("56789", Crc32c("1234")), Crc32c("123456789"));
}

TEST(Fd, WriteFileAtomicReplacesAndErrorsNameThePath) {
  ScratchDir dir;
  std::string path = dir.path() + "/a";
  ASSERT_TRUE(WriteFileAtomic(path, "one").ok());
  ASSERT_TRUE(WriteFileAtomic(path, "two").ok());
  EXPECT_EQ(*ReadFile(path), "two");
  absl::Status missing = ReadFile(dir.path() + "/none").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(missing.message().find(dir.path() + "/none"), std::string_view::npos);
  EXPECT_EQ(ReadFile(path, 2).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(Fd, MakeDirsMakesParentsAndRefusesFiles) {
  ScratchDir dir;
  ASSERT_TRUE(MakeDirs(dir.path() + "/x/y/z").ok());
  ASSERT_TRUE(MakeDirs(dir.path() + "/x/y/z").ok());
  ASSERT_TRUE(WriteFileAtomic(dir.path() + "/f", "").ok());
  EXPECT_FALSE(MakeDirs(dir.path() + "/f").ok());
}

TEST(Ids, RefusesWhatCouldLeaveAPath) {
  EXPECT_TRUE(CheckId("job-1.a_B", "id").ok());
  EXPECT_TRUE(CheckId("job/0001/2", "id", true).ok());
  for (const char* bad : {"", "a/b", "a b", "..", "a\n", "é"}) EXPECT_FALSE(CheckId(bad, "id").ok()) << bad;
  for (const char* bad : {"/a", "a/", "a//b", "a/../b", "."}) EXPECT_FALSE(CheckId(bad, "id", true).ok()) << bad;
  EXPECT_FALSE(CheckId(std::string(kMaxIdBytes + 1, 'a'), "id").ok());
}

TEST(BoundedQueue, RefusesWhenFullAndDrainsAfterClose) {
  BoundedQueue<int> queue(2);
  EXPECT_TRUE(queue.TryPush(1));
  EXPECT_TRUE(queue.TryPush(2));
  EXPECT_FALSE(queue.TryPush(3));
  std::thread producer([&] { EXPECT_TRUE(queue.Push(3)); });
  EXPECT_EQ(queue.Pop(), 1);
  producer.join();
  queue.Close();
  EXPECT_FALSE(queue.Push(4));
  EXPECT_EQ(queue.Pop(), 2);
  EXPECT_EQ(queue.Pop(), 3);
  EXPECT_EQ(queue.Pop(), std::nullopt);
}

TEST(Gate, CloseWaitsForThoseInside) {
  Gate gate;
  ASSERT_TRUE(gate.Enter());
  std::thread closer([&] { gate.Close(); });
  gate.Leave();
  closer.join();
  EXPECT_FALSE(gate.Enter());
}

TEST(FailPoint, KillsAtTheNthPassage) {
  EXPECT_FALSE(ArmFailPoint("x").ok());
  EXPECT_FALSE(ArmFailPoint("x:0").ok());
  EXPECT_EXIT(
      {
        (void)ArmFailPoint("commit:2");
        FailPoint("other");
        FailPoint("commit");
        FailPoint("commit");
        _exit(0);
      },
      testing::KilledBySignal(SIGKILL), "");
}

}  // namespace
}  // namespace reprise::base
