#include "sandboxd/api/http/e2b_templates.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/synchronization/notification.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "sandboxd/api/http/e2b_box.h"
#include "sandboxd/image/image_name.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd::http {
namespace {

using Json = nlohmann::json;

constexpr size_t kUploadMax = 16ull << 30;
constexpr size_t kLogPage = 100;              // entries of one answer, as E2B gives them
constexpr uint64_t kReadyTimeoutMs = 60'000;  // that a start command has to become ready
constexpr char kReadyScript[] = "until sh -c \"$1\"; do sleep 0.2; done";

std::string TextOf(const Json& json, const char* field) {
  const auto found = json.find(field);
  return found != json.end() && found->is_string() ? found->get<std::string>() : std::string();
}

absl::StatusOr<BuildStep> StepOf(const Json& json) {
  BuildStep step;
  if (!json.is_object()) return absl::InvalidArgumentError("steps must be objects");
  step.type = TextOf(json, "type");
  step.files_hash = TextOf(json, "filesHash");
  step.force = json.value("force", Json()) == true;
  const Json args = json.value("args", Json::array());
  if (!args.is_array()) return absl::InvalidArgumentError("args of a step must be a list");
  for (const Json& argument : args) {
    if (!argument.is_string()) return absl::InvalidArgumentError("args of a step must be strings");
    step.args.push_back(argument);
  }
  return step;
}

Json LogJson(const BuildLog& log) {
  Json json = {{"timestamp", Rfc3339(log.time_us)}, {"level", log.level}, {"message", log.message}};
  if (!log.step.empty()) json["step"] = log.step;
  return json;
}

class Templates {
 public:
  Templates(const Surface& surface, TemplateBuilds* builds, bool tls)
      : surface_(surface), builds_(builds), tls_(tls) {}

  absl::StatusOr<Response> Announce(const Request& request) const {
    ASSIGN_OR_RETURN(const Json body, ObjectOf(request));
    std::string name = TextOf(body, "name");
    if (name.empty()) name = TextOf(body, "alias");
    const Json tags = body.value("tags", Json::array());
    if (tags.is_array() && tags.size() > 1)
      return absl::UnimplementedError("tags: a build has one here, NAME:TAG");
    if (tags.is_array() && tags.size() == 1 && tags[0].is_string() &&
        name.find(':') == std::string::npos)
      name += fmt::format(":{}", tags[0].get<std::string>());
    RETURN_IF_ERROR(CheckImageName(name));
    return Answer(202, {{"templateID", TemplateStore::IdOf(name)},
                        {"buildID", builds_->Announce(name)},
                        {"public", false},
                        {"names", Json::array({name})},
                        {"tags", Json::array({TemplateStore::SplitTag(name).second})},
                        {"aliases", Json::array({TemplateStore::SplitTag(name).first})}});
  }

  // The archive's place; the URL is proof enough for who has it.
  absl::StatusOr<Response> Upload(const Request& request) const {
    const std::string& hash = request.params[1];
    RETURN_IF_ERROR(builds_->store()->UploadPath(hash).status());
    const std::string url =
        fmt::format("{}://{}/templates/{}/files/{}?proof={}", tls_ ? "https" : "http",
                    request.header("host"), request.params[0], hash, ProofOf(hash));
    return Answer(201, {{"present", builds_->store()->HasUpload(hash)}, {"url", url}});
  }

  Response Take(const Request& request) const {
    const std::string& hash = request.params[1];
    const absl::Status saved =
        builds_->store()->SaveUpload(hash, [&request] { return request.reader->Read(); });
    return saved.ok() ? EmptyAnswer(200) : ErrorResponse(saved);
  }
  bool MayTake(const Request& request) const {
    const std::string* proof = request.query_param("proof");
    return proof != nullptr && *proof == ProofOf(request.params[1]);
  }

  absl::StatusOr<Response> Build(const Request& request) const {
    ASSIGN_OR_RETURN(const Json body, ObjectOf(request));
    RETURN_IF_ERROR(CheckTemplate(request));
    BuildOrder order;
    order.from_image = TextOf(body, "fromImage");
    order.from_template = TextOf(body, "fromTemplate");
    order.force = body.value("force", Json()) == true;
    order.start_command = TextOf(body, "startCmd");
    order.ready_command = TextOf(body, "readyCmd");
    if (body.contains("fromImageRegistry") && !body["fromImageRegistry"].is_null())
      return absl::UnimplementedError(
          "fromImageRegistry: images are imported here by reprise image import, and not pulled");
    const Json steps = body.value("steps", Json::array());
    if (!steps.is_array()) return absl::InvalidArgumentError("steps must be a list");
    for (const Json& json : steps) {
      ASSIGN_OR_RETURN(BuildStep step, StepOf(json));
      order.steps.push_back(std::move(step));
    }
    RETURN_IF_ERROR(builds_->Order(request.params[1], std::move(order)));
    return EmptyAnswer(202);
  }

  absl::StatusOr<Response> Tags(const Request& request) const {
    ASSIGN_OR_RETURN(const std::vector<TemplateStore::Template> tags,
                     builds_->store()->Tags(request.params[0]));
    Json list = Json::array();
    for (const TemplateStore::Template& built : tags) {
      list.push_back({{"tag", TemplateStore::SplitTag(built.name()).second},
                      {"buildID", built.build_id()},
                      {"createdAt", Rfc3339(built.built_us())}});
    }
    return Answer(200, list);
  }

