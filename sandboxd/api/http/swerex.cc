#include "sandboxd/api/http/swerex.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/format.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/api/http/box_files.h"
#include "sandboxd/api/http/e2b.h"
#include "sandboxd/api/http/multipart.h"
#include "sandboxd/api/http/swerex_shell.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd::http {
namespace {

using Json = nlohmann::json;

constexpr size_t kBodyMax = kStdinBytesMax;
constexpr size_t kOutputMax = 32u << 20;  // of one command's stream, in an answer
constexpr size_t kReadMax = 64u << 20;    // of a file that is read as text
constexpr size_t kUploadMax = 16ull << 30;
constexpr size_t kFieldMax = 64u << 10;  // of a form field
constexpr char kErrors[] = "swerex.exceptions.";
constexpr char kPrefix[] = "swerex";

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}
Response Answer(const Json& json) { return JsonResponse(200, Dump(json)); }

// An exception that the client raises again on its side.
Response Raise(std::string_view class_path, std::string_view message) {
  return JsonResponse(511, Dump({{"swerexception",
                                  {{"message", message},
                                   {"class_path", class_path},
                                   {"traceback", ""},
                                   {"extra_info", Json::object()}}}}));
}
Response RaiseOf(std::string_view name, std::string_view message) {
  return Raise(fmt::format("{}{}", kErrors, name), message);
}
Response RaiseStatus(const absl::Status& status) {
  if (absl::IsNotFound(status))
    return Raise("builtins.FileNotFoundError", std::string(status.message()));
  return RaiseOf("SwerexException", std::string(status.message()));
}

struct Named {
  std::string id;
  std::string key, token;  // what it shows, read as the owner's and as the sandbox's
};
// The sandbox that a request is for, named by its path or by its key: SANDBOX.KEY of the owner, the
// sandbox's token (which begins with its name), or SANDBOX.TOKEN.
Named NamedBy(const Request& request) {
  Named named;
  named.key = std::string(request.header("x-api-key"));
  if (!request.params.empty()) {
    named.id = request.params[0];
    named.token = named.key;
  } else if (const size_t dot = named.key.rfind('.'); dot != std::string::npos) {
    named.id = named.key.substr(0, dot);
    const size_t half = dot / 2;
    if (dot % 2 == 1 && named.id[half] == '.' &&
        named.id.substr(half + 1) == named.id.substr(0, half))
      named.id.resize(half);
    named.key.erase(0, dot + 1);
    named.token = fmt::format("{}.{}", named.id, named.key);
  }
  return named;
}

// A string, number or flag of an object; `otherwise` where it is absent, null or of another type.
template <typename T>
T Get(const Json& json, const char* field, T otherwise) {
  const auto found = json.find(field);
  if (found == json.end()) return otherwise;
  const bool fits = std::is_same_v<T, bool>     ? found->is_boolean()
                    : std::is_same_v<T, double> ? found->is_number()
                                                : found->is_string();
  return fits ? found->get<T>() : otherwise;
}

uint64_t TimeoutMs(const Json& json) {
  const double seconds = Get<double>(json, "timeout", 0);
  if (!(seconds > 0) || seconds * 1000 >= static_cast<double>(kTimeoutMsMax)) return kTimeoutMsMax;
  return static_cast<uint64_t>(std::ceil(seconds * 1000));
}

class Swerex {
 public:
  explicit Swerex(Surface surface) : surface_(surface) {}

  void Execute(const RequestPtr& request, const Json& json, const Respond& respond) {
    std::vector<std::string> argv;
    const Json command = json.value("command", Json());
    if (command.is_string()) {
      argv.push_back(command);
    } else if (command.is_array()) {
      for (const Json& word : command) argv.push_back(word.is_string() ? word : Json(word.dump()));
    }
    if (argv.empty()) return respond(ErrorResponse(422, "command must be a string or a list"));
    if (Get(json, "shell", false)) argv = {"/bin/sh", "-c", argv.front()};
    const std::string shown = argv.back();
    if (Get(json, "merge_output_streams", false)) argv = Merged(argv);
    sandbox::ExecuteRequest call = CallOf(*request, argv);
    call.mutable_limits()->set_timeout_ms(TimeoutMs(json));
    call.set_working_dir(Get<std::string>(json, "cwd", ""));
    if (json.contains("env") && json["env"].is_object()) {
      for (const auto& [name, value] : json["env"].items()) {
        sandbox::EnvVar* variable = call.add_env();
        variable->set_name(name);
        variable->set_value(value.is_string() ? value.get<std::string>() : value.dump());
      }
    }
    const bool check = Get(json, "check", false);
    const std::string note = Get<std::string>(json, "error_msg", "");
    Follow(std::move(call), respond, [check, note, shown](const Collected& done) -> Response {
      const int code = ExitCode(done.result);
      if (check && code != 0) {
        return RaiseOf("NonZeroExitCodeError",
                       fmt::format("Command {} failed with exit code {}. {}\n{}{}", shown, code,
                                   note, done.out, done.err));
      }
      return Answer({{"stdout", done.out}, {"stderr", done.err}, {"exit_code", code}});
    });
  }

