#include "clients/cli/bulk_lines.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/crc32c.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "rollout/job_parts.h"
#include "rollout/text.h"

namespace reprise::cli {
namespace {

namespace sandbox = ::reprise::sandbox::v1;

constexpr size_t kReadBytes = 1 << 20;
constexpr size_t kHashDigits = 12;

std::string ShortHash(std::string_view data) {
  return rollout::Hex(rollout::Sha256(data)).substr(0, kHashDigits);
}

// Text with the length of each part, so that no two lists of parts look the same.
std::string Joined(const std::vector<std::string>& parts) {
  std::string out;
  for (const std::string& part : parts) out += fmt::format("{}:{}", part.size(), part);
  return out;
}

absl::Status ReadCommand(rollout::Fields& fields, sandbox::ExecuteRequest* request) {
  bool has_command = fields.Has("command");
  std::string command = fields.String("command", "");
  std::vector<std::string> argv = fields.Strings("argv", 1, false);
  if (has_command == fields.Has("argv")) {
    fields.Fail("argv", "and command: exactly one of the two is needed");
  } else if (has_command) {
    argv = {"/bin/sh", "-c", command};
  }
  request->mutable_argv()->Assign(argv.begin(), argv.end());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BulkLine> ParseBulkLine(std::string_view text, const std::string& where,
                                       const BulkDefaults& defaults) {
  absl::StatusOr<rollout::Json> json = rollout::ParseJson(text);
  if (!json.ok())
    return absl::InvalidArgumentError(fmt::format("{}: {}", where, json.status().message()));
  rollout::Fields fields(*json, where, "");
  BulkLine line;
  line.spec = defaults.spec;
  line.id = fields.String("id");
  absl::Status valid = base::CheckId(line.id, "id", /*allow_slash=*/true);
  if (!valid.ok()) fields.Fail("", std::string(valid.message()));
  if (line.id.size() > kMaxBulkIdBytes)
    fields.Fail("id", fmt::format("has {} bytes, the most is {}", line.id.size(), kMaxBulkIdBytes));
  sandbox::ExecuteRequest& request = line.request;
  RETURN_IF_ERROR(ReadCommand(fields, &request));
  request.set_stdin(fields.String("stdin", ""));
  for (const auto& [name, content] : fields.StringMap("files")) {
    sandbox::InputFile* file = request.add_files();
    file->set_path(name);
    file->set_content(content);
  }
  for (const auto& [name, value] : fields.StringMap("env")) {
    sandbox::EnvVar* variable = request.add_env();
    variable->set_name(name);
    variable->set_value(value);
  }
  if (std::optional<rollout::Fields> limits = fields.Table("limits")) {
    ASSIGN_OR_RETURN(*request.mutable_limits(), rollout::ReadLimits(*limits, {}));
  }
  request.set_working_dir(fields.String("working_dir", ""));
  request.set_user(fields.String("user", ""));
  bool rerun = fields.OneOf("on_interrupt", {"report", "rerun"}, "report") == "rerun";
  request.set_on_interrupt(rerun ? sandbox::INTERRUPT_POLICY_RERUN
                                 : sandbox::INTERRUPT_POLICY_REPORT);
  line.spec.set_image(fields.String("image", line.spec.image()));
  if (std::optional<rollout::Fields> table = fields.Table("sandbox")) {
    ASSIGN_OR_RETURN(line.spec, rollout::ReadSandbox(*table, line.spec, "/"));
  }
  RETURN_IF_ERROR(fields.Finish());

  // Labels, the one map of a spec, are not set here: the bytes are the same every time.
  std::string spec_hash = ShortHash(line.spec.SerializeAsString());
  std::string hash = ShortHash(Joined({std::string(text), spec_hash}));
  request.set_call_id(fmt::format("bulk/{}/{}/{}", defaults.name, line.id, hash));
  // Calls of the function tier share nothing, so they may share a sandbox.
  bool shared = line.spec.tier() == sandbox::TIER_FUNCTION;
  request.set_sandbox_id(shared ? fmt::format("bulk/{}/{}", defaults.name, spec_hash)
                                : request.call_id());
  return line;
}

absl::StatusOr<std::unique_ptr<BulkFile>> BulkFile::Open(const std::string& path,
                                                         const BulkDefaults& defaults) {
  base::UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return base::ErrnoStatus(errno, fmt::format("cannot read {}", path));
  std::unique_ptr<BulkFile> bulk(new BulkFile(path, defaults, std::move(file)));
  RETURN_IF_ERROR(bulk->Index());
  return bulk;
}

std::string BulkFile::Where(uint32_t line) const { return fmt::format("{}:{}", path_, line); }

absl::Status BulkFile::Index() {
  std::unordered_map<std::string, uint32_t> seen;  // id -> line
  std::string pending, buffer(kReadBytes, '\0');
  uint64_t offset = 0;  // of pending, in the file
  uint32_t number = 0;
  auto take = [&](std::string_view text) -> absl::Status {
    if (++number > kMaxBulkLines)
      return absl::InvalidArgumentError(
          fmt::format("{}: more than {} lines, split the file", path_, kMaxBulkLines));
    if (rollout::Strip(text).empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(BulkLine line, ParseBulkLine(text, Where(number), defaults_));
    auto [known, fresh] = seen.emplace(std::move(line.id), number);
    if (!fresh) {
      return absl::InvalidArgumentError(fmt::format("{}: id \"{}\" is that of line {} too",
                                                    Where(number), known->first, known->second));
    }
    places_.push_back({offset, static_cast<uint32_t>(text.size()), number, base::Crc32c(text)});
    return absl::OkStatus();
  };
  while (true) {
    ssize_t got = ::read(file_.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return base::ErrnoStatus(errno, fmt::format("cannot read {}", path_));
    pending.append(buffer.data(), static_cast<size_t>(got));
    size_t begin = 0;
    for (size_t end; (end = pending.find('\n', begin)) != pending.npos; begin = end + 1) {
      RETURN_IF_ERROR(take(std::string_view(pending).substr(begin, end - begin)));
      offset += end + 1 - begin;
    }
    pending.erase(0, begin);
    if (pending.size() > kMaxBulkLineBytes) {
      return absl::InvalidArgumentError(
          fmt::format("{}: longer than {} bytes", Where(number + 1), kMaxBulkLineBytes));
    }
    if (got == 0) break;
  }
  return pending.empty() ? absl::OkStatus() : take(pending);
}

absl::StatusOr<BulkLine> BulkFile::Read(size_t index) const {
  const Place& place = places_[index];
  std::string text(place.bytes, '\0');
  size_t done = 0;
  while (done < text.size()) {
    ssize_t got = ::pread(file_.get(), text.data() + done, text.size() - done,
                          static_cast<off_t>(place.offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    done += static_cast<size_t>(got);
  }
  if (done != text.size() || base::Crc32c(text) != place.crc) {
    return absl::DataLossError(fmt::format(
        "{}: the file was changed while it ran, run the same command again", Where(place.line)));
  }
  return ParseBulkLine(text, Where(place.line), defaults_);
}

}  // namespace reprise::cli
