// Cold tiers: a directory, and S3 against a bucket that checks signatures by itself, is busy and
// breaks bodies off. The signature is also compared with the example in AWS's documentation
// (Authenticating Requests: Using the Authorization Header, "GET Object").
#include "storage/cold_tier.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "storage/chunk_store.h"
#include "storage/s3_tier.h"
#include "tests/unit/storage/chunk_support.h"

namespace reprise::storage {
namespace {

// The test's bucket as a process; ends when its stdin closes.
class Bucket {
 public:
  explicit Bucket(const std::vector<std::string>& faults) {
    int to[2], from[2];
    if (pipe(to) != 0 || pipe(from) != 0) return;
    pid_ = fork();
    if (pid_ == 0) {
      dup2(to[0], 0);
      dup2(from[1], 1);
      for (int fd : {to[0], to[1], from[0], from[1]}) close(fd);
      std::vector<const char*> args = {
          "python3", REPRISE_SOURCE_DIR "/tests/unit/storage/s3_server.py", "KEY", "SECRET"};
      for (const std::string& fault : faults) args.push_back(fault.c_str());
      args.push_back(nullptr);
      execvp("python3", const_cast<char**>(args.data()));
      _exit(127);
    }
    close(to[0]);
    close(from[1]);
    stdin_.Reset(to[1]);
    base::UniqueFd out(from[0]);
    char digit = 0;
    while (read(out.get(), &digit, 1) == 1 && digit != '\n') port_ += digit;
  }
  ~Bucket() {
    stdin_.Reset();
    if (pid_ > 0) waitpid(pid_, nullptr, 0);
  }
  std::shared_ptr<ColdTier> Open(const std::string& secret = "SECRET") const {
    auto location = ParseS3Location(
        "s3://bucket/pre/fix?region=eu-west-1&endpoint=http://127.0.0.1:" + port_ + "/");
    EXPECT_TRUE(location.ok()) << location.status();
    return *OpenS3Tier(*location, {"KEY", secret, ""});
  }

 private:
  pid_t pid_ = -1;
  base::UniqueFd stdin_;
  std::string port_;
};

void ExpectAnObjectStore(ColdTier* tier) {
  const std::string content = Noise(9, 300'000);
  EXPECT_TRUE(absl::IsNotFound(tier->Get("chunks/ab/name", 1 << 20).status()));
  EXPECT_FALSE(*tier->Has("chunks/ab/name"));
  ASSERT_TRUE(tier->Put("chunks/ab/name", "old").ok());
  ASSERT_TRUE(tier->Put("chunks/ab/name", content).ok());
  EXPECT_TRUE(*tier->Has("chunks/ab/name"));
  EXPECT_EQ(*tier->Get("chunks/ab/name", 1 << 20), content);
  EXPECT_EQ(tier->Get("chunks/ab/name", 1000).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(tier->Remove("chunks/ab/name").ok());
  EXPECT_TRUE(tier->Remove("chunks/ab/name").ok());
  EXPECT_FALSE(*tier->Has("chunks/ab/name"));
  for (const char* bad : {"", "/etc/passwd", "a/../../b", "a//b", "a b"}) {
    EXPECT_EQ(tier->Get(bad, 10).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(ColdDirectory, KeepsObjects) {
  const base::ScratchDir scratch("reprise-cold");
  auto tier = OpenColdTier(scratch.path() + "/deep/er");
  ASSERT_TRUE(tier.ok()) << tier.status();
  ExpectAnObjectStore(tier->get());
}

TEST(S3Tier, KeepsObjects) {
  const Bucket bucket({});
  ExpectAnObjectStore(bucket.Open().get());
}

TEST(S3Tier, TriesAgainWhenTheServerIsBusy) {
  const Bucket bucket({"busy:3"});
  auto tier = bucket.Open();
  ASSERT_TRUE(tier->Put("key", "content").ok());
  EXPECT_EQ(*tier->Get("key", 100), "content");
}

TEST(S3Tier, GoesOnWhereABodyBrokeOff) {
  const Bucket bucket({"cut:3"});
  auto tier = bucket.Open();
  const std::string content = Noise(5, 1 << 20);
  ASSERT_TRUE(tier->Put("key", content).ok());
  EXPECT_EQ(*tier->Get("key", 2 << 20), content);
}

TEST(S3Tier, GivesUpWithAnErrorThatNamesTheObjectAndNoSecret) {
  const Bucket bucket({"busy:1000"});
  const absl::Status status = bucket.Open()->Get("key", 100).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(std::string(status.message()).find("/bucket/pre/fix/key: HTTP 503"), std::string::npos)
      << status;
  EXPECT_EQ(std::string(status.message()).find("SECRET"), std::string::npos);
}

TEST(S3Tier, AWrongKeyIsRefusedAtOnce) {
  const Bucket bucket({});
  const absl::Status status = bucket.Open("WRONG")->Put("key", "content");
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
}

TEST(S3Tier, ServesAsTheColdTierOfChunks) {
  const Bucket bucket({});
  const base::ScratchDir scratch("reprise-cold");
  const std::string content = Noise(11, kChunkBytesMax);
  auto first = *ChunkStore::Open({scratch.path() + "/one", 1 << 30, 0, bucket.Open()});
  auto writer = *first->Begin();
  const ChunkId id = *writer->Put(content);
  ASSERT_TRUE(writer->Commit().ok());
  auto second = *ChunkStore::Open({scratch.path() + "/two", 1 << 30, 0, bucket.Open()});
  EXPECT_EQ(**second->Get(id), content);
  EXPECT_EQ(second->counters().cold_hits, 1u);
}

TEST(S3Sign, AgreesWithTheDocumentedExample) {
  const S3Request request{"GET",
                          "examplebucket.s3.amazonaws.com",
                          "/test.txt",
                          {{"range", "bytes=0-9"}},
                          Sha256Hex(""),
                          "us-east-1",
                          "20130524T000000Z"};
  const auto headers =
      SignS3(request, {"AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", ""});
  EXPECT_EQ(headers.at("authorization"),
            "AWS4-HMAC-SHA256 "
            "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
            "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
            "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}

TEST(ColdTier, SaysWhatIsWrongWithALocation) {
  for (const char* bad :
       {"relative/dir", "http://host/bucket", "s3://", "s3://bucket",
        "s3://bucket?region=", "s3://../x?region=r", "s3://b?region=r&x=y",
        "s3://b?region=r&endpoint=ftp://h", "s3://b?region=r&endpoint=http://u@h"}) {
    EXPECT_EQ(OpenColdTier(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  auto aws = ParseS3Location("s3://bucket/a/b?region=us-east-2");
  ASSERT_TRUE(aws.ok());
  EXPECT_EQ(aws->host + aws->base, "bucket.s3.us-east-2.amazonaws.com/a/b");
}

}  // namespace
}  // namespace reprise::storage