  absl::StatusOr<Response> Status(const Request& request) const {
    RETURN_IF_ERROR(CheckTemplate(request));
    ASSIGN_OR_RETURN(const BuildState state, builds_->State(request.params[1]));
    size_t offset = 0;
    if (const std::string* text = request.query_param("logsOffset"); text != nullptr)
      if (!absl::SimpleAtoi(*text, &offset))
        return absl::InvalidArgumentError("logsOffset must be a number");
    Json entries = Json::array();
    for (size_t i = offset; i < std::min(state.log.size(), offset + kLogPage); ++i)
      entries.push_back(LogJson(state.log[i]));
    constexpr const char* kPhases[] = {"waiting", "building", "ready", "error"};
    Json json = {{"templateID", request.params[0]},
                 {"buildID", request.params[1]},
                 {"status", kPhases[static_cast<int>(state.phase)]},
                 {"logs", Json::array()},
                 {"logEntries", entries}};
    if (state.phase == BuildState::Phase::kError)
      json["reason"] = {{"message", state.reason}, {"step", state.failed_step}};
    return Answer(200, json);
  }

 private:
  std::string ProofOf(std::string_view hash) const {
    return surface_.access->Proof(fmt::format("template-files/{}", hash));
  }
  // The path names the template of its build.
  absl::Status CheckTemplate(const Request& request) const {
    ASSIGN_OR_RETURN(const std::string name, builds_->NameOf(request.params[1]));
    if (request.params[0] == TemplateStore::IdOf(name) ||
        request.params[0] == TemplateStore::SplitTag(name).first)
      return absl::OkStatus();
    return absl::NotFoundError(
        fmt::format("build {} is not one of {}", request.params[1], request.params[0]));
  }

  const Surface surface_;
  TemplateBuilds* const builds_;
  const bool tls_;
};

}  // namespace

void AddTemplateRoutes(const Surface& surface, TemplateBuilds* builds, bool tls, Router* router) {
  auto templates = std::make_shared<Templates>(surface, builds, tls);
  using Verb = absl::StatusOr<Response> (Templates::*)(const Request&) const;
  auto add = [&](const char* method, const char* pattern, Verb verb) {
    AddOwnerVerb(
        surface, method, pattern,
        [templates, verb](const Request& request) { return (templates.get()->*verb)(request); }, router);
  };
  add("POST", "/v3/templates", &Templates::Announce);
  add("POST", "/v2/templates", &Templates::Announce);
  add("GET", "/templates/{}/files/{}", &Templates::Upload);
  add("POST", "/v2/templates/{}/builds/{}", &Templates::Build);
  add("GET", "/templates/{}/builds/{}/status", &Templates::Status);
  add("GET", "/templates/{}/tags", &Templates::Tags);
  Route take;
  take.method = "PUT";
  take.pattern = "/templates/{}/files/{}";
  take.guard = [templates](const Request& request) -> std::optional<Response> {
    if (templates->MayTake(request)) return std::nullopt;
    return ErrorResponse(401, "the URL must be one that GET of the same path gave");
  };
  take.body_max = kUploadMax;
  take.in_pieces = true;
  take.handler = OnVerbThread(
      surface, [](const absl::Status& status) { return ErrorResponse(status); },
      [templates](const Request& request) { return templates->Take(request); });
  router->Add(std::move(take));
}

absl::Status ApplyTemplate(const TemplateStore& store, CreateOrder* order,
                           TemplateStore::Template* built) {
  if (order->spec.tier() != sandbox::TIER_CONTAINER) return absl::NotFoundError("");
  ASSIGN_OR_RETURN(*built, store.Find(order->spec.image()));
  sandbox::SandboxSpec* spec = &order->spec;
  spec->set_image(built->image());
  spec->set_working_dir(built->working_dir());
  if (built->user() != "user") spec->set_user(built->user());
  for (const auto& variable : built->env()) {
    const bool given = std::any_of(spec->env().begin(), spec->env().end(), [&](const auto& each) {
      return each.name() == variable.name();
    });
    if (given) continue;
    sandbox::EnvVar* env = spec->add_env();
    env->set_name(variable.name());
    env->set_value(variable.value());
  }
  return absl::OkStatus();
}

absl::Status StartTemplate(const Surface& surface, const std::string& sandbox_id,
                           const TemplateStore::Template& built) {
  auto run = [&](const char* call, std::vector<std::string> argv, uint64_t timeout_ms) {
    sandbox::ExecuteRequest request;
    request.set_sandbox_id(sandbox_id);
    request.set_call_id(fmt::format("{}/template/{}", sandbox_id, call));
    for (std::string& word : argv) request.add_argv(std::move(word));
    request.mutable_limits()->set_timeout_ms(timeout_ms);
    return surface.calls->Execute(std::move(request));
  };
  if (built.start_command().empty()) return absl::OkStatus();
  absl::Notification begun;
  absl::Status status;
  const std::shared_ptr<CallStream> started =
      run("start", {"sh", "-c", built.start_command()}, kTimeoutMsMax);
  started->Next([&](CallStream::Event event) {
    status = event.status();
    begun.Notify();
  });
  begun.WaitForNotification();
  if (!status.ok() || built.ready_command().empty()) return status;
  ASSIGN_OR_RETURN(
      const Collected ready,
      CollectNow(
          run("ready", {"sh", "-c", kReadyScript, "sh", built.ready_command()}, kReadyTimeoutMs),
          0));
  if (ready.result.outcome() == sandbox::OUTCOME_EXITED) return absl::OkStatus();
  return absl::DeadlineExceededError(
      fmt::format("the template's start command is not ready after {} s: {}",
                  kReadyTimeoutMs / 1000, built.ready_command()));
}

}  // namespace reprise::sandboxd::http
