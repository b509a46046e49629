// What may be asked of this daemon: named maxima of requests and specs, checked once at the door,
// and the rules that turn a request into what a tier runs (defaults filled in, environment merged).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::sandboxd {

namespace sandbox = ::reprise::sandbox::v1;

inline constexpr size_t kRequestBytesMax = 64u << 20;  // one gRPC message
inline constexpr int kArgsMax = 4096;                  // argv entries
inline constexpr size_t kArgsBytesMax = 1u << 20;      // argv in all
inline constexpr size_t kStringBytesMax =
    128u << 10;                           // one argument or variable (Linux: MAX_ARG_STRLEN)
inline constexpr int kEnvVarsMax = 1024;  // variables
inline constexpr size_t kEnvBytesMax = 512u << 10;       // environment in all
inline constexpr size_t kStdinBytesMax = 32u << 20;      // stdin given at once
inline constexpr int kInputFilesMax = 1024;              // files of one request
inline constexpr size_t kInputFileBytesMax = 48u << 20;  // their content in all
inline constexpr int kBindsMax = 64;
inline constexpr int kLabelsMax = 64;
inline constexpr size_t kLabelBytesMax = 4096;       // one key or value
inline constexpr size_t kPathBytesMax = 4095;        // PATH_MAX without the NUL
inline constexpr size_t kNameBytesMax = 256;         // image, runtime, user, TERM
inline constexpr uint32_t kTerminalSideMax = 65535;  // rows or columns

// Sandboxes of one daemon that are not stopped, where it was not told another bound.
inline constexpr size_t kSandboxesMax = 10000;

// The largest value of each limit.
inline constexpr uint64_t kTimeoutMsMax = 7ull * 24 * 3600 * 1000;
inline constexpr uint64_t kMemoryBytesMax = 16ull << 40;
inline constexpr uint32_t kPidsMax = 1u << 20;
inline constexpr uint64_t kFileBytesMax = 16ull << 40;
inline constexpr uint32_t kOpenFilesMax = 1u << 20;
inline constexpr uint64_t kOutputKeptMax = 1ull << 30;
inline constexpr uint64_t kOutputBytesMax = 1ull << 40;

inline constexpr uint64_t kOutputKeptDefault = 64ull << 20;
inline constexpr uint64_t kOutputBytesDefault = 256ull << 20;
inline constexpr char kWorkingDirDefault[] = "/work";

// INVALID_ARGUMENT naming the field and the limit. Does not look at ids' existence.
absl::Status CheckExecute(const sandbox::ExecuteRequest& request);
absl::Status CheckResize(const sandbox::ResizeRequest& request);
absl::Status CheckSpec(const sandbox::SandboxSpec& spec);
absl::Status CheckNetwork(const sandbox::NetworkPolicy& policy);

// `spec` with each bind's host path free of symbolic links. PERMISSION_DENIED unless it lies below
// one of `roots`; NOT_FOUND when it does not exist.
absl::StatusOr<sandbox::SandboxSpec> ResolveBinds(const sandbox::SandboxSpec& spec,
                                                  const std::vector<std::string>& roots);

// The first non-zero of the call's, the sandbox's and the tier's limit, for each.
sandbox::Limits ResolveLimits(const sandbox::Limits& call, const sandbox::Limits& sandbox_limits,
                              const sandbox::Limits& tier);
// What a tier is given: limits resolved, the sandbox's variables under the call's, working
// directory and user set.
sandbox::ExecuteRequest ResolveRequest(const sandbox::ExecuteRequest& request,
                                       const sandbox::SandboxSpec& spec,
                                       const sandbox::Limits& tier);

bool HasSecrets(const google::protobuf::RepeatedPtrField<sandbox::EnvVar>& env);

}  // namespace reprise::sandboxd
