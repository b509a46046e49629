#include "rollout/http/http_api.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/status_macros.h"
#include "engine/chat_text.h"
#include "http/server.h"
#include "rollout/http/harness.h"
#include "rollout/http/http_metrics.h"
#include "rollout/http/metrics_api.h"
#include "rollout/http/openai_api.h"
#include "rollout/http/openai_format.h"
#include "rollout/http/sglang_api.h"
#include "rollout/http/surface.h"
#include "rollout/http/trajectory_api.h"
#include "rollout/http/viewer_api.h"
#include "sandboxd/api/auth.h"

namespace reprise::rollout::http {
namespace {

constexpr int kPoolThreads = 4;
constexpr size_t kPoolTasks = 65536;
constexpr std::string_view kBearer = "Bearer ";

class HttpApiImpl final : public HttpApi {
 public:
  HttpApiImpl(const HttpApiOptions& options, JobTable* jobs, replay::TrajectoryLog* log)
      : admission_(options.requests_max), harness_(jobs, log), pool_(kPoolThreads, kPoolTasks) {}
  ~HttpApiImpl() override {
    admission_.Close();
    if (server_ != nullptr) server_->Shutdown();
  }

  absl::Status Open(const HttpApiOptions& options, JobTable* jobs, replay::TrajectoryLog* log) {
    if (options.token_file.empty()) {
      return absl::InvalidArgumentError(
          fmt::format("--http {} is a TCP address: give --token-file", options.listen));
    }
    ASSIGN_OR_RETURN(authorizer_, sandboxd::Authorizer::FromFile(options.token_file));
    for (const std::string& directory : options.models) RETURN_IF_ERROR(Serve(directory, jobs));
    surface_.models = &models_;
    surface_.admission = &admission_;
    surface_.pool = &pool_;
    surface_.harness = &harness_;
    surface_.metrics = std::make_shared<HttpMetrics>();
    ASSIGN_OR_RETURN(surface_.default_mode, engine::ParseThinkingMode(options.thinking));
    surface_.guard = [this](const web::Request& request) { return Check(request); };
    web::Router router;
    AddOpenAiRoutes(surface_, &router);
    AddTrajectoryRoutes(surface_, &router);
    AddSglangRoutes(surface_, jobs, &router);
    AddMetricsRoutes(surface_, jobs, &router);
    AddViewerRoutes(surface_, jobs, log, &router);
    web::ServerOptions server;
    server.listen = options.listen;
    server.tls_cert = options.tls_cert;
    server.tls_key = options.tls_key;
    ASSIGN_OR_RETURN(server_, web::Server::Start(server, std::move(router)));
    address_ =
        fmt::format("{}://{}", options.tls_cert.empty() ? "http" : "https", server_->address());
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

 private:
  absl::Status Serve(const std::string& directory, JobTable* jobs) {
    ServedModel model;
    std::error_code error;
    const std::filesystem::path path = std::filesystem::canonical(directory, error);
    if (error)
      return absl::NotFoundError(fmt::format("--model {}: {}", directory, error.message()));
    model.directory = path.string();
    model.name = path.filename().string();
    for (const ServedModel& other : models_) {
      if (other.name != model.name) continue;
      return absl::InvalidArgumentError(
          fmt::format("--model {} and --model {} would both be called \"{}\": rename one",
                      other.directory, model.directory, model.name));
    }
    ASSIGN_OR_RETURN(model.scheduler, jobs->Load(model.directory));
    model.loaded_s = base::WallMicros() / 1'000'000;
    const engine::Tokenizer& tokenizer = model.tokenizer();
    model.think_close_id = tokenizer.AddedTokenId(engine::kThinkClose).value_or(-1);
    model.dsml_id = tokenizer.AddedTokenId(engine::kDsml).value_or(-1);
    models_.push_back(std::move(model));
    return absl::OkStatus();
  }

  std::optional<web::Response> Check(const web::Request& request) const {
    const std::string_view shown = request.header("authorization");
    if (web::EqualsIgnoreCase(shown.substr(0, kBearer.size()), kBearer) &&
        authorizer_.Matches(shown.substr(kBearer.size())))
      return std::nullopt;
    if (authorizer_.Matches(request.header("x-api-key"))) return std::nullopt;
    return OpenAiError(
        absl::UnauthenticatedError("show the daemon's token: \"Authorization: Bearer TOKEN\", "
                                   "which clients call the API key"));
  }

  sandboxd::Authorizer authorizer_;
  std::vector<ServedModel> models_;
  Admission admission_;
  Harness harness_;
  // The server goes first: until then its handlers use the pool.
  ToolPool pool_;
  Surface surface_;
  std::string address_;
  std::unique_ptr<web::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpApi>> HttpApi::Start(const HttpApiOptions& options,
                                                        JobTable* jobs,
                                                        replay::TrajectoryLog* log) {
  auto api = std::make_unique<HttpApiImpl>(options, jobs, log);
  RETURN_IF_ERROR(api->Open(options, jobs, log));
  return api;
}

}  // namespace reprise::rollout::http
