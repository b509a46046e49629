// `reprise sandbox cp`: one file into or out of a sandbox. A name with a colon is SANDBOX:PATH;
// ./name or an absolute path is always one of this machine.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/fd.h"
#include "base/status_macros.h"
#include "clients/cli/output.h"
#include "clients/cli/sandbox_verbs.h"

namespace reprise::cli {
namespace {

constexpr size_t kPieceBytes = 64 << 10;

struct InSandbox {
  std::string id, path;
};

std::optional<InSandbox> Split(const std::string& name) {
  size_t colon = name.find(':');
  if (colon == 0 || colon == name.npos || name[0] == '.' || name[0] == '/') return std::nullopt;
  return InSandbox{name.substr(0, colon), name.substr(colon + 1)};
}

std::string BaseName(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

absl::StatusOr<uint64_t> Upload(SandboxApi* api, const std::string& from, InSandbox to) {
  base::UniqueFd file(::open(from.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return base::ErrnoStatus(errno, fmt::format("cannot read {}", from));
  struct stat info {};
  if (::fstat(file.get(), &info) != 0)
    return base::ErrnoStatus(errno, fmt::format("cannot read {}", from));
  if (S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(
        fmt::format("{} is a directory: cp takes one file, pack the directory first", from));
  }
  if (to.path.empty() || to.path.ends_with('/')) to.path += BaseName(from);
  return api->WriteFile(to.id, to.path, info.st_mode & 07777, [&]() -> absl::StatusOr<std::string> {
    std::string piece(kPieceBytes, '\0');
    ssize_t got;
    do {
      got = ::read(file.get(), piece.data(), piece.size());
    } while (got < 0 && errno == EINTR);
    if (got < 0) return base::ErrnoStatus(errno, fmt::format("cannot read {}", from));
    piece.resize(static_cast<size_t>(got));
    return piece;
  });
}

absl::StatusOr<uint64_t> Download(SandboxApi* api, const InSandbox& from, std::string* to) {
  std::error_code ignored;
  if (std::filesystem::is_directory(*to, ignored)) *to += "/" + BaseName(from.path);
  std::string partial = *to + ".partial";
  base::UniqueFd file(::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!file.valid()) return base::ErrnoStatus(errno, fmt::format("cannot write {}", partial));
  uint64_t bytes = 0;
  absl::Status read = api->ReadFile(from.id, from.path, [&](std::string_view data) {
    bytes += data.size();
    return base::WriteAll(file.get(), data, partial);
  });
  if (!read.ok()) {
    ::unlink(partial.c_str());
    return read;
  }
  if (::rename(partial.c_str(), to->c_str()) != 0)
    return base::ErrnoStatus(errno, fmt::format("cannot move {} to {}", partial, *to));
  return bytes;
}

}  // namespace

absl::StatusOr<int> CopyFile(const Context& context, const SandboxOptions& options) {
  std::optional<InSandbox> from = Split(options.from), to = Split(options.to);
  if (from.has_value() == to.has_value())
    return UsageError("one of the two names must be SANDBOX:PATH, the other one of this machine");
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  std::string target = options.to;
  uint64_t bytes = 0;
  if (from.has_value()) {
    ASSIGN_OR_RETURN(bytes, Download(api.get(), *from, &target));
  } else {
    ASSIGN_OR_RETURN(bytes, Upload(api.get(), options.from, *to));
  }
  if (context.json) {
    PrintJson({{"from", options.from}, {"to", target}, {"bytes", bytes}});
  } else {
    Print(fmt::format("{} copied to {}\n", HumanBytes(bytes), target));
  }
  return kExitDone;
}

}  // namespace reprise::cli
