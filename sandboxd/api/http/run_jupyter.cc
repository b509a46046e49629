#include "sandboxd/api/http/run_jupyter.h"

#include <cmath>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/api/http/code_stream.h"
#include "sandboxd/api/http/judge.h"
#include "sandboxd/api/http/judge_box.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd::http {
namespace {

using Json = nlohmann::json;

constexpr double kCellTimeout = 10, kTotalTimeout = 45;  // seconds, where the request has none
constexpr double kTimeoutMax = 3600;
constexpr double kSlack = 5;  // seconds around the cells, for Python itself
constexpr size_t kCellsMax = 1000;
constexpr char kStagingDir[] = ".jupyter-files";
// The ids of the runs that are not cells.
constexpr char kMoveRun[] = "move", kFetchRun[] = "fetch";

struct JupyterRequest {
  std::vector<std::string> cells;
  double cell_timeout_s = kCellTimeout, total_timeout_s = kTotalTimeout;
  std::vector<JudgeFile> files;
  std::vector<std::string> fetch;
};

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', true, Json::error_handler_t::replace);
}

absl::StatusOr<std::vector<std::string>> StringsOf(const Json& json, const char* field) {
  std::vector<std::string> strings;
  if (!json.contains(field) || json[field].is_null()) return strings;
  const absl::Status bad =
      absl::InvalidArgumentError(fmt::format("{} must be a list of strings", field));
  if (!json[field].is_array()) return bad;
  for (const Json& value : json[field]) {
    if (!value.is_string()) return bad;
    strings.push_back(value);
  }
  return strings;
}

absl::StatusOr<double> SecondsOf(const Json& json, const char* field, double otherwise) {
  if (!json.contains(field) || json[field].is_null()) return otherwise;
  const double seconds = json[field].is_number() ? json[field].get<double>() : -1;
  if (!(seconds > 0) || seconds > kTimeoutMax)
    return absl::InvalidArgumentError(fmt::format("{} must be over 0, to {}", field, kTimeoutMax));
  return seconds;
}

absl::StatusOr<JupyterRequest> Parse(const std::string& body) {
  const Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("the body is not a JSON object");
  JupyterRequest parsed;
  ASSIGN_OR_RETURN(parsed.cells, StringsOf(json, "cells"));
  if (parsed.cells.empty() || parsed.cells.size() > kCellsMax)
    return absl::InvalidArgumentError(fmt::format("cells must be 1 to {} strings", kCellsMax));
  ASSIGN_OR_RETURN(parsed.cell_timeout_s, SecondsOf(json, "cell_timeout", kCellTimeout));
  ASSIGN_OR_RETURN(parsed.total_timeout_s, SecondsOf(json, "total_timeout", kTotalTimeout));
  ASSIGN_OR_RETURN(parsed.fetch, StringsOf(json, "fetch_files"));
  const std::string kernel = json.value("kernel", Json()).is_string() ? json["kernel"] : "python3";
  if (kernel != "python3")
    return absl::InvalidArgumentError("kernel must be python3: there is no other here");
  if (json.contains("files") && json["files"].is_object()) {
    for (const auto& [path, content] : json["files"].items()) {
      if (content.is_null()) continue;
      JudgeFile file{path, ""};
      if (!content.is_string() ||
          !absl::Base64Unescape(content.get_ref<const std::string&>(), &file.content))
        return absl::InvalidArgumentError(
            fmt::format("files[\"{}\"] must be base64", path.substr(0, 64)));
      parsed.files.push_back(std::move(file));
    }
  }
  return parsed;
}

// Files at absolute paths are laid in beside the others, and moved by Python.
std::string MoveCode(const Json& moves) {
  return fmt::format(
      "import json, os, shutil\nfor source, target in json.loads({}):\n"
      "    os.makedirs(os.path.dirname(target), exist_ok=True)\n    shutil.move(source, target)\n",
      Dump(Dump(moves)));
}
std::string FetchCode(const std::vector<std::string>& paths) {
  return fmt::format(
      "import base64, json, os\nprint(json.dumps({{path: "
      "base64.b64encode(open(path, 'rb').read()).decode() for path in json.loads({}) if "
      "os.path.isfile(path)}}))\n",
      Dump(Dump(paths)));
}

