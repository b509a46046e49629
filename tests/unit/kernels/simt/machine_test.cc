// The machine itself: what a right kernel computes on it, and that each kind of wrong kernel is
// found and named.
#include "tests/unit/kernels/simt/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/launch.cuh"
#include "tests/unit/kernels/cuda/device.h"
#include "tests/unit/kernels/simt/cuda_words.h"

namespace reprise::kernels {
namespace {

using testing::HasSubstr;

constexpr int kThreads = 96;

struct Params {
  float* out = nullptr;
};
struct Plan {
  float values[kThreads];
};

absl::Status RunKernel(void (*kernel)(Params), float* out, int64_t blocks = 3,
                       int threads = kThreads) {
  return cuda::Launch<Plan>("Probe", kernel, {blocks}, threads, Params{out}, nullptr);
}

// Each thread gives what its neighbour wrote.
void Neighbour(Params params) {
  Plan& plan = cuda::Shared<Plan>();
  plan.values[threadIdx.x] = static_cast<float>(blockIdx.x * 1000 + threadIdx.x);
  __syncthreads();
  params.out[blockIdx.x * blockDim.x + threadIdx.x] = plan.values[(threadIdx.x + 1) % blockDim.x];
}

TEST(MachineTest, ThreadsMeetAtBarriers) {
  Device<float> out(size_t{3 * kThreads});
  ASSERT_STARTED(RunKernel(Neighbour, out.get()));
  std::vector<float> want;
  for (int block = 0; block < 3; ++block) {
    for (int t = 0; t < kThreads; ++t)
      want.push_back(static_cast<float>(block * 1000 + (t + 1) % kThreads));
  }
  EXPECT_EQ(out.Read(), want);
}

void Shuffle(Params params) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float sum = static_cast<float>(threadIdx.x);
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
  const float up = __shfl_up_sync(0xFFFFFFFFu, static_cast<float>(lane), 1);
  const float down = __shfl_down_sync(0xFFFFFFFFu, static_cast<float>(lane), 2);
  const float first = __shfl_sync(0xFFFFFFFFu, sum, 0);
  const uint32_t odd = __ballot_sync(0xFFFFFFFFu, lane % 2 == 1);
  float* out = params.out + threadIdx.x * 5;
  out[0] = sum, out[1] = up, out[2] = down, out[3] = first, out[4] = odd == 0xAAAAAAAAu ? 1 : 0;
}

TEST(MachineTest, LanesExchange) {
  Device<float> out(size_t{5 * kThreads});
  ASSERT_STARTED(RunKernel(Shuffle, out.get(), /*blocks=*/1));
  const std::vector<float> got = out.Read();
  for (int t = 0; t < kThreads; ++t) {
    const int lane = t % 32, first = t - lane;
    const float sum = static_cast<float>(32 * first + 31 * 16);
    EXPECT_EQ(got[t * 5], sum);
    EXPECT_EQ(got[t * 5 + 1], static_cast<float>(lane == 0 ? 0 : lane - 1));
    EXPECT_EQ(got[t * 5 + 2], static_cast<float>(lane + 2 > 31 ? lane : lane + 2));
    EXPECT_EQ(got[t * 5 + 3], sum);
    EXPECT_EQ(got[t * 5 + 4], 1);
  }
}

void WithoutBarrier(Params params) {
  Plan& plan = cuda::Shared<Plan>();
  plan.values[threadIdx.x] = 1;
  params.out[threadIdx.x] = plan.values[(threadIdx.x + 1) % blockDim.x];
}

void AcrossBlocks(Params params) {
  if (threadIdx.x == 0) params.out[1] = static_cast<float>(blockIdx.x);
}

TEST(MachineTest, FindsWhatDependsOnOrder) {
  Device<float> out(size_t{kThreads});
  EXPECT_THAT(std::string(RunKernel(WithoutBarrier, out.get(), 1).message()),
              HasSubstr("depends on the order"));
  EXPECT_THAT(std::string(RunKernel(AcrossBlocks, out.get(), 40).message()),
              HasSubstr("depends on the order"));
}

void Divergent(Params) {
  if (threadIdx.x < 10) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

void HalfWarp(Params) {
  if (threadIdx.x % 32 < 16) __syncwarp();
  __syncthreads();
}

void FromOutside(Params params) {
  if (threadIdx.x % 32 < 16) params.out[threadIdx.x] = __shfl_xor_sync(0x0000FFFFu, 1.0f, 16);
}

void FromEnded(Params params) {
  if (threadIdx.x == 5) return;
  params.out[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFu, 1.0f, 1);
}

TEST(MachineTest, FindsThreadsThatMissEachOther) {
  Device<float> out(size_t{kThreads});
  EXPECT_THAT(std::string(RunKernel(Divergent, out.get()).message()),
              HasSubstr("waits for the block at machine_test.cc:"));
  EXPECT_THAT(std::string(RunKernel(HalfWarp, out.get()).message()),
              HasSubstr("threads that never come"));
  EXPECT_THAT(std::string(RunKernel(FromOutside, out.get()).message()), HasSubstr("takes no part"));
  EXPECT_THAT(std::string(RunKernel(FromEnded, out.get()).message()), HasSubstr("has ended"));
  // The machine is as new after a failure.
  Device<float> all(size_t{3 * kThreads});
  ASSERT_STARTED(RunKernel(Neighbour, all.get()));
}

void ReadsFresh(Params params) { params.out[threadIdx.x] = cuda::Shared<Plan>().values[3]; }

TEST(MachineTest, SharedMemoryIsPoisoned) {
  Device<float> out(size_t{kThreads});
  ASSERT_STARTED(RunKernel(ReadsFresh, out.get(), 1));
  EXPECT_TRUE(std::isnan(out.Read()[0]));
}

void OneTooMany(Params params) { params.out[threadIdx.x + 1] = 0; }

void OneBytePast(Params params) {
  if (threadIdx.x == 0) reinterpret_cast<uint8_t*>(params.out)[4] = 0;
}

void Misaligned(Params params) {
  uint8_t* bytes = reinterpret_cast<uint8_t*>(params.out);
  *reinterpret_cast<uint32_t*>(bytes + 2) = 0;
}

using MachineDeathTest = testing::Test;

TEST(MachineDeathTest, AccessOutsideAnArrayIsNamed) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  Device<float> out(size_t{kThreads});
#if defined(REPRISE_SANITIZED)
  EXPECT_DEATH((void)RunKernel(OneTooMany, out.get()), "");
#else
  EXPECT_DEATH((void)RunKernel(OneTooMany, out.get()),
               "Probe: block \\(0, 0, 0\\), thread 95: access outside every array");
#endif
  EXPECT_DEATH((void)RunKernel(Misaligned, out.get()), "");
  Device<float> one(size_t{1});
  EXPECT_THAT(std::string(RunKernel(OneBytePast, one.get(), 1).message()),
              HasSubstr("behind the end of an array"));
}

}  // namespace
}  // namespace reprise::kernels