  void Open(const RequestPtr& request, const Json& json, const Respond& respond) {
    const std::string session = Get<std::string>(json, "session", "default");
    if (std::optional<Response> refused = CheckSession(*request, session); refused.has_value())
      return respond(*std::move(refused));
    std::vector<std::string> sources;
    if (json.contains("startup_source") && json["startup_source"].is_array()) {
      for (const Json& source : json["startup_source"])
        if (source.is_string()) sources.push_back(source);
    }
    Follow(CallOf(*request, OpenSession(session, sources)), respond,
           [session](const Collected& done) -> Response {
             if (done.err.starts_with(kSessionExists)) {
               return RaiseOf("SessionExistsError",
                              fmt::format("session {} already exists", session));
             }
             return Answer({{"output", done.out}, {"session_type", "bash"}});
           });
  }

  void Run(const RequestPtr& request, const Json& json, const Respond& respond) {
    const std::string session = Get<std::string>(json, "session", "default");
    if (std::optional<Response> refused = CheckSession(*request, session); refused.has_value())
      return respond(*std::move(refused));
    if (Get<std::string>(json, "action_type", "bash") == "bash_interrupt") {
      // A command that ran into its time limit was ended then: nothing is left to interrupt.
      return respond(Observation("", 0));
    }
    if (Get(json, "is_interactive_command", false) || Get(json, "is_interactive_quit", false) ||
        (json.contains("expect") && json["expect"].is_array() && !json["expect"].empty())) {
      return respond(RaiseOf("SwerexException",
                             "interactive programs are not offered: every command of a session "
                             "runs to its end"));
    }
    const std::string command = Get<std::string>(json, "command", "");
    const std::string check = Get<std::string>(json, "check", "raise");
    const std::string note = Get<std::string>(json, "error_msg", "");
    sandbox::ExecuteRequest call = CallOf(*request, RunInSession(session, command));
    call.mutable_limits()->set_timeout_ms(TimeoutMs(json));
    Follow(std::move(call), respond, [=](const Collected& done) -> Response {
      if (done.err.starts_with(kNoSession)) {
        return RaiseOf("SessionDoesNotExistError",
                       fmt::format("session {} does not exist", session));
      }
      const int code = ExitCode(done.result);
      if (check == "ignore") return Observation(done.out, nullptr);
      if (check == "raise" && code != 0) {
        return RaiseOf(
            "NonZeroExitCodeError",
            fmt::format("Command {} failed with exit code {}. {} Here is the output:\n{}", command,
                        code, note, done.out));
      }
      return Observation(done.out, code);
    });
  }

  void Close(const RequestPtr& request, const Json& json, const Respond& respond) {
    const std::string session = Get<std::string>(json, "session", "default");
    if (std::optional<Response> refused = CheckSession(*request, session); refused.has_value())
      return respond(*std::move(refused));
    Follow(CallOf(*request, CloseSession(session)), respond,
           [session](const Collected& done) -> Response {
             if (done.err.starts_with(kNoSession)) {
               return RaiseOf("SessionDoesNotExistError",
                              fmt::format("session {} does not exist", session));
             }
             return Answer({{"session_type", "bash"}});
           });
  }

  void ReadFile(const RequestPtr& request, const Json& json, const Respond& respond) {
    std::string content;
    const absl::Status status =
        WithFile(*request, Get<std::string>(json, "path", ""),
                 [&](const BoxFiles& files, const std::string& path) {
                   return files.Read(path, [&](std::string_view data) -> absl::Status {
                     content += data;
                     if (content.size() <= kReadMax) return absl::OkStatus();
                     return absl::ResourceExhaustedError(
                         fmt::format("{} is longer than {} bytes", path, kReadMax));
                   });
                 });
    respond(status.ok() ? Answer({{"content", content}}) : RaiseStatus(status));
  }

  void WriteFile(const RequestPtr& request, const Json& json, const Respond& respond) {
    std::string content = Get<std::string>(json, "content", "");
    const absl::Status status = WithFile(
        *request, Get<std::string>(json, "path", ""),
        [&](const BoxFiles& files, const std::string& path) {
          return files.Write(
              path, [&]() -> absl::StatusOr<std::string> { return std::exchange(content, ""); });
        });
    respond(status.ok() ? Answer(Json::object()) : RaiseStatus(status));
  }

