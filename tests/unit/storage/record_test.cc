// Goal: a stored value is either what was written under its key, or an error. Method: the worked
// example of storage/FORMAT.md, then every single-bit flip and every truncation of it.
#include "storage/record.h"

#include <gtest/gtest.h>

namespace reprise::storage {
namespace {

TEST(Record, WorkedExampleOfTheFormat) {
  const std::string expected("\x01\xd9\xb5\xab\x36hi", 7);
  EXPECT_EQ(FrameRecord("k", "hi"), expected);
  EXPECT_EQ(*UnframeRecord("k", expected), "hi");
  EXPECT_EQ(*UnframeRecord("k", FrameRecord("k", "")), "");
}

TEST(Record, EveryFlippedBitAndEveryTruncationIsAnError) {
  const std::string record = FrameRecord("key", "some payload");
  for (size_t bit = 0; bit < record.size() * 8; ++bit) {
    std::string bad = record;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_EQ(UnframeRecord("key", bad).status().code(), absl::StatusCode::kDataLoss) << bit;
  }
  for (size_t size = 0; size < record.size(); ++size) {
    EXPECT_FALSE(UnframeRecord("key", record.substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(UnframeRecord("kez", record).ok());
}

}  // namespace
}  // namespace reprise::storage
