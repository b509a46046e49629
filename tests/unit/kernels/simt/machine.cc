#include "tests/unit/kernels/simt/machine.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "tests/unit/kernels/simt/cuda_words.h"
#include "tests/unit/kernels/simt/fiber.h"
#include "tests/unit/kernels/simt/memory.h"

SimtIndex threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace reprise::kernels::simt {
namespace {

constexpr int kOrders = 2;  // in which a launch runs

enum class Wait { kNone, kBlock, kWarp, kDone };

struct Thread {
  Fiber fiber;
  Wait wait = Wait::kNone;
  std::source_location at;
  // Of what it waits for in its warp.
  uint32_t mask = 0;
  Exchange how = Exchange::kNothing;
  int operand = 0;
  uint64_t in = 0, out = 0;
};

// The launch that runs; this is one thread's.
struct Machine {
  const char* kernel = "";
  const std::function<void()>* body = nullptr;
  std::vector<std::unique_ptr<Thread>> all;  // at least `threads`
  int threads = 0, running = 0;
  GuardedBytes* shared = nullptr;
  std::string failure;
};
Machine machine;

std::string Place(const std::source_location& at) {
  const std::string_view file = at.file_name();
  return fmt::format("{}:{}", file.substr(file.rfind('/') + 1), at.line());
}

void Fail(int thread, const std::string& what) {
  if (!machine.failure.empty()) return;
  machine.failure = fmt::format("{}: block ({}, {}, {}), thread {}: {}", machine.kernel, blockIdx.x,
                                blockIdx.y, blockIdx.z, thread, what);
}

#if !defined(REPRISE_SANITIZED)
void OnFault(int signal, siginfo_t* info, void*) {
  char line[256];
  const int length = std::snprintf(
      line, sizeof(line), "%s: block (%u, %u, %u), thread %d: %s, at %p\n", machine.kernel,
      blockIdx.x, blockIdx.y, blockIdx.z, machine.running,
      signal == SIGSEGV ? "access outside every array" : "index outside an array, or misaligned",
      info->si_addr);
  if (::write(STDERR_FILENO, line, static_cast<size_t>(length)) < 0) ::_exit(2);
  ::raise(signal);
}

void WatchFaults() {
  struct sigaction action = {};
  action.sa_sigaction = OnFault;
  action.sa_flags = SA_SIGINFO | SA_RESETHAND;
  ::sigaction(SIGSEGV, &action, nullptr);
  ::sigaction(SIGILL, &action, nullptr);
}
#else
void WatchFaults() {}  // a sanitizer tells of them in its own way
#endif

Thread& Running() { return *machine.all[machine.running]; }

void ThreadMain() {
  (*machine.body)();
  Running().wait = Wait::kDone;
  Running().fiber.Leave();
}

void Resume(int thread) {
  machine.running = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  Running().fiber.Resume();
}

void StartThreads() {
  for (int t = 0; t < machine.threads; ++t) {
    machine.all[t]->wait = Wait::kNone;
    machine.all[t]->fiber.Start(ThreadMain);
  }
}

// Lets the block go on when all its threads that still run wait for it.
bool OpenBlockBarrier() {
  const Thread* first = nullptr;
  for (int t = 0; t < machine.threads; ++t) {
    const Thread& one = *machine.all[t];
    if (one.wait == Wait::kDone) continue;
    if (one.wait != Wait::kBlock) return false;
    if (first == nullptr) first = &one;
    if (one.at.line() != first->at.line()) {
      Fail(t,
           fmt::format("waits for the block at {}, others at {}", Place(one.at), Place(first->at)));
      return false;
    }
  }
  if (first == nullptr) return false;
  for (int t = 0; t < machine.threads; ++t) {
    Thread& one = *machine.all[t];
    if (one.wait == Wait::kBlock) one.wait = Wait::kNone;
  }
  return true;
}

int SourceLane(const Thread& one, int lane) {
  switch (one.how) {
    case Exchange::kXor:
      return lane ^ one.operand;
    case Exchange::kDown:
      return lane + one.operand >= kWarpSize ? lane : lane + one.operand;
    case Exchange::kUp:
      return lane - one.operand < 0 ? lane : lane - one.operand;
    case Exchange::kLane:
      return one.operand & (kWarpSize - 1);
    default:
      return lane;
  }
}

// Lets the lanes that wait together with `thread` go on when all of them are there.
bool OpenWarp(int thread) {
  const Thread& asks = *machine.all[thread];
  const int first = thread / kWarpSize * kWarpSize;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((asks.mask >> lane & 1) == 0) continue;
    if (first + lane >= machine.threads) {
      Fail(thread, fmt::format("waits at {} for lane {}, which the block does not have",
                               Place(asks.at), lane));
      return false;
    }
    const Thread& other = *machine.all[first + lane];
    if (other.wait == Wait::kDone) {
      Fail(thread, fmt::format("waits at {} for lane {}, which has ended", Place(asks.at), lane));
      return false;
    }
    if (other.wait != Wait::kWarp) return false;
    if (other.mask != asks.mask || other.how != asks.how || other.at.line() != asks.at.line()) {
      Fail(thread,
           fmt::format("waits for its warp at {} with mask {:08x}, lane {} at {} with {:08x}",
                       Place(asks.at), asks.mask, lane, Place(other.at), other.mask));
      return false;
    }
  }
  uint32_t votes = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((asks.mask >> lane & 1) != 0 && machine.all[first + lane]->in != 0)
      votes |= uint32_t{1} << lane;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((asks.mask >> lane & 1) == 0) continue;
    Thread& one = *machine.all[first + lane];
    const int source = SourceLane(one, lane);
    if (source < 0 || source >= kWarpSize || (asks.mask >> source & 1) == 0) {
      Fail(first + lane, fmt::format("reads at {} the value of lane {}, which takes no part",
                                     Place(one.at), source));
      return false;
    }
    one.out = one.how == Exchange::kBallot ? votes : machine.all[first + source]->in;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((asks.mask >> lane & 1) != 0) machine.all[first + lane]->wait = Wait::kNone;
  }
  return true;
}

