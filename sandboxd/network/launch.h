// Starts a gate and talks to it. Without any library: the function tier's workers use it too.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

namespace reprise::sandboxd::network {

inline constexpr char kGateProgram[] = "reprise-netgate";
inline constexpr char kGateProbe[] = "--probe";  // in place of the resolver: only tries
inline constexpr char kGateSocket[] =
    "network.sock";  // in a directory that the sandbox does not see

// The gate's descriptors.
enum GateFd { kGatePolicy = 0, kGateStatus = 3, kGateNetns = 4, kGateLife = 5, kGateDir = 6 };

struct GateLaunch {
  std::string program;   // path of reprise-netgate
  std::string dir;       // where its socket is made; one of before is replaced
  std::string resolver;  // ADDRESS:PORT
  std::string policy;    // as Policy::Text
  pid_t sandbox = -1;    // a process in its network namespace: the gate ends with it
};
// Returns when the network is there. False: `why` is one line, and no gate runs. The gate is
// nobody's child.
bool LaunchGate(const GateLaunch& launch, std::string* why);

// Whether a gate can work on this host, tried in a network namespace of its own.
bool ProbeGate(const std::string& program, std::string* why);

enum class GateAnswer {
  kOk,
  kNeverThere,  // there is no socket
  kGone,        // nothing answers at it
  kRefused,     // it answered that it will not, or nonsense
};
// One request (gate.h). `answer`, where wanted: without "ok\n". `why`, unless kOk: one line.
GateAnswer AskGate(const std::string& dir, std::string_view request, std::string* answer,
                   std::string* why);

}  // namespace reprise::sandboxd::network