sandbox::ExecuteRequest CallOf(const JupyterRequest& request) {
  sandbox::ExecuteRequest call = ContextCall("python");
  Json moves = Json::array();
  for (const JudgeFile& file : request.files) {
    sandbox::InputFile* laid = call.add_files();
    laid->set_content(file.content);
    const bool absolute = !file.path.empty() && file.path.front() == '/';
    laid->set_path(absolute ? fmt::format("{}/{}", kStagingDir, moves.size()) : file.path);
    if (absolute) moves.push_back({laid->path(), file.path});
  }
  std::string input;
  auto add = [&](const std::string& run, const std::string& code, double seconds) {
    input += Dump({{"run", run}, {"code", code}, {"seconds", seconds}}) + "\n";
  };
  if (!moves.empty()) add(kMoveRun, MoveCode(moves), request.cell_timeout_s);
  for (size_t i = 0; i < request.cells.size(); ++i)
    add(fmt::format("{}", i), request.cells[i], request.cell_timeout_s);
  if (!request.fetch.empty()) add(kFetchRun, FetchCode(request.fetch), request.cell_timeout_s);
  call.set_stdin(input);
  sandbox::Limits* limits = call.mutable_limits();
  limits->set_timeout_ms(
      static_cast<uint64_t>(std::ceil((request.total_timeout_s + kSlack) * 1000)));
  limits->set_cpu_ms(limits->timeout_ms());
  limits->set_memory_bytes(kJudgeMemoryDefault);
  limits->set_output_bytes_max(kJudgeOutputMax);
  return call;
}

// A cell's events as the clients read them: what was shown by kind, errors as Jupyter has them.
Json CellOf(std::string_view output, const std::string& run, bool* timed_out, bool* ended) {
  Json cell = {
      {"stdout", ""}, {"stderr", ""}, {"display", Json::array()}, {"error", Json::array()}};
  for (const std::string& line : LinesOf(output, run)) {
    const Json event = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!event.is_object()) continue;
    const std::string type = event.value("type", "");
    if (type == "stdout" || type == "stderr") {
      cell[type] = cell[type].get<std::string>() + event.value("text", "");
    } else if (type == "result") {
      Json shown = Json::object();
      for (const auto& [kind, mime] : {std::pair("text", "text/plain"),
                                       {"html", "text/html"},
                                       {"markdown", "text/markdown"},
                                       {"svg", "image/svg+xml"},
                                       {"png", "image/png"},
                                       {"jpeg", "image/jpeg"},
                                       {"latex", "text/latex"},
                                       {"json", "application/json"}}) {
        if (event.contains(kind)) shown[mime] = event[kind];
      }
      cell["display"].push_back(std::move(shown));
    } else if (type == "error") {
      *timed_out = *timed_out || event.value("name", "") == "TimeLimit";
      cell["error"].push_back({{"ename", event.value("name", "")},
                               {"evalue", event.value("value", "")},
                               {"traceback", Json::array({event.value("traceback", "")})}});
    }
    *ended = type == "end_of_execution";
  }
  return cell;
}

Response Answered(std::string_view status, std::string_view message, const Json& driver,
                  const Json& cells, const Json& files) {
  return JsonResponse(200, Json{{"status", status},
                                {"message", message},
                                {"driver", driver},
                                {"cells", cells},
                                {"executor_pod_name", nullptr},
                                {"files", files}}
                               .dump(-1, ' ', false, Json::error_handler_t::replace));
}
Response PlatformError(std::string_view message) {
  return Answered("SandboxError", message, nullptr, Json::array(), Json::object());
}
Response Refused(const absl::Status& status) { return RefusedRun(status, PlatformError); }

