// What the daemon and the zygote say to each other: fixed-size messages over a SOCK_SEQPACKET pair.
// The zygote makes workers when it is asked, workers tell when they are ready. The daemon's end
// closing is how all of them learn that it died.
#pragma once

#include <cstdint>

namespace reprise::sandboxd::function {

inline constexpr int kControlFd = 3;  // in the zygote
inline constexpr char kWorkersDir[] =
    "workers";  // below the tier's directory: a run directory for each worker
inline constexpr char kStartedFile[] =
    "started";  // in a run directory: made, once, by whoever decides first
inline constexpr char kRootDir[] = "root";  // mount point of the prepared root
inline constexpr char kCgroupPrefix[] = "reprise-fn-";

struct SpawnRequest {
  char id[64] = {};
};

struct ZygoteEvent {
  enum Kind : uint32_t {
    kHello = 1,  // text: how workers are bounded and what this host lacks
    kFailed =
        2,  // id "": the zygote itself cannot work; else that worker could not be made; text: why
    kReady = 3,  // id
    kGone = 4,   // id: the worker's process ended
  };
  uint32_t kind = 0;
  char id[64] = {};
  char text[512] = {};
};

// Who a job is, inside.
inline constexpr uint32_t kJobUid = 1000;
// On the host: a uid per worker that nothing else uses, so that no two sandboxes share per-uid
// limits or rights.
inline constexpr uint32_t kHostUidBase = 0x70000000;
inline constexpr uint32_t kHostUids = 1 << 20;

}  // namespace reprise::sandboxd::function
