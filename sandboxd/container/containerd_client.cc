// Channel, errors, version, namespace and leases.
#include "sandboxd/container/containerd_client.h"

#include <ctime>

#include "base/status_macros.h"
#include "sandboxd/container/containerd_impl.h"

namespace reprise::sandboxd {
namespace {

constexpr int kReconnectMillisMax = 500;
constexpr std::chrono::seconds kVersionDeadline{3};

std::string Rfc3339(int64_t unix_seconds) {
  std::time_t time = unix_seconds;
  std::tm utc{};
  gmtime_r(&time, &utc);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

}  // namespace

ContainerdClient::Impl::Impl(const std::string& path, std::string containerd_namespace)
    : socket_path(path), ns(std::move(containerd_namespace)) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMillisMax);
  // A channel of its own: gRPC would share one connection, and its backoff, between clients of the
  // same address.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  channel =
      grpc::CreateCustomChannel("unix:" + path, grpc::InsecureChannelCredentials(), arguments);
  containers = ctrd::containers::v1::Containers::NewStub(channel);
  content = ctrd::content::v1::Content::NewStub(channel);
  diff = ctrd::diff::v1::Diff::NewStub(channel);
  images = ctrd::images::v1::Images::NewStub(channel);
  leases = ctrd::leases::v1::Leases::NewStub(channel);
  namespaces = ctrd::namespaces::v1::Namespaces::NewStub(channel);
  snapshots = ctrd::snapshots::v1::Snapshots::NewStub(channel);
  tasks = ctrd::tasks::v1::Tasks::NewStub(channel);
  version = ctrd::version::v1::Version::NewStub(channel);
}

absl::Status ContainerdClient::Impl::Error(const grpc::Status& status,
                                           std::string_view what) const {
  if (status.ok()) return absl::OkStatus();
  std::string message = status.error_message();
  for (char& c : message) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      fmt::format("containerd at {}: {}: {}", socket_path, what, message));
}

ContainerdClient::ContainerdClient(const std::string& socket_path, std::string containerd_namespace)
    : impl_(std::make_unique<Impl>(socket_path, std::move(containerd_namespace))) {}
ContainerdClient::~ContainerdClient() = default;

absl::StatusOr<std::string> ContainerdClient::Version() {
  google::protobuf::Empty request;
  ctrd::version::v1::VersionResponse response;
  RETURN_IF_ERROR(impl_->Call(*impl_->version, &ctrd::version::v1::Version::Stub::Version, request,
                              &response, kVersionDeadline, "version"));
  return response.version();
}

absl::Status ContainerdClient::EnsureNamespace() {
  ctrd::namespaces::v1::CreateNamespaceRequest request;
  ctrd::namespaces::v1::CreateNamespaceResponse response;
  request.mutable_namespace_()->set_name(impl_->ns);
  absl::Status status =
      impl_->Call(*impl_->namespaces, &ctrd::namespaces::v1::Namespaces::Stub::Create, request,
                  &response, kRpcDeadline, fmt::format("create namespace {}", impl_->ns));
  return absl::IsAlreadyExists(status) ? absl::OkStatus() : status;
}

absl::Status ContainerdClient::CreateLease(const std::string& id, int64_t seconds) {
  ctrd::leases::v1::CreateRequest request;
  ctrd::leases::v1::CreateResponse response;
  request.set_id(id);
  (*request.mutable_labels())["containerd.io/gc.expire"] = Rfc3339(std::time(nullptr) + seconds);
  return impl_->Call(*impl_->leases, &ctrd::leases::v1::Leases::Stub::Create, request, &response,
                     kRpcDeadline, fmt::format("create lease {}", id));
}

absl::Status ContainerdClient::DeleteLease(const std::string& id, bool collect) {
  ctrd::leases::v1::DeleteRequest request;
  google::protobuf::Empty response;
  request.set_id(id);
  request.set_sync(collect);
  return IgnoreNotFound(impl_->Call(*impl_->leases, &ctrd::leases::v1::Leases::Stub::Delete,
                                    request, &response, kTaskDeadline,
                                    fmt::format("delete lease {}", id)));
}

}  // namespace reprise::sandboxd
