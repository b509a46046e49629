// E2B's code interpreter: /execute and /contexts. A context is a call of the sandbox that goes on,
// SANDBOX/code/CONTEXT/N, where N counts its restarts: the journal alone says which there are, so
// they outlive the daemon. A language's default context is made when it is first used.
#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/api/http/code_stream.h"
#include "sandboxd/api/http/e2b_box.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd::http {
namespace {

using Json = nlohmann::json;

constexpr size_t kBodyMax = 8u << 20;
constexpr char kPython[] = "python";
constexpr std::array<std::string_view, 2> kLanguages = {kPython, "bash"};
constexpr char kDefaultPrefix[] = "default-";

// The newest start of a context.
struct Context {
  std::string id, call_id, language, working_dir;
  uint32_t number = 0;
  bool running = false, removed = false;
};

std::string CallId(const std::string& box, const std::string& context, uint32_t number) {
  return fmt::format("{}/code/{}/{}", box, context, number);
}

Json ContextJson(const Context& context) {
  return {{"id", context.id},
          {"language", context.language},
          {"cwd", context.working_dir.empty() ? kWorkingDirDefault : context.working_dir}};
}

// "" where it is absent or null.
absl::StatusOr<std::string> TextOf(const Json& json, const char* field) {
  const auto found = json.find(field);
  if (found == json.end() || found->is_null()) return std::string();
  if (!found->is_string())
    return absl::InvalidArgumentError(fmt::format("{} must be a string", field));
  return found->get<std::string>();
}

absl::StatusOr<std::string> LanguageOf(const Json& json) {
  ASSIGN_OR_RETURN(std::string language, TextOf(json, "language"));
  if (language.empty()) return std::string(kPython);
  if (std::find(kLanguages.begin(), kLanguages.end(), language) != kLanguages.end())
    return language;
  return absl::UnimplementedError(
      fmt::format("language {}: contexts here speak python and bash; run other programs as "
                  "commands",
                  language.substr(0, 64)));
}

class Contexts {
 public:
  explicit Contexts(Surface surface) : surface_(surface) {}

  void Execute(const RequestPtr& request, const Respond& respond) const {
    const absl::Status begun = BeginRun(request, respond);
    if (!begun.ok()) respond(ErrorResponse(begun));
  }

  void Create(const RequestPtr& request, const Respond& respond) const {
    const absl::StatusOr<Context> context = Described(*request);
    if (!context.ok()) return respond(ErrorResponse(context.status()));
    Start(SandboxIdOf(*request), *context, [context, respond](absl::Status status) {
      respond(status.ok() ? Answer(200, ContextJson(*context)) : ErrorResponse(status));
    });
  }

  void Restart(const RequestPtr& request, const Respond& respond) const {
    const std::string box = SandboxIdOf(*request);
    absl::StatusOr<Context> context = Existing(box, request->params[0]);
    if (!context.ok()) return respond(ErrorResponse(context.status()));
    if (absl::Status ended = End(*context); !ended.ok()) return respond(ErrorResponse(ended));
    ++context->number;
    context->running = false;
    Start(box, *context, [context, respond](absl::Status status) {
      respond(status.ok() ? Answer(200, ContextJson(*context)) : ErrorResponse(status));
    });
  }

  Response List(const Request& request) const {
    const absl::StatusOr<std::vector<Context>> all = All(SandboxIdOf(request));
    if (!all.ok()) return ErrorResponse(all.status());
    Json list = Json::array();
    for (const Context& context : *all) {
      if (!context.removed) list.push_back(ContextJson(context));
    }
    return Answer(200, list);
  }

  Response Remove(const Request& request) const {
    const absl::StatusOr<Context> context = Existing(SandboxIdOf(request), request.params[0]);
    if (!context.ok()) return ErrorResponse(context.status());
    const absl::Status ended = End(*context);
    return ended.ok() ? EmptyAnswer(204) : ErrorResponse(ended);
  }