Response Judged(const JupyterRequest& request, const Collected& call) {
  if (call.result.outcome() == sandbox::OUTCOME_SETUP_FAILED ||
      call.result.outcome() == sandbox::OUTCOME_SANDBOX_LOST ||
      call.result.outcome() == sandbox::OUTCOME_INTERRUPTED)
    return PlatformError(
        fmt::format("{}: {}", sandbox::Outcome_Name(call.result.outcome()), call.result.message()));
  bool timed_out = call.result.outcome() == sandbox::OUTCOME_TIMED_OUT, ended = false;
  Json cells = Json::array(), files = Json::object();
  for (size_t i = 0; i < request.cells.size(); ++i)
    cells.push_back(CellOf(call.out, fmt::format("{}", i), &timed_out, &ended));
  if (!request.fetch.empty() && ended) {
    bool late = false;
    const Json said = CellOf(call.out, kFetchRun, &late, &ended);
    files = Json::parse(said["stdout"].get<std::string>(), nullptr, false);
    if (!files.is_object()) files = Json::object();
  }
  const bool exited = call.result.outcome() == sandbox::OUTCOME_EXITED;
  const Json driver = {{"status", timed_out ? "TimeLimitExceeded" : "Finished"},
                       {"execution_time", static_cast<double>(call.result.usage().wall_us()) / 1e6},
                       {"return_code", exited ? call.result.exit_code() : -9},
                       {"stdout", ""},
                       {"stderr", call.err}};
  std::string message = exited ? "" : call.result.message();
  if (call.result.outcome() == sandbox::OUTCOME_MEMORY_EXCEEDED)
    message = fmt::format("memory limit exceeded: {} MB", kJudgeMemoryDefault >> 20);
  const bool fine = exited && ended && !timed_out && call.result.exit_code() == 0;
  Response response = Answered(fine ? "Success" : "Failed", message, driver, cells, files);
  if (call.result.replayed()) response.headers.push_back({"X-Reprise-Replayed", "true"});
  return response;
}

class Jupyter {
 public:
  explicit Jupyter(Surface surface) : surface_(surface), box_(surface.sandboxes) {}

  void Run(const RequestPtr& request, const Respond& respond) {
    const absl::Status begun = Begin(request, respond);
    if (!begun.ok()) respond(Refused(begun));
  }

 private:
  absl::Status Begin(const RequestPtr& request, const Respond& respond) {
    ASSIGN_OR_RETURN(const JupyterRequest parsed, Parse(request->body));
    sandbox::ExecuteRequest call = CallOf(parsed);
    ASSIGN_OR_RETURN(const std::string box, box_.Id());
    call.set_sandbox_id(box);
    const std::string_view key = RetryKey(*request);
    call.set_call_id(fmt::format("{}/{}", box, key.empty() ? base::RandomHex(12) : IdPart(key)));
    Collect(surface_.calls->Execute(std::move(call)), kJudgeOutputMax,
            [respond, parsed](absl::StatusOr<Collected> collected) {
              respond(collected.ok() ? Judged(parsed, *collected) : Refused(collected.status()));
            });
    return absl::OkStatus();
  }

  const Surface surface_;
  JudgeBox box_;
};

}  // namespace

void AddRunJupyterRoute(const Surface& surface, Router* router) {
  auto jupyter = std::make_shared<Jupyter>(surface);
  const ErrorForm overloaded = [](const absl::Status& status) { return Refused(status); };
  Route route;
  route.method = "POST";
  route.pattern = "/run_jupyter";
  route.guard = OwnerGuard(surface);
  route.body_max = kRequestBytesMax;
  route.handler = [surface, jupyter, overloaded](RequestPtr request, Respond respond) {
    PostVerb(surface, overloaded, respond, [=] { jupyter->Run(request, respond); });
  };
  router->Add(std::move(route));
}

}  // namespace reprise::sandboxd::http
