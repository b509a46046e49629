#include "sandboxd/api/http/http_api.h"

#include <optional>
#include <utility>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "http/server.h"
#include "sandboxd/api/auth.h"
#include "sandboxd/api/http/access.h"
#include "sandboxd/api/http/e2b.h"
#include "sandboxd/api/http/metrics.h"
#include "sandboxd/api/http/names.h"
#include "sandboxd/api/http/routes.h"
#include "sandboxd/api/http/surface.h"
#include "sandboxd/api/http/template_build.h"
#include "sandboxd/worker_pool.h"

namespace reprise::sandboxd::http {
namespace {

class HttpApiImpl final : public HttpApi {
 public:
  HttpApiImpl(const HttpApiOptions& options, CallManager* calls, SandboxManager* sandboxes,
              WatchManager* watches)
      : verbs_(options.verb_threads, options.verbs_max),
        surface_{calls, sandboxes, watches, &verbs_, &access_, options.internet} {}
  ~HttpApiImpl() override { Shutdown(); }

  absl::Status Open(const HttpApiOptions& options) {
    if (options.token_file.empty()) {
      return absl::InvalidArgumentError(
          fmt::format("--http {} is a TCP address: give --token-file", options.listen));
    }
    ASSIGN_OR_RETURN(authorizer_, Authorizer::FromFile(options.token_file));
    storage::StoreOptions store;
    store.path = options.state_dir;
    store.families = {kLeaseFamily, kTemplateFamily, kStepFamily};
    store.durability = options.durability;
    ASSIGN_OR_RETURN(store_, storage::Store::Open(store));
    ASSIGN_OR_RETURN(leases_, LeaseTable::Open(store_.get(), /*family=*/0));
    Router router;
    templates_.emplace(store_.get(), /*templates=*/1, /*steps=*/2,
                       fmt::format("{}/uploads", options.state_dir));
    builds_.emplace(surface_, leases_.get(), &*templates_);
    AddAllRoutes(surface_, leases_.get(), &*builds_, !options.tls_cert.empty(), &router);
    if (options.journal != nullptr) AddMetricsRoute(surface_, options.journal, &router);
    ::reprise::http::ServerOptions server;
    server.listen = options.listen;
    server.tls_cert = options.tls_cert;
    server.tls_key = options.tls_key;
    ASSIGN_OR_RETURN(server_, ::reprise::http::Server::Start(server, std::move(router)));
    address_ =
        fmt::format("{}://{}", options.tls_cert.empty() ? "http" : "https", server_->address());
    leases_->Watch(EndOfLease(surface_, leases_.get()));
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  void Shutdown() override {
    if (leases_ != nullptr) leases_->Stop();
    if (server_ != nullptr) server_->Shutdown();
    if (builds_.has_value()) builds_->Shutdown();
    verbs_.Close();
  }

 private:
  Authorizer authorizer_;
  const Access access_{&authorizer_};
  WorkerPool verbs_;
  const Surface surface_;
  std::unique_ptr<storage::Store> store_;
  std::unique_ptr<LeaseTable> leases_;
  std::optional<TemplateStore> templates_;
  std::optional<TemplateBuilds> builds_;
  std::unique_ptr<::reprise::http::Server> server_;
  std::string address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpApi>> HttpApi::Start(const HttpApiOptions& options,
                                                        CallManager* calls,
                                                        SandboxManager* sandboxes,
                                                        WatchManager* watches) {
  auto api = std::make_unique<HttpApiImpl>(options, calls, sandboxes, watches);
  RETURN_IF_ERROR(api->Open(options));
  return api;
}

}  // namespace reprise::sandboxd::http
