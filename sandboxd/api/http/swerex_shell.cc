#include "sandboxd/api/http/swerex_shell.h"

#include <fmt/format.h>

namespace reprise::sandboxd::http {
namespace {

// $1: state directory. Read-only variables are the shell's own; a new shell has them already.
constexpr std::string_view kSave = R"sh(
__reprise_save() {
  { declare -p | sed '/^declare -[^ ]*r/d'; declare -f; alias -p; shopt -p; set +o; } >"$1/new" 2>/dev/null
  pwd >"$1/cwd"; mv "$1/new" "$1/state"
}
)sh";
constexpr std::string_view kOpen = R"sh(
__reprise_dir=$1; shift
mkdir "$__reprise_dir" || { exec 2>&3; echo 'SESSION_EXISTS' >&2; exit 1; }
exec 2>&1
for __reprise_file; do . "$__reprise_file"; done
__reprise_save "$__reprise_dir"
)sh";
// The state is kept when the command leaves the shell, too.
constexpr std::string_view kRun = R"sh(
[ -f "$1/state" ] || { echo 'NO_SESSION' >&2; exit 1; }
exec 2>&1
__reprise_dir=$1 __reprise_command=$2
. "$1/state" >/dev/null 2>&1
__reprise_dir=$1 __reprise_command=$2
cd "$(cat "$__reprise_dir/cwd")" || exit 1
set --
trap '__reprise_code=$?; trap - EXIT; __reprise_save "$__reprise_dir"; exit "$__reprise_code"' EXIT
eval "$__reprise_command"
)sh";
constexpr std::string_view kClose = R"sh(
[ -d "$1" ] || { echo 'NO_SESSION' >&2; exit 1; }
rm -rf "$1"
)sh";
constexpr std::string_view kUnzip = R"sh(
mkdir -p "$2" && { unzip -oq "$1" -d "$2" || python3 -m zipfile -e "$1" "$2"; }
code=$?; rm -f "$1"; exit $code
)sh";

std::string Directory(std::string_view session) {
  return fmt::format("/tmp/.reprise-session-{}", session);
}

std::string Filled(std::string_view script) {
  std::string text(script);
  auto put = [&](std::string_view name, std::string_view value) {
    if (const size_t at = text.find(name); at != std::string::npos)
      text.replace(at, name.size(), value);
  };
  put("NO_SESSION", kNoSession);
  put("SESSION_EXISTS", kSessionExists);
  return text;
}

std::vector<std::string> Bash(std::string_view script, std::vector<std::string> arguments) {
  std::vector<std::string> argv = {"bash", "-c", Filled(script), "session"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return argv;
}

}  // namespace

std::vector<std::string> OpenSession(std::string_view session,
                                     const std::vector<std::string>& sources) {
  std::vector<std::string> arguments = {Directory(session)};
  arguments.insert(arguments.end(), sources.begin(), sources.end());
  return Bash(fmt::format("shopt -s expand_aliases\nexec 3>&2 2>/dev/null\n{}{}", kSave, kOpen),
              std::move(arguments));
}

std::vector<std::string> RunInSession(std::string_view session, std::string_view command) {
  return Bash(fmt::format("shopt -s expand_aliases\n{}{}", kSave, kRun),
              {Directory(session), std::string(command)});
}

std::vector<std::string> CloseSession(std::string_view session) {
  return Bash(kClose, {Directory(session)});
}

std::vector<std::string> Unzip(std::string_view archive, std::string_view target) {
  return {"/bin/sh", "-c", std::string(kUnzip), "unzip", std::string(archive), std::string(target)};
}

std::vector<std::string> Merged(const std::vector<std::string>& argv) {
  std::vector<std::string> merged = {"/bin/sh", "-c", "exec \"$@\" 2>&1", "merged"};
  merged.insert(merged.end(), argv.begin(), argv.end());
  return merged;
}

}  // namespace reprise::sandboxd::http