  // The file comes before the fields that say where it goes.
  void Upload(const RequestPtr& request, const Respond& respond) {
    const std::string staged = fmt::format("/tmp/.reprise-upload-{}", base::RandomHex(8));
    std::string target;
    bool unzip = false;
    absl::Status status = Receive(*request, staged, &target, &unzip);
    if (status.ok() && !unzip) {
      status = WithFile(*request, target, [&](const BoxFiles& files, const std::string& path) {
        const std::string parent = SplitPath(path).first;
        if (parent != "/") RETURN_IF_ERROR(files.MakeDir(parent));
        return files.Move(staged, path);
      });
    }
    if (!status.ok()) return respond(RaiseStatus(status));
    if (!unzip) return respond(Answer(Json::object()));
    Follow(CallOf(*request, Unzip(staged, target)), respond, [](const Collected& done) -> Response {
      if (ExitCode(done.result) == 0) return Answer(Json::object());
      return RaiseOf("SwerexException",
                     fmt::format("the archive cannot be unpacked: {}{}", done.out, done.err));
    });
  }

 private:
  using FileWork = std::function<absl::Status(const BoxFiles&, const std::string&)>;

  static Response Observation(std::string_view output, const Json& code) {
    return Answer({{"output", output},
                   {"exit_code", code},
                   {"failure_reason", ""},
                   {"expect_string", ""},
                   {"session_type", "bash"}});
  }
  // As Python's subprocess counts.
  static int ExitCode(const sandbox::Result& result) {
    return result.outcome() == sandbox::OUTCOME_EXITED ? result.exit_code()
                                                       : -std::max(result.signal(), 1);
  }

  sandbox::ExecuteRequest CallOf(const Request& request, const std::vector<std::string>& argv) {
    sandbox::ExecuteRequest call;
    call.set_sandbox_id(NamedBy(request).id);
    const std::string_view key = request.header("x-request-id");
    call.set_call_id(fmt::format("{}/swerex/{}", call.sandbox_id(),
                                 key.empty() ? base::RandomHex(12) : IdPart(key)));
    for (const std::string& argument : argv) call.add_argv(argument);
    return call;
  }

  void Follow(sandbox::ExecuteRequest call, const Respond& respond,
              std::function<Response(const Collected&)> answer) {
    Collect(surface_.calls->Execute(std::move(call)), kOutputMax,
            [respond, answer = std::move(answer)](absl::StatusOr<Collected> done) {
              respond(done.ok() ? Ended(*done, answer) : RaiseStatus(done.status()));
            });
  }

  static Response Ended(const Collected& done,
                        const std::function<Response(const Collected&)>& answer) {
    Response response;
    switch (done.result.outcome()) {
      case sandbox::OUTCOME_EXITED:
      case sandbox::OUTCOME_SIGNALED:
      case sandbox::OUTCOME_MEMORY_EXCEEDED:
      case sandbox::OUTCOME_OUTPUT_TRUNCATED:
      case sandbox::OUTCOME_POLICY_VIOLATION:
        response = answer(done);
        break;
      case sandbox::OUTCOME_TIMED_OUT:
        response = RaiseOf("CommandTimeoutError",
                           fmt::format("the command was ended at its time limit; its output: {}{}",
                                       done.out, done.err));
        break;
      default:
        response = RaiseOf("SwerexException",
                           fmt::format("{}: {}", sandbox::Outcome_Name(done.result.outcome()),
                                       done.result.message()));
    }
    if (done.result.replayed()) response.headers.push_back({"X-Reprise-Replayed", "true"});
    return response;
  }

  std::optional<Response> CheckSession(const Request& request, const std::string& session) {
    if (absl::Status status = base::CheckId(session, "session"); !status.ok())
      return RaiseStatus(status);
    const absl::StatusOr<sandbox::Sandbox> box = surface_.sandboxes->Get(NamedBy(request).id);
    if (!box.ok()) return RaiseOf("SwerexException", std::string(box.status().message()));
    if (box->spec().tier() != sandbox::TIER_FUNCTION) return std::nullopt;
    return RaiseOf("SwerexException",
                   "a function sandbox keeps nothing between commands, so it has no sessions: use "
                   "the container tier");
  }

  absl::Status WithFile(const Request& request, std::string_view where, const FileWork& work) {
    ASSIGN_OR_RETURN(const BoxFiles files, BoxFiles::Open(surface_.sandboxes, NamedBy(request).id));
    if (where.empty()) return absl::InvalidArgumentError("path is missing");
    ASSIGN_OR_RETURN(const std::string path, files.Path(where));
    return work(files, path);
  }

