#include "sandboxd/api/http/run_code.h"

#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_join.h"
#include "base/format.h"
#include "base/ids.h"
#include "replay/sha256.h"
#include "sandboxd/api/http/judge.h"
#include "sandboxd/api/http/judge_box.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd::http {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMebibyte = 1 << 20;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

struct Parsed {
  const Language* language = nullptr;
  JudgeRequest judge;
};

absl::StatusOr<Parsed> Parse(const std::string& body) {
  const Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("the body is not a JSON object");
  Parsed parsed;
  auto bad = [](std::string_view field, std::string_view what) {
    return absl::InvalidArgumentError(fmt::format("{} {}", field, what));
  };
  auto given = [&](const char* field) { return json.contains(field) && !json[field].is_null(); };
  for (const char* field : {"code", "language"}) {
    if (!given(field) || !json[field].is_string()) return bad(field, "must be a string");
  }
  for (const char* field : {"compile_timeout", "run_timeout", "memory_limit_MB"}) {
    if (given(field) && !json[field].is_number()) return bad(field, "must be a number");
  }
  parsed.judge.code = json["code"];
  parsed.language = FindLanguage(json["language"].get<std::string>());
  if (parsed.language == nullptr) {
    return bad("language", fmt::format("\"{}\" is not known here: use one of {}",
                                       json["language"].get<std::string>().substr(0, 64),
                                       absl::StrJoin(InstalledLanguages(), ", ",
                                                     [](std::string* out, std::string_view name) {
                                                       out->append(name);
                                                     })));
  }
  if (given("compile_timeout")) parsed.judge.compile_timeout_s = json["compile_timeout"];
  if (given("run_timeout")) parsed.judge.run_timeout_s = json["run_timeout"];
  if (given("memory_limit_MB")) {
    const double megabytes = json["memory_limit_MB"];
    if (megabytes > 0 && megabytes < static_cast<double>(kMemoryBytesMax / kMebibyte))
      parsed.judge.memory_bytes = static_cast<uint64_t>(megabytes * kMebibyte);
  }
  if (given("stdin")) {
    if (!json["stdin"].is_string()) return bad("stdin", "must be a string");
    parsed.judge.input = json["stdin"];
  }
  if (given("files")) {
    if (!json["files"].is_object()) return bad("files", "must be an object");
    for (const auto& [path, content] : json["files"].items()) {
      if (content.is_null()) continue;
      JudgeFile file{path, ""};
      if (!content.is_string() ||
          !absl::Base64Unescape(content.get_ref<const std::string&>(), &file.content))
        return bad(fmt::format("files[\"{}\"]", path.substr(0, 64)), "must be base64");
      parsed.judge.files.push_back(std::move(file));
    }
  }
  if (given("fetch_files")) {
    if (!json["fetch_files"].is_array()) return bad("fetch_files", "must be a list");
    for (const Json& path : json["fetch_files"]) {
      if (!path.is_string()) return bad("fetch_files", "must be a list of strings");
      parsed.judge.fetch.push_back(path);
    }
  }
  return parsed;
}

Json StepJson(const std::optional<Step>& step) {
  if (!step.has_value()) return nullptr;
  return {{"status", step->timed_out ? "TimeLimitExceeded" : "Finished"},
          {"execution_time", step->seconds},
          {"return_code", step->return_code},
          {"stdout", step->out},
          {"stderr", step->err}};
}

Response Answer(std::string_view status, std::string_view message, const Verdict& verdict,
                const std::vector<std::string>& fetch, bool replayed) {
  Json files = Json::object();
  for (size_t i = 0; i < fetch.size() && i < verdict.fetched.size(); ++i) {
    if (verdict.fetched[i].has_value()) files[fetch[i]] = absl::Base64Escape(*verdict.fetched[i]);
  }
  Response response = JsonResponse(200, Dump({{"status", status},
                                              {"message", message},
                                              {"compile_result", StepJson(verdict.compile)},
                                              {"run_result", StepJson(verdict.run)},
                                              {"executor_pod_name", nullptr},
                                              {"files", files}}));
  if (replayed) response.headers.push_back({"X-Reprise-Replayed", "true"});
  return response;
}

// Where the platform failed, and not the program.
Response PlatformError(std::string_view message) {
  return Answer("SandboxError", message, Verdict(), {}, false);
}