 private:
  // Of a sandbox, by id.
  absl::StatusOr<std::vector<Context>> All(const std::string& box) const {
    ASSIGN_OR_RETURN(const sandbox::ListCallsResponse calls, surface_.calls->ListCalls(box));
    std::map<std::string, Context> newest;
    const std::string prefix = fmt::format("{}/code/", box);
    for (const sandbox::CallSummary& call : calls.calls()) {
      if (!call.call_id().starts_with(prefix) || call.argv_size() != 4) continue;
      const size_t slash = call.call_id().rfind('/');
      Context context;
      context.id = call.call_id().substr(prefix.size(), slash - prefix.size());
      if (!absl::SimpleAtoi(call.call_id().substr(slash + 1), &context.number)) continue;
      context.call_id = call.call_id();
      context.language = call.argv(3);
      context.running = call.state() == sandbox::CALL_STATE_RUNNING;
      context.removed = call.result().outcome() == sandbox::OUTCOME_CANCELLED;
      Context& known = newest[context.id];
      if (known.id.empty() || known.number < context.number) known = std::move(context);
    }
    std::vector<Context> all;
    for (auto& [id, context] : newest) {
      ASSIGN_OR_RETURN(const sandbox::ExecuteRequest request,
                       surface_.calls->RequestOf(context.call_id));
      context.working_dir = request.working_dir();
      all.push_back(std::move(context));
    }
    return all;
  }
  // nullopt for one that never was.
  absl::StatusOr<std::optional<Context>> Find(const std::string& box, const std::string& id) const {
    ASSIGN_OR_RETURN(const std::vector<Context> all, All(box));
    const auto found =
        std::find_if(all.begin(), all.end(), [&](const Context& each) { return each.id == id; });
    return found == all.end() ? std::nullopt : std::optional<Context>(*found);
  }
  absl::StatusOr<Context> Existing(const std::string& box, const std::string& id) const {
    ASSIGN_OR_RETURN(std::optional<Context> context, Find(box, id));
    if (context.has_value() && !context->removed) return *std::move(context);
    return absl::NotFoundError(fmt::format("sandbox {} has no context {}", box, id));
  }

  // The one that a request wants to be made. One that is asked for again with its key is the same.
  absl::StatusOr<Context> Described(const Request& request) const {
    ASSIGN_OR_RETURN(const Json body, ObjectOf(request));
    Context context;
    ASSIGN_OR_RETURN(context.language, LanguageOf(body));
    ASSIGN_OR_RETURN(context.working_dir, TextOf(body, "cwd"));
    const std::string_view key = request.header("idempotency-key");
    context.id = key.empty() ? base::RandomHex(8) : IdPart(key);
    return context;
  }

  // The call of a context: a new one, or the one that runs.
  std::shared_ptr<CallStream> Open(const std::string& box, const Context& context) const {
    if (context.running) return surface_.calls->Attach(context.call_id);
    sandbox::ExecuteRequest call = ContextCall(context.language);
    call.set_sandbox_id(box);
    call.set_call_id(CallId(box, context.id, context.number));
    call.set_working_dir(context.working_dir);
    call.set_stdin_open(true);
    return surface_.calls->Execute(std::move(call));
  }
  void Start(const std::string& box, const Context& context,
             std::function<void(absl::Status)> done) const {
    AwaitContext(surface_, Open(box, context), std::move(done));
  }

  absl::Status End(const Context& context) const {
    if (!context.running) return absl::OkStatus();
    sandbox::SignalRequest signal;
    signal.set_call_id(context.call_id);
    signal.set_cancel(true);
    const absl::Status asked = surface_.calls->Signal(signal);
    if (!asked.ok()) return absl::IsFailedPrecondition(asked) ? absl::OkStatus() : asked;
    // However it ended.
    CollectNow(surface_.calls->Attach(context.call_id), 0).IgnoreError();
    return absl::OkStatus();
  }

