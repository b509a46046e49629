#include "sandboxd/api/http/judge.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "absl/strings/numbers.h"

namespace reprise::sandboxd::http {
namespace {

// Arguments: compile command, its limit, run command, its limit, mark, count of files to move into
// place, then pairs of (file in the working directory, absolute path), then paths to fetch.
// The shell says on its own standard error when a signal ended a command, and nothing when a
// command exited with a number that looks like one: that tells the two apart.
constexpr std::string_view kScript = R"sh(
cc=$1 cl=$2 rc=$3 rl=$4 mark=$5 moves=$6; shift 6
own=/tmp/.judge; mkdir "$own" || exit 125
exec 4>&2 2>"$own/shell"
for ((i = 0; i < moves; i++)); do
  mkdir -p "$(dirname "$2")" && mv "$1" "$2"; shift 2
done
rmdir .judge-files
step() {
  : >"$own/shell"
  local from=${EPOCHREALTIME/[.,]/}
  timeout -s KILL "$2" bash -c "$1"
  code=$?
  took=$((${EPOCHREALTIME/[.,]/} - from)) signaled=0
  if [ -s "$own/shell" ] || [ $code = 130 ] || [ $code = 141 ]; then signaled=1; fi
}
said() { printf '%s %s %s\n' "$code" "$signaled" "$took"; }
dump() {
  local size; size=$(head -c "$2" "$1" | wc -c)
  printf '%s\n' "$size"; head -c "$2" "$1"
}
report=() code=0
if [ -n "$cc" ]; then
  step "exec 2>'$own/err'; $cc" "$cl" </dev/null >"$own/out"
  compile=$(said)
fi
if [ $code = 0 ]; then
  step "exec 2>&4 4>&-; exec $rc" "$rl" 4>&4
  run=$(said)
fi
printf '%s' "$mark"
if [ -n "$cc" ]; then
  printf 'compile %s\n' "$compile"; dump "$own/out" COMPILER_BYTES; dump "$own/err" COMPILER_BYTES
fi
[ -z "${run-}" ] || printf 'run %s\n' "$run"
for path; do
  if [ -f "$path" ]; then printf 'file '; dump "$path" FILE_BYTES; else printf 'none\n'; fi
done
printf 'end\n'
exit $code
)sh";
constexpr char kStagingDir[] = ".judge-files";
constexpr double kTimeoutMax = 3600;  // seconds, of one step
constexpr double kSlack = 5;          // seconds around the two steps, for the script
constexpr uint64_t kDiskBytes = 256u << 20;

std::string Script() {
  std::string script(kScript);
  auto put = [&](std::string_view name, size_t value) {
    for (size_t at; (at = script.find(name)) != std::string::npos;)
      script.replace(at, name.size(), fmt::format("{}", value));
  };
  put("COMPILER_BYTES", kCompilerBytesMax);
  put("FILE_BYTES", kJudgeOutputMax);
  return script;
}

void AddFile(sandbox::ExecuteRequest* request, std::string path, std::string content) {
  sandbox::InputFile* file = request->add_files();
  file->set_path(std::move(path));
  file->set_content(std::move(content));
}

// Cuts lines and counted bytes off the front of the report.
class ReportReader {
 public:
  explicit ReportReader(std::string_view text) : text_(text) {}
  std::optional<std::string_view> Line() {
    const size_t end = text_.find('\n');
    if (end == std::string_view::npos) return std::nullopt;
    const std::string_view line = text_.substr(0, end);
    text_.remove_prefix(end + 1);
    return line;
  }
  std::optional<std::string> Sized(std::string_view size_text) {
    size_t size = 0;
    if (!absl::SimpleAtoi(absl::string_view(size_text.data(), size_text.size()), &size) ||
        size > text_.size())
      return std::nullopt;
    std::string data(text_.substr(0, size));
    text_.remove_prefix(size);
    return data;
  }
  std::optional<std::string> SizedLine() {
    const std::optional<std::string_view> line = Line();
    return line.has_value() ? Sized(*line) : std::nullopt;
  }

