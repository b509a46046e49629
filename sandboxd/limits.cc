#include "sandboxd/limits.h"

#include <climits>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>

#include <fmt/format.h>

#include "absl/strings/escaping.h"
#include "base/fd.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/network/policy.h"

namespace reprise::sandboxd {
namespace {

using EnvVars = google::protobuf::RepeatedPtrField<sandbox::EnvVar>;

absl::Status Bad(std::string_view field, std::string_view why) {
  return absl::InvalidArgumentError(fmt::format("{} {}", field, why));
}

std::string Shown(std::string_view text) { return absl::CEscape(std::string(text.substr(0, 64))); }

absl::Status AtMost(std::string_view field, uint64_t value, uint64_t limit, std::string_view unit) {
  if (value <= limit) return absl::OkStatus();
  return Bad(field, fmt::format("is {} {}, the limit is {}", value, unit, limit));
}

absl::Status CheckText(std::string_view field, std::string_view text, size_t limit) {
  if (text.find('\0') != std::string_view::npos) return Bad(field, "has a NUL byte");
  return AtMost(field, text.size(), limit, "bytes long");
}

absl::Status CheckEnv(const EnvVars& env) {
  RETURN_IF_ERROR(AtMost("env", static_cast<uint64_t>(env.size()), kEnvVarsMax, "variables"));
  size_t bytes = 0;
  for (const sandbox::EnvVar& variable : env) {
    if (variable.name().empty()) return Bad("env", "has a variable without a name");
    if (variable.name().find_first_of(std::string_view("=\0", 2)) != std::string::npos) {
      return Bad("env", fmt::format("has the name \"{}\": '=' and NUL are not allowed",
                                    Shown(variable.name())));
    }
    RETURN_IF_ERROR(CheckText(fmt::format("env {}", Shown(variable.name())), variable.value(),
                              kStringBytesMax));
    RETURN_IF_ERROR(AtMost(fmt::format("env {}", Shown(variable.name())),
                           variable.name().size() + variable.value().size() + 2, kStringBytesMax,
                           "bytes long"));
    bytes += variable.name().size() + variable.value().size() + 2;
  }
  return AtMost("env", bytes, kEnvBytesMax, "bytes in all");
}

absl::Status CheckLimits(const sandbox::Limits& limits) {
  RETURN_IF_ERROR(AtMost("limits.timeout_ms", limits.timeout_ms(), kTimeoutMsMax, "ms"));
  RETURN_IF_ERROR(AtMost("limits.memory_bytes", limits.memory_bytes(), kMemoryBytesMax, "bytes"));
  RETURN_IF_ERROR(AtMost("limits.pids", limits.pids(), kPidsMax, "processes"));
  RETURN_IF_ERROR(AtMost("limits.cpu_ms", limits.cpu_ms(), kTimeoutMsMax, "ms"));
  RETURN_IF_ERROR(AtMost("limits.file_bytes", limits.file_bytes(), kFileBytesMax, "bytes"));
  RETURN_IF_ERROR(AtMost("limits.disk_bytes", limits.disk_bytes(), kFileBytesMax, "bytes"));
  RETURN_IF_ERROR(AtMost("limits.open_files", limits.open_files(), kOpenFilesMax, "descriptors"));
  RETURN_IF_ERROR(
      AtMost("limits.output_bytes_kept", limits.output_bytes_kept(), kOutputKeptMax, "bytes"));
  return AtMost("limits.output_bytes_max", limits.output_bytes_max(), kOutputBytesMax, "bytes");
}

absl::Status CheckWorkingDir(std::string_view path) {
  if (!path.empty() && path.front() != '/') {
    return Bad("working_dir", fmt::format("\"{}\" is not absolute", Shown(path)));
  }
  return CheckText("working_dir", path, kPathBytesMax);
}

// A path below the working directory.
absl::Status CheckInputPath(std::string_view path) {
  RETURN_IF_ERROR(CheckText("files.path", path, kPathBytesMax));
  auto bad = [&](std::string_view why) {
    return Bad("files.path", fmt::format("\"{}\" {}", Shown(path), why));
  };
  if (path.empty()) return bad("is empty");
  if (path.front() == '/') return bad("is absolute: give it relative to the working directory");
  for (size_t at = 0; at <= path.size();) {
    size_t end = std::min(path.find('/', at), path.size());
    std::string_view segment = path.substr(at, end - at);
    if (segment.empty() || segment == "." || segment == "..")
      return bad("has an empty or dotted segment");
    at = end + 1;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> RealPath(const std::string& path) {
  std::unique_ptr<char, decltype(&std::free)> real(::realpath(path.c_str(), nullptr), &std::free);
  if (real == nullptr) return base::ErrnoStatus(errno, fmt::format("cannot resolve {}", path));
  return std::string(real.get());
}

bool IsBelow(std::string_view path, std::string_view root) {
  if (root == "/") return true;
  return path.substr(0, root.size()) == root &&
         (path.size() == root.size() || path[root.size()] == '/');
}

template <typename T>
T FirstSet(T a, T b, T c) {
  return a != 0 ? a : b != 0 ? b : c;
}

}  // namespace

absl::Status CheckExecute(const sandbox::ExecuteRequest& request) {
  RETURN_IF_ERROR(base::CheckId(request.sandbox_id(), "sandbox_id", /*allow_slash=*/true));
  if (!request.call_id().empty()) {
    RETURN_IF_ERROR(base::CheckId(request.call_id(), "call_id", /*allow_slash=*/true));
  }
  if (request.argv().empty() || request.argv(0).empty())
    return Bad("argv", "is empty: name a program to run");
  RETURN_IF_ERROR(AtMost("argv", static_cast<uint64_t>(request.argv_size()), kArgsMax, "entries"));
  size_t bytes = 0;
  for (const std::string& argument : request.argv()) {
    RETURN_IF_ERROR(CheckText("argv", argument, kStringBytesMax - 1));
    bytes += argument.size() + 1;
  }
  RETURN_IF_ERROR(AtMost("argv", bytes, kArgsBytesMax, "bytes in all"));
  RETURN_IF_ERROR(CheckEnv(request.env()));
  RETURN_IF_ERROR(CheckWorkingDir(request.working_dir()));
  RETURN_IF_ERROR(AtMost("stdin", request.stdin().size(), kStdinBytesMax, "bytes"));
  RETURN_IF_ERROR(CheckLimits(request.limits()));
  if (!sandbox::InterruptPolicy_IsValid(request.on_interrupt())) {
    return Bad("on_interrupt",
               fmt::format("{} is not a policy", static_cast<int>(request.on_interrupt())));
  }
  RETURN_IF_ERROR(
      AtMost("files", static_cast<uint64_t>(request.files_size()), kInputFilesMax, "files"));
  bytes = 0;
  for (const sandbox::InputFile& file : request.files()) {
    RETURN_IF_ERROR(CheckInputPath(file.path()));
    if (file.mode() > 07777)
      return Bad("files.mode", fmt::format("{:o} is not a set of permission bits", file.mode()));
    bytes += file.content().size();
  }
  RETURN_IF_ERROR(AtMost("files", bytes, kInputFileBytesMax, "bytes in all"));
  RETURN_IF_ERROR(CheckText("user", request.user(), kNameBytesMax));
  RETURN_IF_ERROR(AtMost("pty.rows", request.pty().rows(), kTerminalSideMax, "rows"));
  RETURN_IF_ERROR(AtMost("pty.columns", request.pty().columns(), kTerminalSideMax, "columns"));
  RETURN_IF_ERROR(CheckText("pty.term", request.pty().term(), kNameBytesMax));
  if (!request.span().trajectory_id().empty()) {
    RETURN_IF_ERROR(
        base::CheckId(request.span().trajectory_id(), "span.trajectory_id", /*allow_slash=*/true));
  }
  return AtMost("request", request.ByteSizeLong(), kRequestBytesMax, "bytes");
}

absl::Status CheckResize(const sandbox::ResizeRequest& request) {
  RETURN_IF_ERROR(base::CheckId(request.call_id(), "call_id", /*allow_slash=*/true));
  for (const auto& [field, side] : {std::pair<std::string_view, uint32_t>{"rows", request.rows()},
                                    {"columns", request.columns()}}) {
    if (side == 0) return Bad(field, "is 0: a terminal has at least one");
    RETURN_IF_ERROR(AtMost(field, side, kTerminalSideMax, "cells"));
  }
  return absl::OkStatus();
}

absl::Status CheckSpec(const sandbox::SandboxSpec& spec) {
  if (spec.tier() == sandbox::TIER_UNSPECIFIED || !sandbox::Tier_IsValid(spec.tier())) {
    return Bad("spec.tier", "is not set: choose one of those that ListTiers names");
  }
  RETURN_IF_ERROR(CheckText("spec.image", spec.image(), kNameBytesMax));
  RETURN_IF_ERROR(CheckText("spec.runtime", spec.runtime(), kNameBytesMax));
  RETURN_IF_ERROR(CheckText("spec.user", spec.user(), kNameBytesMax));
  RETURN_IF_ERROR(CheckLimits(spec.limits()));
  RETURN_IF_ERROR(CheckEnv(spec.env()));
  RETURN_IF_ERROR(CheckWorkingDir(spec.working_dir()));
  RETURN_IF_ERROR(
      AtMost("spec.binds", static_cast<uint64_t>(spec.binds_size()), kBindsMax, "binds"));
  for (const sandbox::Bind& bind : spec.binds()) {
    for (const auto& [field, path] :
         {std::pair<std::string_view, std::string_view>{"host_path", bind.host_path()},
          {"sandbox_path", bind.sandbox_path()}}) {
      RETURN_IF_ERROR(CheckText(fmt::format("spec.binds.{}", field), path, kPathBytesMax));
      if (path.empty() || path.front() != '/' ||
          fmt::format("{}/", path).find("/../") != std::string::npos) {
        return Bad(fmt::format("spec.binds.{}", field),
                   fmt::format("\"{}\" is not an absolute path without \"..\"", Shown(path)));
      }
    }
    if (bind.sandbox_path().find_first_not_of('/') == std::string::npos) {
      return Bad("spec.binds.sandbox_path", "is the root of the sandbox");
    }
  }
  if (spec.has_network()) RETURN_IF_ERROR(CheckNetwork(spec.network()));
  RETURN_IF_ERROR(AtMost("spec.labels", spec.labels().size(), kLabelsMax, "labels"));
  for (const auto& [key, value] : spec.labels()) {
    RETURN_IF_ERROR(CheckText("spec.labels", key, kLabelBytesMax));
    RETURN_IF_ERROR(CheckText("spec.labels", value, kLabelBytesMax));
  }
  return absl::OkStatus();
}

absl::Status CheckNetwork(const sandbox::NetworkPolicy& policy) {
  return network::Policy::Make({policy.allow().begin(), policy.allow().end()},
                               {policy.deny().begin(), policy.deny().end()}, policy.open())
      .status();
}

absl::StatusOr<sandbox::SandboxSpec> ResolveBinds(const sandbox::SandboxSpec& spec,
                                                  const std::vector<std::string>& roots) {
  sandbox::SandboxSpec resolved = spec;
  for (sandbox::Bind& bind : *resolved.mutable_binds()) {
    absl::StatusOr<std::string> real = RealPath(bind.host_path());
    bool allowed =
        false;  // a path that does not exist is judged as written, so that the answer tells nothing
    for (size_t i = 0; i < roots.size() && !allowed; ++i) {
      absl::StatusOr<std::string> root = RealPath(roots[i]);
      allowed = root.ok() && IsBelow(real.ok() ? *real : bind.host_path(), *root);
    }
    if (!allowed) {
      return absl::PermissionDeniedError(fmt::format(
          "bind of {} refused: it does not lie below a bind root of this daemon (--bind-root)",
          bind.host_path()));
    }
    RETURN_IF_ERROR(real.status());
    bind.set_host_path(*real);
  }
  return resolved;
}

sandbox::Limits ResolveLimits(const sandbox::Limits& call, const sandbox::Limits& box,
                              const sandbox::Limits& tier) {
  sandbox::Limits out;
  out.set_timeout_ms(FirstSet(call.timeout_ms(), box.timeout_ms(), tier.timeout_ms()));
  out.set_memory_bytes(FirstSet(call.memory_bytes(), box.memory_bytes(), tier.memory_bytes()));
  out.set_pids(FirstSet(call.pids(), box.pids(), tier.pids()));
  out.set_cpu_ms(FirstSet(call.cpu_ms(), box.cpu_ms(), tier.cpu_ms()));
  out.set_file_bytes(FirstSet(call.file_bytes(), box.file_bytes(), tier.file_bytes()));
  out.set_disk_bytes(FirstSet(call.disk_bytes(), box.disk_bytes(), tier.disk_bytes()));
  out.set_open_files(FirstSet(call.open_files(), box.open_files(), tier.open_files()));
  out.set_output_bytes_kept(FirstSet(
      FirstSet(call.output_bytes_kept(), box.output_bytes_kept(), tier.output_bytes_kept()),
      kOutputKeptDefault, kOutputKeptDefault));
  out.set_output_bytes_max(
      FirstSet(FirstSet(call.output_bytes_max(), box.output_bytes_max(), tier.output_bytes_max()),
               kOutputBytesDefault, kOutputBytesDefault));
  out.set_best_effort(call.best_effort() || box.best_effort());
  return out;
}

sandbox::ExecuteRequest ResolveRequest(const sandbox::ExecuteRequest& request,
                                       const sandbox::SandboxSpec& spec,
                                       const sandbox::Limits& tier) {
  sandbox::ExecuteRequest out = request;
  *out.mutable_limits() = ResolveLimits(request.limits(), spec.limits(), tier);
  out.clear_env();
  auto put = [&](const sandbox::EnvVar& variable) {
    for (sandbox::EnvVar& have : *out.mutable_env()) {
      if (have.name() == variable.name()) {
        have = variable;
        return;
      }
    }
    *out.add_env() = variable;
  };
  for (const sandbox::EnvVar& variable : spec.env()) put(variable);
  for (const sandbox::EnvVar& variable : request.env()) put(variable);
  if (out.working_dir().empty()) {
    out.set_working_dir(spec.working_dir().empty() ? kWorkingDirDefault : spec.working_dir());
  }
  if (out.user().empty()) out.set_user(spec.user());
  return out;
}

bool HasSecrets(const EnvVars& env) {
  for (const sandbox::EnvVar& variable : env) {
    if (variable.secret()) return true;
  }
  return false;
}

}  // namespace reprise::sandboxd