// The order in which things run: as they are numbered, or any.
class Order {
 public:
  explicit Order(bool shuffled) : shuffled_(shuffled) {}
  std::vector<int64_t> Of(int64_t n) {
    std::vector<int64_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    if (shuffled_) std::shuffle(order.begin(), order.end(), random_);
    return order;
  }

 private:
  const bool shuffled_;
  std::mt19937 random_{20260417};
};

void RunBlock(Order* order) {
  StartThreads();
  for (;;) {
    bool moved = false, waits = false;
    for (const int64_t t : order->Of(machine.threads)) {
      if (machine.all[t]->wait != Wait::kNone) continue;
      Resume(static_cast<int>(t));
      moved = true;
      if (!machine.failure.empty()) return;
    }
    int stuck = -1;
    for (int t = 0; t < machine.threads; ++t) {
      if (machine.all[t]->wait == Wait::kWarp) moved |= OpenWarp(t);
      if (!machine.failure.empty()) return;
      if (machine.all[t]->wait == Wait::kDone) continue;
      waits = true;
      if (machine.all[t]->wait != Wait::kNone && stuck < 0) stuck = t;
    }
    if (!waits) return;
    moved |= OpenBlockBarrier();
    if (!machine.failure.empty()) return;
    if (!moved) {
      Fail(stuck, fmt::format("waits at {} for threads that never come there",
                              Place(machine.all[stuck]->at)));
      return;
    }
  }
}

void RunGrid(const cuda::Grid& grid, bool shuffled) {
  Order order(shuffled);
  gridDim = {static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
             static_cast<unsigned>(grid.z)};
  blockDim = {static_cast<unsigned>(machine.threads)};
  for (const int64_t block : order.Of(grid.x * grid.y * grid.z)) {
    blockIdx = {static_cast<unsigned>(block % grid.x),
                static_cast<unsigned>(block / grid.x % grid.y),
                static_cast<unsigned>(block / grid.x / grid.y)};
    machine.shared->Poison();
    RunBlock(&order);
    if (machine.failure.empty() && !machine.shared->Intact())
      Fail(0, "wrote behind the end of its shared memory");
    if (!machine.failure.empty()) return;
  }
}

}  // namespace

absl::Status Run(const char* kernel, const cuda::Grid& grid, int threads, size_t shared_bytes,
                 const std::function<void()>& body) {
  if (threads < 1 || threads > kThreadsMax || shared_bytes > kSharedMax) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {} threads with {} bytes of shared memory a block; possible: 1 to {}, {}",
                    kernel, threads, shared_bytes, kThreadsMax, kSharedMax));
  }
  WatchFaults();
  while (machine.all.size() < static_cast<size_t>(threads))
    machine.all.push_back(std::make_unique<Thread>());
  GuardedBytes shared(shared_bytes);
  machine.kernel = kernel;
  machine.body = &body;
  machine.threads = threads;
  machine.shared = &shared;
  machine.failure.clear();
  const MemoryImage before = MemoryImage::Take();
  MemoryImage after;
  for (int order = 0; order < kOrders && machine.failure.empty(); ++order) {
    if (order > 0) before.Restore();
    RunGrid(grid, /*shuffled=*/order > 0);
    if (!machine.failure.empty()) break;
    if (!MemoryImage::ArraysIntact()) {
      machine.failure = fmt::format("{}: wrote behind the end of an array", kernel);
    } else if (order == 0) {
      after = MemoryImage::Take();
    } else if (!(after == MemoryImage::Take())) {
      machine.failure = fmt::format(
          "{}: what it leaves in memory depends on the order of its threads or blocks", kernel);
    }
  }
  machine.shared = nullptr;
  return machine.failure.empty() ? absl::OkStatus() : absl::InternalError(machine.failure);
}

void* SharedMemory(size_t bytes) {
  if (bytes != machine.shared->size()) {
    Fail(machine.running,
         fmt::format("takes {} bytes of shared memory for {}", machine.shared->size(), bytes));
    Running().fiber.Leave();
  }
  return machine.shared->data();
}

void* SharedBase() { return machine.shared->data(); }

void WaitForBlock(const std::source_location& at) {
  Thread& self = Running();
  self.wait = Wait::kBlock;
  self.at = at;
  Running().fiber.Leave();
}

uint64_t WaitForWarp(uint32_t mask, Exchange how, int operand, uint64_t bits,
                     const std::source_location& at) {
  Thread& self = Running();
  const int lane = machine.running % kWarpSize;
  if ((mask >> lane & 1) == 0) {
    Fail(machine.running, fmt::format("is not in the mask {:08x} at {}", mask, Place(at)));
    Running().fiber.Leave();
  }
  self.wait = Wait::kWarp;
  self.at = at;
  self.mask = mask;
  self.how = how;
  self.operand = operand;
  self.in = bits;
  Running().fiber.Leave();
  return self.out;
}

}  // namespace reprise::kernels::simt