 private:
  std::string_view text_;
};

// "code signaled microseconds"
std::optional<Step> ParseStep(std::string_view text, double limit_s) {
  int values[3] = {};
  for (int& value : values) {
    const size_t end = std::min(text.find(' '), text.size());
    if (!absl::SimpleAtoi(absl::string_view(text.data(), end), &value)) return std::nullopt;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  Step step;
  step.seconds = values[2] / 1e6;
  step.return_code = values[1] != 0 && values[0] > 128 ? 128 - values[0] : values[0];
  step.timed_out = step.return_code == -9 && step.seconds >= limit_s;
  return step;
}

}  // namespace

absl::StatusOr<sandbox::ExecuteRequest> JudgeCall(const Language& language,
                                                  const JudgeRequest& request,
                                                  std::string_view mark) {
  for (const double seconds : {request.compile_timeout_s, request.run_timeout_s}) {
    if (!(seconds > 0) || seconds > kTimeoutMax) {
      return absl::InvalidArgumentError(
          fmt::format("a timeout of {} s is not in (0, {}]", seconds, kTimeoutMax));
    }
  }
  sandbox::ExecuteRequest call;
  std::vector<std::string> moves;
  for (const JudgeFile& file : request.files) {
    if (file.path.empty() || file.path.front() != '/') {
      if (file.path != language.file) AddFile(&call, file.path, file.content);
      continue;
    }
    const std::string staged = fmt::format("{}/{}", kStagingDir, moves.size() / 2);
    AddFile(&call, staged, file.content);
    moves.push_back(staged);
    moves.push_back(file.path);
  }
  AddFile(&call, std::string(language.file), request.code);
  for (const std::string& argument :
       {std::string("bash"), std::string("-c"), Script(), std::string("judge"),
        std::string(language.compile), fmt::format("{:.3f}", request.compile_timeout_s),
        std::string(language.run), fmt::format("{:.3f}", request.run_timeout_s), std::string(mark),
        fmt::format("{}", moves.size() / 2)}) {
    call.add_argv(argument);
  }
  for (const std::string& path : moves) call.add_argv(path);
  for (const std::string& path : request.fetch) call.add_argv(path);
  call.set_stdin(request.input);
  const double seconds =
      (language.compile.empty() ? 0 : request.compile_timeout_s) + request.run_timeout_s + kSlack;
  sandbox::Limits* limits = call.mutable_limits();
  limits->set_timeout_ms(static_cast<uint64_t>(std::ceil(seconds * 1000)));
  limits->set_cpu_ms(limits->timeout_ms());
  limits->set_memory_bytes(request.memory_bytes == 0 ? kJudgeMemoryDefault : request.memory_bytes);
  limits->set_disk_bytes(kDiskBytes);
  limits->set_file_bytes(kDiskBytes);
  limits->set_output_bytes_max(kJudgeOutputMax);
  return call;
}

std::optional<Verdict> ReadReport(std::string_view out, std::string_view err, std::string_view mark,
                                  const JudgeRequest& request) {
  const size_t at = out.rfind(mark);
  if (at == std::string_view::npos) return std::nullopt;
  ReportReader reader(out.substr(at + mark.size()));
  Verdict verdict;
  while (true) {
    const std::optional<std::string_view> line = reader.Line();
    if (!line.has_value()) return std::nullopt;
    const std::string_view word = line->substr(0, line->find(' '));
    const std::string_view rest = line->substr(std::min(word.size() + 1, line->size()));
    if (word == "end") return verdict;
    if (word == "compile") {
      verdict.compile = ParseStep(rest, request.compile_timeout_s);
      std::optional<std::string> said = reader.SizedLine(), complained = reader.SizedLine();
      if (!verdict.compile.has_value() || !said.has_value() || !complained.has_value())
        return std::nullopt;
      verdict.compile->out = *std::move(said);
      verdict.compile->err = *std::move(complained);
    } else if (word == "run") {
      verdict.run = ParseStep(rest, request.run_timeout_s);
      if (!verdict.run.has_value()) return std::nullopt;
      verdict.run->out = std::string(out.substr(0, at));
      verdict.run->err = std::string(err);
    } else if (word == "file") {
      std::optional<std::string> content = reader.Sized(rest);
      if (!content.has_value()) return std::nullopt;
      verdict.fetched.push_back(std::move(content));
    } else if (word == "none") {
      verdict.fetched.push_back(std::nullopt);
    } else {
      return std::nullopt;
    }
  }
}

}  // namespace reprise::sandboxd::http
