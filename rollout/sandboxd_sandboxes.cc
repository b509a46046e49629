#include "rollout/sandboxd_sandboxes.h"

#include <utility>

#include "base/status_macros.h"
#include "sandboxd/client/sandbox_client.h"

namespace reprise::rollout {
namespace {

class SandboxdSandboxes final : public Sandboxes {
 public:
  explicit SandboxdSandboxes(std::unique_ptr<sandboxd::SandboxClient> client)
      : client_(std::move(client)) {}

  absl::Status Create(const std::string& id, const sandbox::SandboxSpec& spec) override {
    sandbox::CreateRequest request;
    request.set_sandbox_id(id);
    *request.mutable_spec() = spec;
    return client_->Create(std::move(request), absl::Now() + kSandboxPatience).status();
  }

  absl::StatusOr<CallOutput> Execute(const sandbox::ExecuteRequest& request) override {
    ASSIGN_OR_RETURN(sandboxd::SandboxClient::Finished finished,
                     client_->ExecuteToEnd(request, absl::Now() + kSandboxPatience));
    CallOutput output;
    output.result = std::move(finished.result);
    output.stdout_data = std::move(finished.out);
    output.stderr_data = std::move(finished.err);
    if (finished.output_cut) output.result.set_truncated(true);
    return output;
  }

  absl::Status Stop(const std::string& id) override {
    return client_->Stop(id, absl::Now() + kSandboxPatience).status();
  }

  absl::Status Fork(const std::string& from, const std::string& id,
                    const std::string& at_call) override {
    sandbox::ForkRequest request;
    request.set_sandbox_id(from);
    request.set_new_id(id);
    request.set_at_call(at_call);
    return client_->Fork(std::move(request), absl::Now() + kSandboxPatience).status();
  }

  absl::Status Forget(const std::string& id) override {
    const absl::Status forgotten = client_->Forget(id, absl::Now() + kSandboxPatience);
    return absl::IsNotFound(forgotten) ? absl::OkStatus() : forgotten;
  }

  absl::Status Pause(const std::string& id) override {
    return client_->Pause(id, absl::Now() + kSandboxPatience);
  }

  void Shutdown() override { client_->Shutdown(); }

 private:
  const std::unique_ptr<sandboxd::SandboxClient> client_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Sandboxes>> ConnectSandboxes(const std::string& address) {
  sandboxd::ClientOptions options;
  options.address = address;
  options.output_bytes_max = kMaxCallOutputBytes;
  ASSIGN_OR_RETURN(auto client, sandboxd::SandboxClient::Connect(options));
  return std::make_unique<SandboxdSandboxes>(std::move(client));
}

}  // namespace reprise::rollout
