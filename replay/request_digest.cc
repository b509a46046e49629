#include "replay/request_digest.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "absl/strings/escaping.h"
#include "replay/call_log.h"
#include "replay/sha256.h"

namespace reprise::replay {
namespace {

constexpr size_t kShownBytes = 60;

struct Field {
  std::string name;
  std::string value;
};

std::string EnvText(const sandbox::EnvVar& variable) {
  return fmt::format("{}={}{}", variable.name(), variable.secret() ? "secret " : "",
                     variable.value());
}

// The order is part of the format.
std::vector<Field> Fields(const sandbox::ExecuteRequest& request) {
  std::vector<Field> fields;
  auto text = [&](std::string name, std::string value) {
    fields.push_back({std::move(name), std::move(value)});
  };
  auto number = [&](std::string name, uint64_t value) {
    text(std::move(name), fmt::format("{}", value));
  };
  text("sandbox_id", request.sandbox_id());
  number("argv.size", static_cast<uint64_t>(request.argv_size()));
  for (int i = 0; i < request.argv_size(); ++i) text(fmt::format("argv[{}]", i), request.argv(i));
  number("env.size", static_cast<uint64_t>(request.env_size()));
  for (int i = 0; i < request.env_size(); ++i)
    text(fmt::format("env[{}]", i), EnvText(request.env(i)));
  text("working_dir", request.working_dir());
  text("stdin", request.stdin());
  number("stdin_open", request.stdin_open() ? 1 : 0);
  const sandbox::Limits& limits = request.limits();
  number("limits.timeout_ms", limits.timeout_ms());
  number("limits.memory_bytes", limits.memory_bytes());
  number("limits.pids", limits.pids());
  number("limits.cpu_ms", limits.cpu_ms());
  number("limits.file_bytes", limits.file_bytes());
  number("limits.disk_bytes", limits.disk_bytes());
  number("limits.open_files", limits.open_files());
  number("limits.output_bytes_kept", limits.output_bytes_kept());
  number("limits.output_bytes_max", limits.output_bytes_max());
  text("on_interrupt", sandbox::InterruptPolicy_Name(request.on_interrupt()));
  number("files.size", static_cast<uint64_t>(request.files_size()));
  for (int i = 0; i < request.files_size(); ++i) {
    text(fmt::format("files[{}].path", i), request.files(i).path());
    number(fmt::format("files[{}].mode", i), request.files(i).mode());
    text(fmt::format("files[{}].content", i), request.files(i).content());
  }
  text("user", request.user());
  if (request
          .has_pty()) {  // absent from the digest of a request without: older ones stay as they are
    number("pty.rows", request.pty().rows());
    number("pty.columns", request.pty().columns());
    text("pty.term", request.pty().term());
  }
  return fields;
}

std::string Shown(const std::string& value) {
  std::string shown = absl::CEscape(value.substr(0, kShownBytes));
  return value.size() > kShownBytes ? fmt::format("\"{}\"... ({} bytes)", shown, value.size())
                                    : fmt::format("\"{}\"", shown);
}

}  // namespace

sandbox::ExecuteRequest RedactSecrets(const sandbox::ExecuteRequest& request) {
  sandbox::ExecuteRequest redacted = request;
  for (sandbox::EnvVar& variable : *redacted.mutable_env()) {
    if (variable.secret()) variable.set_value("sha256:" + Hex(Sha256Of(variable.value())));
  }
  return redacted;
}

std::string RedactedDigest(const sandbox::ExecuteRequest& request) {
  Sha256 hash;
  for (const Field& field : Fields(request)) hash.AddSized(field.name).AddSized(field.value);
  return hash.Finish();
}

std::string RequestDigest(const sandbox::ExecuteRequest& request) {
  return RedactedDigest(RedactSecrets(request));
}

std::string FirstDifference(const sandbox::ExecuteRequest& stored,
                            const sandbox::ExecuteRequest& asked) {
  std::vector<Field> was = Fields(stored);
  std::vector<Field> is = Fields(asked);
  for (size_t i = 0; i < std::min(was.size(), is.size()); ++i) {
    if (was[i].name != is[i].name || was[i].value != is[i].value) {
      return fmt::format("{} differs: was {}, is {}", was[i].name, Shown(was[i].value),
                         Shown(is[i].value));
    }
  }
  if (was.size() == is.size()) return "";
  const bool fewer = was.size() < is.size();
  return fmt::format("{} differs: only the {} has it",
                     fewer ? is[was.size()].name : was[is.size()].name,
                     fewer ? "new request" : "old one");
}

}  // namespace reprise::replay
