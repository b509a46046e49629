// Inside of ContainerdClient: the stubs of one channel, the context that each call needs
// (namespace, lease, deadline), and the mapping of gRPC errors. Included by the containerd_*.cc
// files only.
#pragma once

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "github.com/containerd/containerd/api/services/containers/v1/containers.grpc.pb.h"
#include "github.com/containerd/containerd/api/services/content/v1/content.grpc.pb.h"
#include "github.com/containerd/containerd/api/services/diff/v1/diff.grpc.pb.h"
#include "github.com/containerd/containerd/api/services/images/v1/images.grpc.pb.h"
#include "github.com/containerd/containerd/api/services/leases/v1/leases.grpc.pb.h"
#include "github.com/containerd/containerd/api/services/namespaces/v1/namespace.grpc.pb.h"
#include "github.com/containerd/containerd/api/services/snapshots/v1/snapshots.grpc.pb.h"
#include "github.com/containerd/containerd/api/services/tasks/v1/tasks.grpc.pb.h"
#include "github.com/containerd/containerd/api/services/version/v1/version.grpc.pb.h"
#include "sandboxd/container/containerd_client.h"

namespace reprise::sandboxd {

namespace ctrd = ::containerd::services;

inline constexpr std::chrono::seconds kRpcDeadline{30};   // records and small reads
inline constexpr std::chrono::seconds kTaskDeadline{60};  // the runtime starts or stops processes
inline constexpr std::chrono::minutes kTransferDeadline{30};  // one layer written or unpacked
inline constexpr char kSnapshotter[] = "overlayfs";

struct ContainerdClient::Impl {
  Impl(const std::string& socket_path, std::string containerd_namespace);

  std::string socket_path;
  std::string ns;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<ctrd::containers::v1::Containers::Stub> containers;
  std::unique_ptr<ctrd::content::v1::Content::Stub> content;
  std::unique_ptr<ctrd::diff::v1::Diff::Stub> diff;
  std::unique_ptr<ctrd::images::v1::Images::Stub> images;
  std::unique_ptr<ctrd::leases::v1::Leases::Stub> leases;
  std::unique_ptr<ctrd::namespaces::v1::Namespaces::Stub> namespaces;
  std::unique_ptr<ctrd::snapshots::v1::Snapshots::Stub> snapshots;
  std::unique_ptr<ctrd::tasks::v1::Tasks::Stub> tasks;
  std::unique_ptr<ctrd::version::v1::Version::Stub> version;

  // The metadata and the deadline that every call carries.
  template <typename Duration>
  void Prepare(grpc::ClientContext& context, Duration deadline,
               const std::string& lease = "") const {
    context.set_deadline(std::chrono::system_clock::now() + deadline);
    context.AddMetadata("containerd-namespace", ns);
    if (!lease.empty()) context.AddMetadata("containerd-lease", lease);
  }

  absl::Status Error(const grpc::Status& status, std::string_view what) const;

  // One unary call.
  template <typename Stub, typename Method, typename Request, typename Response, typename Duration>
  absl::Status Call(Stub& stub, Method method, const Request& request, Response* response,
                    Duration deadline, std::string_view what, const std::string& lease = "") const {
    grpc::ClientContext context;
    Prepare(context, deadline, lease);
    return Error((stub.*method)(&context, request, response), what);
  }
};

// The same error, or OK when it says that the thing does not exist.
inline absl::Status IgnoreNotFound(absl::Status status) {
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

}  // namespace reprise::sandboxd
