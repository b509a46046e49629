// containerd over its gRPC API on a unix socket, as small typed calls: namespaces, leases, content,
// images, snapshots, diff, containers and tasks. Every call has a deadline; errors carry the gRPC
// code and one line that begins with "containerd" and what was tried. gRPC stays behind this
// header. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sandboxd/image/blob.h"

namespace reprise::sandboxd {

using Labels = std::map<std::string, std::string>;

// As containerd's snapshotters describe a mount; `options` are mount(8) options and file-system
// data.
struct MountSpec {
  std::string type;
  std::string source;
  std::vector<std::string> options;
};

struct ImageRecord {
  std::string name;
  BlobRef target;  // the manifest
  Labels labels;
};

struct ContainerRecord {
  std::string id;
  std::string image;
  std::string runtime;  // e.g. "io.containerd.runc.v2"
  std::string
      runtime_binary;  // for runc's shim: another program with runc's command line; "" = runc
  std::string snapshot_key;
  std::string spec_json;  // OCI runtime specification
  Labels labels;
};

enum class TaskState { kNone, kCreated, kRunning, kPaused, kStopped };
struct TaskInfo {
  TaskState state = TaskState::kNone;  // kNone: there is no task
  uint32_t pid = 0;                    // of the container's init, on the host
  uint32_t exit_status = 0;            // for kStopped
};

class ContainerdClient {
 public:
  // Does not wait for the daemon: Version() tells whether it answers.
  ContainerdClient(const std::string& socket_path, std::string containerd_namespace);
  ~ContainerdClient();
  ContainerdClient(const ContainerdClient&) = delete;
  ContainerdClient& operator=(const ContainerdClient&) = delete;

  absl::StatusOr<std::string> Version();
  absl::Status EnsureNamespace();

  // Keeps what is made under it from garbage collection until it is deleted or `seconds` have
  // passed.
  absl::Status CreateLease(const std::string& id, int64_t seconds);
  // OK when it does not exist. With `collect`, what only the lease held is gone on return.
  absl::Status DeleteLease(const std::string& id, bool collect);

  // Writes one blob and verifies size and digest. `next` gives pieces and "" at the end. OK when it
  // exists already; `labels` are set either way.
  absl::Status WriteBlob(const std::string& lease, const BlobRef& blob, const Labels& labels,
                         const std::function<absl::StatusOr<std::string>()>& next);
  // Reads a blob of at most `max_bytes`. The content is not verified again.
  absl::StatusOr<std::string> ReadBlob(const std::string& digest, uint64_t max_bytes);
  absl::StatusOr<std::vector<std::string>> ListBlobs();  // digests

  absl::Status PutImage(const ImageRecord& image);  // creates or replaces
  absl::StatusOr<ImageRecord> GetImage(const std::string& name);
  absl::StatusOr<std::vector<ImageRecord>> ListImages();
  absl::Status DeleteImage(const std::string& name);  // collects at once; NOT_FOUND

  // Snapshots of the overlayfs snapshotter.
  absl::StatusOr<bool> SnapshotExists(const std::string& key);
  absl::StatusOr<std::vector<MountSpec>> PrepareSnapshot(const std::string& lease,
                                                         const std::string& key,
                                                         const std::string& parent,
                                                         const Labels& labels);
  absl::StatusOr<std::vector<MountSpec>> SnapshotMounts(const std::string& key);
  absl::Status CommitSnapshot(const std::string& lease, const std::string& name,
                              const std::string& key, const Labels& labels);
  absl::Status RemoveSnapshot(const std::string& key);  // OK when it does not exist
  absl::StatusOr<std::vector<std::string>> ListSnapshots();

  // Unpacks a layer blob onto mounts; returns the digest of the uncompressed tar (the layer's diff
  // id).
  absl::StatusOr<std::string> ApplyLayer(const std::string& lease, const BlobRef& layer,
                                         const std::vector<MountSpec>& mounts);

  absl::Status CreateContainer(const std::string& lease, const ContainerRecord& container);
  absl::StatusOr<ContainerRecord> GetContainer(const std::string& id);
  absl::StatusOr<std::vector<ContainerRecord>> ListContainers();
  absl::Status DeleteContainer(const std::string& id);  // OK when it does not exist

  // What init writes is appended to the file `log_path`. Returns init's pid on the host.
  absl::StatusOr<uint32_t> CreateTask(const std::string& container,
                                      const std::vector<MountSpec>& rootfs,
                                      const std::string& log_path);
  absl::Status StartTask(const std::string& container);
  absl::StatusOr<TaskInfo> GetTask(const std::string& container);
  absl::Status KillTask(const std::string& container, int signal,
                        bool all);  // OK when nothing is there to kill
  absl::Status WaitTask(const std::string& container,
                        int64_t timeout_ms);              // OK when it does not exist
  absl::Status DeleteTask(const std::string& container);  // OK when it does not exist
  absl::Status PauseTask(const std::string& container);
  absl::Status ResumeTask(const std::string& container);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace reprise::sandboxd
