#include "sandboxd/image/layer_fuse.h"

#define FUSE_USE_VERSION 312
#include <fmt/format.h>
#include <fuse_lowlevel.h>
#include <sys/stat.h>
#include <unistd.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "base/format.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/image/layer_reader.h"

namespace reprise::sandboxd {
namespace {

constexpr double kAttributesSeconds = 3600;  // layers never change
constexpr auto kSaveTracesEvery = std::chrono::seconds(5);
constexpr unsigned kReadBytesMax = 1 << 20;

// What is served. A layer is open from its first open file to its last close; its inode number
// stays.
class Served {
 public:
  Served(ImageCatalog* catalog, int prefetch_threads, std::function<void()> when_ready)
      : ready(std::move(when_ready)),
        catalog_(catalog),
        prefetch_(catalog->chunks(), prefetch_threads) {}

  const std::function<void()> ready;

  struct Node {
    std::string id;
    uint64_t bytes = 0;
    int opens = 0;
    std::shared_ptr<LayerReader> reader;
  };

  // Inode number and size of a layer.
  absl::StatusOr<std::pair<fuse_ino_t, uint64_t>> Find(const std::string& id) {
    RETURN_IF_ERROR(storage::ParseChunkId(id).status());
    std::lock_guard lock(mutex_);
    auto found = numbers_.find(id);
    if (found != numbers_.end()) return std::pair{found->second, nodes_[found->second].bytes};
    ASSIGN_OR_RETURN(const auto layer, LayerFile::Open(catalog_->LayerPath(id), id));
    const fuse_ino_t number = ++last_number_;
    numbers_[id] = number;
    nodes_[number] = {id, layer->image_bytes(), 0, nullptr};
    return std::pair{number, layer->image_bytes()};
  }

  absl::StatusOr<LayerReader*> Open(fuse_ino_t number) {
    std::lock_guard lock(mutex_);
    Node& node = nodes_[number];
    if (node.reader == nullptr) {
      ASSIGN_OR_RETURN(auto layer, LayerFile::Open(catalog_->LayerPath(node.id), node.id));
      node.reader = std::make_shared<LayerReader>(
          std::move(layer), catalog_->dir() + "/traces/" + node.id, catalog_->chunks(), &prefetch_);
    }
    ++node.opens;
    return node.reader.get();
  }

  void Close(fuse_ino_t number) {
    std::lock_guard lock(mutex_);
    Node& node = nodes_[number];
    if (--node.opens == 0) node.reader.reset();
  }

  uint64_t Bytes(fuse_ino_t number) {
    std::lock_guard lock(mutex_);
    return nodes_[number].bytes;
  }

  // Traces are written while layers are read: a server that is killed loses seconds of them.
  void SaveTracesUntilStopped() {
    std::unique_lock lock(mutex_);
    while (!stop_.wait_for(lock, kSaveTracesEvery, [this] { return stopping_; })) {
      for (auto& [number, node] : nodes_) {
        if (node.reader == nullptr) continue;
        if (absl::Status status = node.reader->SaveTrace(); !status.ok())
          base::LogWarn(fmt::format("trace of layer {}: {}", node.id, status.message()));
      }
    }
  }
  void Stop() {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    stop_.notify_all();
  }

