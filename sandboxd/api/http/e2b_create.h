// E2B's create request as a sandbox spec. What cannot be done here is refused, never done by half.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::sandboxd::http {

namespace sandbox = ::reprise::sandbox::v1;

inline constexpr int64_t kTimeoutSecondsMax = 86'400;

struct CreateOrder {
  sandbox::SandboxSpec spec;
  std::string template_id;  // as asked for
  std::string trajectory;   // whose prefix is replayed; empty: none
  int64_t timeout_s = 0;
  bool pause_at_end = false;
};

// `default_timeout_s`: where the request has none. `internet`: allow_internet_access, which E2B's
// clients send by themselves, opens every public address; else only network.allowOut opens
// anything. INVALID_ARGUMENT; UNIMPLEMENTED for fields that ask for something no tier does.
absl::StatusOr<CreateOrder> ParseCreate(std::string_view body, int64_t default_timeout_s,
                                        bool internet);

// The body of a network update: E2B's network object. Errors and `internet` as above.
absl::StatusOr<sandbox::NetworkPolicy> ParseNetworkUpdate(std::string_view body, bool internet);

// "timeout" of a request, in seconds. INVALID_ARGUMENT outside 0..86,400.
absl::StatusOr<int64_t> ParseTimeout(std::string_view body, int64_t default_timeout_s);

}  // namespace reprise::sandboxd::http
