// The form of one chunk object: what goes in comes out, and no changed byte passes.
#include "storage/chunk.h"

#include <gtest/gtest.h>

#include "tests/unit/storage/chunk_support.h"

namespace reprise::storage {
namespace {

TEST(Chunk, ComesBackAtEverySize) {
  for (size_t size : {1ul, 2ul, 4095ul, 4096ul, 100'000ul, kChunkBytesMax}) {
    for (const std::string& content : {Noise(7, size), std::string(size, 'a')}) {
      const ChunkId id = HashChunk(content);
      const std::string object = EncodeChunk(content);
      EXPECT_LE(object.size(), kChunkObjectBytesMax);
      absl::StatusOr<std::string> back = DecodeChunk(id, object);
      ASSERT_TRUE(back.ok()) << back.status();
      EXPECT_EQ(*back, content);
    }
  }
}

TEST(Chunk, ObjectIsAsTheFormatSays) {
  // storage/FORMAT.md has the same bytes.
  const std::string object = EncodeChunk("abc");
  EXPECT_EQ(object, std::string("RPC1\0\0\0\0\3\0\0\0abc", 15));
  EXPECT_EQ(HashChunk("abc").Hex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Chunk, CompressesWhatCompresses) {
  EXPECT_LT(EncodeChunk(std::string(kChunkBytesMax, 'x')).size(), 1000u);
  EXPECT_EQ(EncodeChunk(Noise(1, kChunkBytesMax)).size(), kChunkBytesMax + kChunkHeaderBytes);
}

TEST(Chunk, EveryFlippedByteIsFound) {
  for (const std::string& content : {Noise(3, 200), std::string(5000, 'z')}) {
    const ChunkId id = HashChunk(content);
    const std::string object = EncodeChunk(content);
    for (size_t at = 0; at < object.size(); ++at) {
      std::string bad = object;
      bad[at] ^= 0x40;
      absl::StatusOr<std::string> back = DecodeChunk(id, bad);
      // A changed byte that is not looked at (padding) may pass only with the right content.
      if (back.ok()) {
        EXPECT_EQ(*back, content) << "byte " << at;
      } else {
        EXPECT_EQ(back.status().code(), absl::StatusCode::kDataLoss);
      }
    }
    for (size_t length = 0; length < object.size(); ++length) {
      EXPECT_FALSE(DecodeChunk(id, object.substr(0, length)).ok()) << length;
    }
  }
}

TEST(Chunk, AnotherChunkIsNotTaken) {
  EXPECT_FALSE(DecodeChunk(HashChunk("one"), EncodeChunk("two")).ok());
}

TEST(ChunkId, ReadsOnlyItsOwnForm) {
  const std::string hex = HashChunk("abc").Hex();
  ASSERT_TRUE(ParseChunkId(hex).ok());
  EXPECT_EQ(*ParseChunkId(hex), HashChunk("abc"));
  for (std::string bad : {std::string(), hex.substr(1), hex + "0", "X" + hex.substr(1),
                          "../../../../" + hex.substr(12), "A" + hex.substr(1)}) {
    EXPECT_FALSE(ParseChunkId(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace reprise::storage