  absl::Status Receive(const Request& request, const std::string& staged, std::string* target,
                       bool* unzip) {
    ASSIGN_OR_RETURN(const std::string boundary, MultipartBoundary(request.header("content-type")));
    MultipartReader reader(boundary, [&request] { return request.reader->Read(); });
    bool received = false;
    while (true) {
      ASSIGN_OR_RETURN(const std::optional<MultipartReader::Part> part, reader.Next());
      if (!part.has_value()) break;
      if (part->name == "file") {
        received = true;
        RETURN_IF_ERROR(
            WithFile(request, staged, [&](const BoxFiles& files, const std::string& path) {
              return files.Write(path, [&] { return reader.Read(); });
            }));
        continue;
      }
      std::string value;
      while (true) {
        ASSIGN_OR_RETURN(const std::string piece, reader.Read());
        if (piece.empty()) break;
        value += piece;
        if (value.size() > kFieldMax) return absl::InvalidArgumentError("a field is too long");
      }
      if (part->name == "target_path") *target = value;
      if (part->name == "unzip") *unzip = EqualsIgnoreCase(value, "true") || value == "1";
    }
    if (!received || target->empty())
      return absl::InvalidArgumentError("the form needs file and target_path");
    return absl::OkStatus();
  }

  const Surface surface_;
};

// One path for two: E2B's code interpreter names its sandbox in headers, which SWE-ReX has not.
Route Either(const Route& code, Route swerex) {
  const auto choose = [](const Request& request) { return !SandboxIdOf(request).empty(); };
  swerex.guard = [choose, code, mine = swerex.guard](const Request& request) {
    return choose(request) ? code.guard(request) : mine(request);
  };
  swerex.handler = [choose, code, mine = swerex.handler](RequestPtr request, Respond respond) {
    (choose(*request) ? code.handler : mine)(request, std::move(respond));
  };
  return swerex;
}

}  // namespace

void AddSwerexRoutes(const Surface& surface, Router* router) {
  auto swerex = std::make_shared<Swerex>(surface);
  const Guard guard = [access = surface.access](const Request& request) -> std::optional<Response> {
    const Named named = NamedBy(request);
    Request shown;
    shown.headers = {{"x-api-key", named.key}, {"x-access-token", named.token}};
    if (base::CheckId(named.id, "sandbox", /*allow_slash=*/true).ok() &&
        access->MayUse(shown, named.id))
      return std::nullopt;
    return JsonResponse(401, Dump({{"detail",
                                    "auth_token must be SANDBOX.TOKEN, or TOKEN where the "
                                    "path names the sandbox (/swerex/SANDBOX)"}}));
  };
  auto add = [&](const char* method, const char* verb, bool in_pieces, Handler handler) {
    for (const std::string& pattern :
         {fmt::format("/{}", verb), fmt::format("/{}/{{}}/{}", kPrefix, verb)}) {
      Route route;
      route.method = method;
      route.pattern = pattern;
      route.guard = guard;
      route.body_max = in_pieces ? kUploadMax : kBodyMax;
      route.in_pieces = in_pieces;
      route.handler = handler;
      const bool shared = pattern == "/execute";
      router->Add(shared ? Either(CodeExecuteRoute(surface), std::move(route)) : std::move(route));
    }
  };
  using Verb = void (Swerex::*)(const RequestPtr&, const Json&, const Respond&);
  auto post = [&](const char* name, Verb verb) {
    add("POST", name, false, [surface, swerex, verb](RequestPtr request, Respond respond) {
      PostVerb(surface, RaiseStatus, respond, [=] {
        const Json json = Json::parse(request->body, nullptr, /*allow_exceptions=*/false);
        if (!json.is_object()) return respond(ErrorResponse(422, "the body is not a JSON object"));
        (swerex.get()->*verb)(request, json, respond);
      });
    });
  };
  post("execute", &Swerex::Execute);
  post("create_session", &Swerex::Open);
  post("run_in_session", &Swerex::Run);
  post("close_session", &Swerex::Close);
  post("read_file", &Swerex::ReadFile);
  post("write_file", &Swerex::WriteFile);
  add("POST", "upload", true, [surface, swerex](RequestPtr request, Respond respond) {
    PostVerb(surface, RaiseStatus, respond, [=] { swerex->Upload(request, respond); });
  });
  add("POST", "close", false, [](RequestPtr, Respond respond) {
    respond(Answer(Json::object()));  // the sandbox has a life of its own
  });
  add("GET", "is_alive", false,
      OnVerbThread(surface, RaiseStatus, [surface](const Request& request) -> Response {
        const absl::StatusOr<SandboxManager::Lease> lease =
            surface.sandboxes->Use(NamedBy(request).id);
        return Answer({{"is_alive", lease.ok()},
                       {"message", lease.ok() ? "" : std::string(lease.status().message())}});
      }));
}

}  // namespace reprise::sandboxd::http