  absl::Status BeginRun(const RequestPtr& request, const Respond& respond) const {
    ASSIGN_OR_RETURN(const Json body, ObjectOf(*request));
    if (!body.contains("code") || !body["code"].is_string())
      return absl::InvalidArgumentError("code must be a string");
    const std::string box = SandboxIdOf(*request);
    ASSIGN_OR_RETURN(const std::string named, TextOf(body, "context_id"));
    Context context;
    if (named.empty()) {
      ASSIGN_OR_RETURN(const std::string language, LanguageOf(body));
      const std::string id = fmt::format("{}{}", kDefaultPrefix, language);
      ASSIGN_OR_RETURN(const std::optional<Context> found, Find(box, id));
      if (found.has_value()) context = *found;
      context.id = id;
      context.language = language;
      if (found.has_value() && !found->running) ++context.number;
    } else {
      ASSIGN_OR_RETURN(context, Existing(box, named));
      if (!context.running) ++context.number;  // it ended by itself: it begins again, empty
    }
    const std::string_view key = RetryKey(*request);
    CodeRun run;
    run.run = key.empty() ? base::RandomHex(8) : IdPart(key);
    run.last = "end_of_execution";
    run.ends_alone = key.empty();
    Json line = {{"run", run.run}, {"code", body["code"]}, {"env", Json::object()}};
    if (body.contains("env_vars") && body["env_vars"].is_object()) {
      for (const auto& [name, value] : body["env_vars"].items()) {
        if (!value.is_string())
          return absl::InvalidArgumentError("env_vars must have strings as values");
        line["env"][name] = value;
      }
    }
    run.line = line.dump(-1, ' ', true, Json::error_handler_t::replace);
    RespondWithRun(surface_, Open(box, context), std::move(run), respond);
    return absl::OkStatus();
  }

  const Surface surface_;
};

// On a thread that may wait, for a sandbox that is there.
Handler OnVerb(const Surface& surface,
               std::function<void(const RequestPtr&, const Respond&)> work) {
  const ErrorForm form = [](const absl::Status& status) { return ErrorResponse(status); };
  return [=](RequestPtr request, Respond respond) {
    PostVerb(surface, form, respond, [=] {
      std::optional<Response> gone = CheckUsable(surface, SandboxIdOf(*request));
      if (gone.has_value()) return respond(*std::move(gone));
      work(request, respond);
    });
  };
}
Handler OnVerb(const Surface& surface, std::shared_ptr<const Contexts> contexts,
               void (Contexts::*verb)(const RequestPtr&, const Respond&) const) {
  return OnVerb(surface, [contexts, verb](const RequestPtr& request, const Respond& respond) {
    (contexts.get()->*verb)(request, respond);
  });
}

Route RouteOf(const Surface& surface, const char* method, const char* pattern, Handler handler) {
  Route route;
  route.method = method;
  route.pattern = pattern;
  route.guard = EnvdGuard(surface);
  route.body_max = kBodyMax;
  route.handler = std::move(handler);
  return route;
}

}  // namespace

Route CodeExecuteRoute(const Surface& surface) {
  return RouteOf(surface, "POST", "/execute",
                 OnVerb(surface, std::make_shared<Contexts>(surface), &Contexts::Execute));
}

void AddCodeRoutes(const Surface& surface, Router* router) {
  auto contexts = std::make_shared<Contexts>(surface);
  auto answer = [&](Response (Contexts::*verb)(const Request&) const) {
    return OnVerb(surface, [contexts, verb](const RequestPtr& request, const Respond& respond) {
      respond((contexts.get()->*verb)(*request));
    });
  };
  router->Add(RouteOf(surface, "POST", "/contexts", OnVerb(surface, contexts, &Contexts::Create)));
  router->Add(RouteOf(surface, "GET", "/contexts", answer(&Contexts::List)));
  router->Add(RouteOf(surface, "POST", "/contexts/{}/restart",
                      OnVerb(surface, contexts, &Contexts::Restart)));
  router->Add(RouteOf(surface, "DELETE", "/contexts/{}", answer(&Contexts::Remove)));
}

}  // namespace reprise::sandboxd::http