 private:
  ImageCatalog* const catalog_;
  ChunkPrefetch prefetch_;
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::map<std::string, fuse_ino_t> numbers_;
  std::map<fuse_ino_t, Node> nodes_;
  fuse_ino_t last_number_ = FUSE_ROOT_ID;
};

Served* Self(fuse_req_t request) { return static_cast<Served*>(fuse_req_userdata(request)); }

struct stat FileAttributes(fuse_ino_t number, uint64_t bytes) {
  struct stat attributes {};
  attributes.st_ino = number;
  attributes.st_mode = S_IFREG | 0400;
  attributes.st_nlink = 1;
  attributes.st_size = static_cast<off_t>(bytes);
  attributes.st_blocks = static_cast<blkcnt_t>(bytes / 512);
  return attributes;
}

int ErrnoOf(const absl::Status& status) {
  if (absl::IsNotFound(status) || absl::IsInvalidArgument(status)) return ENOENT;
  base::LogError(status.message().empty() ? "layer" : std::string(status.message()));
  return EIO;
}

void Lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
  if (parent != FUSE_ROOT_ID) return (void)fuse_reply_err(request, ENOENT);
  const auto found = Self(request)->Find(name);
  if (!found.ok()) return (void)fuse_reply_err(request, ErrnoOf(found.status()));
  fuse_entry_param entry{};
  entry.ino = found->first;
  entry.attr = FileAttributes(found->first, found->second);
  entry.attr_timeout = kAttributesSeconds;
  entry.entry_timeout = 0;  // a layer may be collected
  fuse_reply_entry(request, &entry);
}

void GetAttributes(fuse_req_t request, fuse_ino_t number, fuse_file_info*) {
  if (number != FUSE_ROOT_ID) {
    const struct stat attributes = FileAttributes(number, Self(request)->Bytes(number));
    return (void)fuse_reply_attr(request, &attributes, kAttributesSeconds);
  }
  struct stat attributes {};
  attributes.st_ino = FUSE_ROOT_ID;
  attributes.st_mode = S_IFDIR | 0500;
  attributes.st_nlink = 2;
  fuse_reply_attr(request, &attributes, kAttributesSeconds);
}

void OpenFile(fuse_req_t request, fuse_ino_t number, fuse_file_info* file) {
  if ((file->flags & O_ACCMODE) != O_RDONLY) return (void)fuse_reply_err(request, EROFS);
  const absl::StatusOr<LayerReader*> reader = Self(request)->Open(number);
  if (!reader.ok()) return (void)fuse_reply_err(request, ErrnoOf(reader.status()));
  file->fh = reinterpret_cast<uint64_t>(*reader);
  file->keep_cache = 1;
  if (fuse_reply_open(request, file) != 0) Self(request)->Close(number);
}

void ReleaseFile(fuse_req_t request, fuse_ino_t number, fuse_file_info*) {
  Self(request)->Close(number);
  fuse_reply_err(request, 0);
}

void ReadFile(fuse_req_t request, fuse_ino_t, size_t size, off_t offset, fuse_file_info* file) {
  auto* reader = reinterpret_cast<LayerReader*>(file->fh);
  const absl::StatusOr<ReadPieces> read = reader->Read(static_cast<uint64_t>(offset), size);
  if (!read.ok()) return (void)fuse_reply_err(request, ErrnoOf(read.status()));
  fuse_reply_iov(request, read->pieces.data(), static_cast<int>(read->pieces.size()));
}

void Init(void* served, fuse_conn_info* connection) {
  connection->max_read = kReadBytesMax;  // as the mount option says
  connection->max_readahead = kReadBytesMax;
  connection->max_background = 64;
  static_cast<Served*>(served)->ready();
}

const fuse_lowlevel_ops kOperations = [] {
  fuse_lowlevel_ops operations{};
  operations.init = Init;
  operations.lookup = Lookup;
  operations.getattr = GetAttributes;
  operations.open = OpenFile;
  operations.release = ReleaseFile;
  operations.read = ReadFile;
  return operations;
}();

struct SessionFree {
  void operator()(fuse_session* session) const { fuse_session_destroy(session); }
};
struct LoopFree {
  void operator()(fuse_loop_config* config) const { fuse_loop_cfg_destroy(config); }
};

}  // namespace

absl::Status ServeLayers(ImageCatalog* catalog, const LayerFuseOptions& options,
                         const std::function<void()>& ready) {
  Served served(catalog, options.prefetch_threads, ready);
  std::string words =
      fmt::format("ro,fsname=reprise-layers,subtype=reprise,max_read={}", kReadBytesMax);
  std::string name = "reprise-imagefs", dash_o = "-o";
  char* arguments[] = {name.data(), dash_o.data(), words.data()};
  fuse_args args = FUSE_ARGS_INIT(3, arguments);
  const std::unique_ptr<fuse_session, SessionFree> session(
      fuse_session_new(&args, &kOperations, sizeof(kOperations), &served));
  fuse_opt_free_args(&args);
  if (session == nullptr) return absl::InternalError("libfuse does not start: see the line above");
  if (fuse_set_signal_handlers(session.get()) != 0)
    return absl::InternalError("libfuse cannot set signal handlers");
  if (fuse_session_mount(session.get(), options.mount_point.c_str()) != 0) {
    fuse_remove_signal_handlers(session.get());
    return absl::UnavailableError(
        fmt::format("cannot mount FUSE at {}: it needs root and /dev/fuse (modprobe fuse)",
                    options.mount_point));
  }
  std::thread saver([&served] { served.SaveTracesUntilStopped(); });
  const std::unique_ptr<fuse_loop_config, LoopFree> config(fuse_loop_cfg_create());
  fuse_loop_cfg_set_max_threads(config.get(), static_cast<unsigned>(options.threads));
  fuse_loop_cfg_set_clone_fd(config.get(), 0);
  const int result = fuse_session_loop_mt(session.get(), config.get());
  served.Stop();
  saver.join();
  fuse_session_unmount(session.get());
  fuse_remove_signal_handlers(session.get());
  if (result < 0) return base::ErrnoStatus(-result, "serve layers");
  return absl::OkStatus();
}

}  // namespace reprise::sandboxd
