// Container records, and the tasks that run them.
#include <chrono>

#include "base/status_macros.h"
#include "github.com/containerd/containerd/runtime/v2/runc/options/oci.pb.h"
#include "sandboxd/container/containerd_impl.h"

namespace reprise::sandboxd {
namespace {

namespace containers = ctrd::containers::v1;
namespace tasks = ctrd::tasks::v1;
namespace types = ::containerd::v1::types;

constexpr char kRuncOptionsType[] = "containerd.runc.v1.Options";
constexpr char kSpecType[] = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

ContainerRecord FromProto(const containers::Container& container) {
  ContainerRecord record;
  record.id = container.id();
  record.image = container.image();
  record.runtime = container.runtime().name();
  record.snapshot_key = container.snapshot_key();
  record.spec_json = container.spec().value();
  record.labels = {container.labels().begin(), container.labels().end()};
  return record;
}

TaskState FromProto(types::Status status) {
  switch (status) {
    case types::CREATED:
      return TaskState::kCreated;
    case types::RUNNING:
      return TaskState::kRunning;
    case types::PAUSED:
    case types::PAUSING:
      return TaskState::kPaused;
    default:
      return TaskState::kStopped;
  }
}

}  // namespace

absl::Status ContainerdClient::CreateContainer(const std::string& lease,
                                               const ContainerRecord& container) {
  containers::CreateContainerRequest request;
  containers::CreateContainerResponse response;
  containers::Container* proto = request.mutable_container();
  proto->set_id(container.id);
  proto->set_image(container.image);
  proto->mutable_runtime()->set_name(container.runtime);
  if (!container.runtime_binary.empty()) {
    ::containerd::runc::v1::Options options;
    options.set_binary_name(container.runtime_binary);
    proto->mutable_runtime()->mutable_options()->set_type_url(kRuncOptionsType);
    proto->mutable_runtime()->mutable_options()->set_value(options.SerializeAsString());
  }
  proto->set_snapshotter(kSnapshotter);
  proto->set_snapshot_key(container.snapshot_key);
  proto->mutable_spec()->set_type_url(kSpecType);
  proto->mutable_spec()->set_value(container.spec_json);
  *proto->mutable_labels() = {container.labels.begin(), container.labels.end()};
  return impl_->Call(*impl_->containers, &containers::Containers::Stub::Create, request, &response,
                     kRpcDeadline, fmt::format("create container {}", container.id), lease);
}

absl::StatusOr<ContainerRecord> ContainerdClient::GetContainer(const std::string& id) {
  containers::GetContainerRequest request;
  containers::GetContainerResponse response;
  request.set_id(id);
  RETURN_IF_ERROR(impl_->Call(*impl_->containers, &containers::Containers::Stub::Get, request,
                              &response, kRpcDeadline, fmt::format("get container {}", id)));
  return FromProto(response.container());
}

absl::StatusOr<std::vector<ContainerRecord>> ContainerdClient::ListContainers() {
  grpc::ClientContext context;
  impl_->Prepare(context, kRpcDeadline);
  auto stream = impl_->containers->ListStream(&context, containers::ListContainersRequest());
  containers::ListContainerMessage message;
  std::vector<ContainerRecord> records;
  while (stream->Read(&message)) records.push_back(FromProto(message.container()));
  RETURN_IF_ERROR(impl_->Error(stream->Finish(), "list containers"));
  return records;
}

absl::Status ContainerdClient::DeleteContainer(const std::string& id) {
  containers::DeleteContainerRequest request;
  google::protobuf::Empty response;
  request.set_id(id);
  return IgnoreNotFound(impl_->Call(*impl_->containers, &containers::Containers::Stub::Delete,
                                    request, &response, kRpcDeadline,
                                    fmt::format("delete container {}", id)));
}

absl::StatusOr<uint32_t> ContainerdClient::CreateTask(const std::string& container,
                                                      const std::vector<MountSpec>& rootfs,
                                                      const std::string& log_path) {
  tasks::CreateTaskRequest request;
  tasks::CreateTaskResponse response;
  request.set_container_id(container);
  request.set_stdout("file://" + log_path);
  request.set_stderr("file://" + log_path);
  for (const MountSpec& mount : rootfs) {
    auto* proto = request.add_rootfs();
    proto->set_type(mount.type);
    proto->set_source(mount.source);
    for (const std::string& option : mount.options) proto->add_options(option);
  }
  RETURN_IF_ERROR(impl_->Call(*impl_->tasks, &tasks::Tasks::Stub::Create, request, &response,
                              kTaskDeadline, fmt::format("create task of {}", container)));
  return response.pid();
}

absl::Status ContainerdClient::StartTask(const std::string& container) {
  tasks::StartRequest request;
  tasks::StartResponse response;
  request.set_container_id(container);
  return impl_->Call(*impl_->tasks, &tasks::Tasks::Stub::Start, request, &response, kTaskDeadline,
                     fmt::format("start task of {}", container));
}

absl::StatusOr<TaskInfo> ContainerdClient::GetTask(const std::string& container) {
  tasks::GetRequest request;
  tasks::GetResponse response;
  request.set_container_id(container);
  absl::Status status = impl_->Call(*impl_->tasks, &tasks::Tasks::Stub::Get, request, &response,
                                    kRpcDeadline, fmt::format("get task of {}", container));
  if (absl::IsNotFound(status)) return TaskInfo{};
  RETURN_IF_ERROR(status);
  return TaskInfo{FromProto(response.process().status()), response.process().pid(),
                  response.process().exit_status()};
}

absl::Status ContainerdClient::KillTask(const std::string& container, int signal, bool all) {
  tasks::KillRequest request;
  google::protobuf::Empty response;
  request.set_container_id(container);
  request.set_signal(static_cast<uint32_t>(signal));
  request.set_all(all);
  return IgnoreNotFound(impl_->Call(*impl_->tasks, &tasks::Tasks::Stub::Kill, request, &response,
                                    kTaskDeadline, fmt::format("kill task of {}", container)));
}

absl::Status ContainerdClient::WaitTask(const std::string& container, int64_t timeout_ms) {
  tasks::WaitRequest request;
  tasks::WaitResponse response;
  request.set_container_id(container);
  return IgnoreNotFound(impl_->Call(*impl_->tasks, &tasks::Tasks::Stub::Wait, request, &response,
                                    std::chrono::milliseconds(timeout_ms),
                                    fmt::format("wait for task of {}", container)));
}

absl::Status ContainerdClient::DeleteTask(const std::string& container) {
  tasks::DeleteTaskRequest request;
  tasks::DeleteResponse response;
  request.set_container_id(container);
  return IgnoreNotFound(impl_->Call(*impl_->tasks, &tasks::Tasks::Stub::Delete, request, &response,
                                    kTaskDeadline, fmt::format("delete task of {}", container)));
}

absl::Status ContainerdClient::PauseTask(const std::string& container) {
  tasks::PauseTaskRequest request;
  google::protobuf::Empty response;
  request.set_container_id(container);
  return impl_->Call(*impl_->tasks, &tasks::Tasks::Stub::Pause, request, &response, kTaskDeadline,
                     fmt::format("pause {}", container));
}

absl::Status ContainerdClient::ResumeTask(const std::string& container) {
  tasks::ResumeTaskRequest request;
  google::protobuf::Empty response;
  request.set_container_id(container);
  return impl_->Call(*impl_->tasks, &tasks::Tasks::Stub::Resume, request, &response, kTaskDeadline,
                     fmt::format("resume {}", container));
}

}  // namespace reprise::sandboxd
