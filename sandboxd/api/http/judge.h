// Compiling and running one program as one call: the function tier gives every call a fresh worker
// and keeps nothing of it, so a shell script takes both steps there, each with its own time limit.
// The program's streams are the call's; behind them, after a mark, the script reports what the
// compiler said, how each step ended, and the files that were asked for.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/api/http/languages.h"

namespace reprise::sandboxd::http {

namespace sandbox = ::reprise::sandbox::v1;

inline constexpr size_t kCompilerBytesMax = 1u << 20;  // of each of its streams, the rest is cut
inline constexpr size_t kJudgeOutputMax = 32u << 20;   // the program's output, report and files

struct JudgeFile {
  std::string path;  // relative to the working directory, or absolute
  std::string content;
};
struct JudgeRequest {
  std::string code, input;
  double compile_timeout_s = 10, run_timeout_s = 10;
  uint64_t memory_bytes = 0;  // 0: kJudgeMemoryDefault
  std::vector<JudgeFile> files;
  std::vector<std::string> fetch;  // paths
};
inline constexpr uint64_t kJudgeMemoryDefault = 2ull << 30;

struct Step {
  bool timed_out = false;
  int return_code = 0;  // negative: the signal that ended it
  double seconds = 0;
  std::string out, err;
};
struct Verdict {
  std::optional<Step> compile, run;
  std::vector<std::optional<std::string>> fetched;  // as JudgeRequest::fetch; nullopt: not there
};

// `mark` is unlikely to be in the program's output. Without sandbox_id and call_id.
// INVALID_ARGUMENT for paths and sizes that cannot be laid in.
absl::StatusOr<sandbox::ExecuteRequest> JudgeCall(const Language& language,
                                                  const JudgeRequest& request,
                                                  std::string_view mark);

// Reads what the call wrote. nullopt when the report is not there or not whole: the script did not
// live to write it.
std::optional<Verdict> ReadReport(std::string_view out, std::string_view err, std::string_view mark,
                                  const JudgeRequest& request);

}  // namespace reprise::sandboxd::http
