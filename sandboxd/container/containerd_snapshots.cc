// Snapshots of the overlayfs snapshotter, and layers unpacked onto them by the diff service.
#include "base/status_macros.h"
#include "sandboxd/container/containerd_impl.h"

namespace reprise::sandboxd {
namespace {

namespace diff = ctrd::diff::v1;
namespace snapshots = ctrd::snapshots::v1;

template <typename Mounts>
std::vector<MountSpec> FromProto(const Mounts& mounts) {
  std::vector<MountSpec> specs;
  for (const auto& mount : mounts) {
    specs.push_back(
        {mount.type(), mount.source(), {mount.options().begin(), mount.options().end()}});
  }
  return specs;
}

}  // namespace

absl::StatusOr<bool> ContainerdClient::SnapshotExists(const std::string& key) {
  snapshots::StatSnapshotRequest request;
  snapshots::StatSnapshotResponse response;
  request.set_snapshotter(kSnapshotter);
  request.set_key(key);
  absl::Status status = impl_->Call(*impl_->snapshots, &snapshots::Snapshots::Stub::Stat, request,
                                    &response, kRpcDeadline, fmt::format("stat snapshot {}", key));
  if (absl::IsNotFound(status)) return false;
  RETURN_IF_ERROR(status);
  return true;
}

absl::StatusOr<std::vector<MountSpec>> ContainerdClient::PrepareSnapshot(const std::string& lease,
                                                                         const std::string& key,
                                                                         const std::string& parent,
                                                                         const Labels& labels) {
  snapshots::PrepareSnapshotRequest request;
  snapshots::PrepareSnapshotResponse response;
  request.set_snapshotter(kSnapshotter);
  request.set_key(key);
  request.set_parent(parent);
  *request.mutable_labels() = {labels.begin(), labels.end()};
  RETURN_IF_ERROR(impl_->Call(*impl_->snapshots, &snapshots::Snapshots::Stub::Prepare, request,
                              &response, kRpcDeadline, fmt::format("prepare snapshot {}", key),
                              lease));
  return FromProto(response.mounts());
}

absl::StatusOr<std::vector<MountSpec>> ContainerdClient::SnapshotMounts(const std::string& key) {
  snapshots::MountsRequest request;
  snapshots::MountsResponse response;
  request.set_snapshotter(kSnapshotter);
  request.set_key(key);
  RETURN_IF_ERROR(impl_->Call(*impl_->snapshots, &snapshots::Snapshots::Stub::Mounts, request,
                              &response, kRpcDeadline, fmt::format("mounts of snapshot {}", key)));
  return FromProto(response.mounts());
}

absl::Status ContainerdClient::CommitSnapshot(const std::string& lease, const std::string& name,
                                              const std::string& key, const Labels& labels) {
  snapshots::CommitSnapshotRequest request;
  google::protobuf::Empty response;
  request.set_snapshotter(kSnapshotter);
  request.set_name(name);
  request.set_key(key);
  *request.mutable_labels() = {labels.begin(), labels.end()};
  return impl_->Call(*impl_->snapshots, &snapshots::Snapshots::Stub::Commit, request, &response,
                     kRpcDeadline, fmt::format("commit snapshot {}", name), lease);
}

absl::Status ContainerdClient::RemoveSnapshot(const std::string& key) {
  snapshots::RemoveSnapshotRequest request;
  google::protobuf::Empty response;
  request.set_snapshotter(kSnapshotter);
  request.set_key(key);
  return IgnoreNotFound(impl_->Call(*impl_->snapshots, &snapshots::Snapshots::Stub::Remove, request,
                                    &response, kTaskDeadline,
                                    fmt::format("remove snapshot {}", key)));
}

absl::StatusOr<std::vector<std::string>> ContainerdClient::ListSnapshots() {
  grpc::ClientContext context;
  impl_->Prepare(context, kRpcDeadline);
  snapshots::ListSnapshotsRequest request;
  request.set_snapshotter(kSnapshotter);
  auto stream = impl_->snapshots->List(&context, request);
  snapshots::ListSnapshotsResponse response;
  std::vector<std::string> keys;
  while (stream->Read(&response)) {
    for (const auto& info : response.info()) keys.push_back(info.name());
  }
  RETURN_IF_ERROR(impl_->Error(stream->Finish(), "list snapshots"));
  return keys;
}

absl::StatusOr<std::string> ContainerdClient::ApplyLayer(const std::string& lease,
                                                         const BlobRef& layer,
                                                         const std::vector<MountSpec>& mounts) {
  diff::ApplyRequest request;
  diff::ApplyResponse response;
  request.mutable_diff()->set_media_type(layer.media_type);
  request.mutable_diff()->set_digest(layer.digest);
  request.mutable_diff()->set_size(layer.size);
  for (const MountSpec& mount : mounts) {
    auto* proto = request.add_mounts();
    proto->set_type(mount.type);
    proto->set_source(mount.source);
    for (const std::string& option : mount.options) proto->add_options(option);
  }
  RETURN_IF_ERROR(impl_->Call(*impl_->diff, &diff::Diff::Stub::Apply, request, &response,
                              kTransferDeadline, fmt::format("unpack layer {}", layer.digest),
                              lease));
  return response.applied().digest();
}

}  // namespace reprise::sandboxd