// How the limits and the end of the whole call read as a verdict.
Response Judged(const JudgeRequest& request, const Language& language, std::string_view mark,
                const Collected& call) {
  std::optional<Verdict> report = ReadReport(call.out, call.err, mark, request);
  const bool whole = report.has_value();
  Verdict verdict = whole ? *std::move(report) : Verdict();
  auto killed = [&](bool timed_out) {  // the script went with the program
    if (whole) return;
    Step step;
    step.timed_out = timed_out;
    step.return_code =
        call.result.outcome() == sandbox::OUTCOME_EXITED ? call.result.exit_code() : -9;
    step.seconds = static_cast<double>(call.result.usage().wall_us()) / 1e6;
    step.out = call.out;
    step.err = call.err;
    verdict.run = std::move(step);
    if (!language.compile.empty()) verdict.compile = Step();
  };
  auto failed = [&](std::string_view message) {
    return Answer("Failed", message, verdict, request.fetch, call.result.replayed());
  };
  switch (call.result.outcome()) {
    case sandbox::OUTCOME_EXITED:
    case sandbox::OUTCOME_SIGNALED: {
      killed(false);
      if (!whole) return failed("the program ended the judge together with itself");
      const auto fine = [](const Step& step) { return !step.timed_out && step.return_code == 0; };
      const bool success = verdict.run.has_value() && fine(*verdict.run) &&
                           (!verdict.compile.has_value() || fine(*verdict.compile));
      return success ? Answer("Success", "", verdict, request.fetch, call.result.replayed())
                     : failed("");
    }
    case sandbox::OUTCOME_TIMED_OUT:
      killed(true);
      return failed("");
    case sandbox::OUTCOME_MEMORY_EXCEEDED:
      killed(false);
      return failed(fmt::format(
          "memory limit exceeded: {} MB",
          (request.memory_bytes == 0 ? kJudgeMemoryDefault : request.memory_bytes) / kMebibyte));
    case sandbox::OUTCOME_OUTPUT_TRUNCATED:
      killed(false);
      return failed(fmt::format("output limit exceeded: {} MB", kJudgeOutputMax / kMebibyte));
    case sandbox::OUTCOME_POLICY_VIOLATION:
      killed(false);
      return failed("a system call was refused");
    default:
      return PlatformError(fmt::format("{}: {}", sandbox::Outcome_Name(call.result.outcome()),
                                       call.result.message()));
  }
}

Response Refused(const absl::Status& status) { return RefusedRun(status, PlatformError); }

class Judges {
 public:
  explicit Judges(Surface surface) : surface_(surface), box_(surface.sandboxes) {}

  void Run(const RequestPtr& request, const Respond& respond) {
    absl::StatusOr<Parsed> parsed = Parse(request->body);
    if (!parsed.ok()) return respond(InvalidRun(std::string(parsed.status().message())));
    if (const std::string missing = MissingProgram(*parsed->language); !missing.empty()) {
      return respond(PlatformError(fmt::format("{} is not installed on this host: it needs {}",
                                               parsed->language->name, missing)));
    }
    // The same for the same request, so that a retry with its id has the same digest.
    const std::string mark =
        fmt::format("judge-{}\n", replay::Hex(replay::Sha256Of(request->body)).substr(0, 32));
    absl::StatusOr<sandbox::ExecuteRequest> call =
        JudgeCall(*parsed->language, parsed->judge, mark);
    if (!call.ok()) return respond(Refused(call.status()));
    absl::StatusOr<std::string> box = box_.Id();
    if (!box.ok()) return respond(Refused(box.status()));
    call->set_sandbox_id(*box);
    const std::string_view key = RetryKey(*request);
    call->set_call_id(fmt::format("{}/{}", *box, key.empty() ? base::RandomHex(12) : IdPart(key)));
    Collect(surface_.calls->Execute(*std::move(call)), kJudgeOutputMax + (1u << 20),
            [respond, mark, parsed = *std::move(parsed)](absl::StatusOr<Collected> collected) {
              respond(collected.ok() ? Judged(parsed.judge, *parsed.language, mark, *collected)
                                     : Refused(collected.status()));
            });
  }

 private:
  const Surface surface_;
  JudgeBox box_;
};

}  // namespace

void AddRunCodeRoutes(const Surface& surface, Router* router) {
  const Guard guard = OwnerGuard(surface);
  auto judges = std::make_shared<Judges>(surface);
  const ErrorForm overloaded = [](const absl::Status& status) { return Refused(status); };
  Route run;
  run.method = "POST";
  run.pattern = "/run_code";
  run.guard = guard;
  run.body_max = kRequestBytesMax;
  run.handler = [surface, judges, overloaded](RequestPtr request, Respond respond) {
    PostVerb(surface, overloaded, respond, [=] { judges->Run(request, respond); });
  };
  router->Add(std::move(run));
  Route ping;
  ping.method = "GET";
  ping.pattern = "/v1/ping";
  ping.handler = [](RequestPtr, Respond respond) { respond(JsonResponse(200, "\"pong\"")); };
  router->Add(std::move(ping));
}

}  // namespace reprise::sandboxd::http
