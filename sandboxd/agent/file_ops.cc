#include "sandboxd/agent/file_ops.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include <algorithm>

#include "sandboxd/agent/tree_watch.h"

namespace reprise::sandboxd::agent {
namespace {

constexpr unsigned kSecondsMax = 3600;  // of one operation
constexpr int kDepthMax = 512;          // of a directory that is removed

class Server {
 public:
  Server(int connection, FrameReader rest) : connection_(connection), frames_(std::move(rest)) {}

  void Send(const std::string& frame) {
    for (size_t at = 0; at < frame.size();) {
      const ssize_t count = write(connection_, frame.data() + at, frame.size() - at);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) _exit(0);  // nobody listens
      at += static_cast<size_t>(count);
    }
  }
  void Answer(int error, const std::string& what) {
    if (error == 0) return Send(RawFrame(FrameType::kOk, ""));
    Send(Frame(FrameType::kError, Error{error, what + ": " + strerror(error)}));
  }
  // The next kFileData frame; false when the daemon went away.
  bool ReadData(std::string* data) {
    FrameType type;
    char buffer[kDataBytesMax];
    while (true) {
      const FrameReader::Next next = frames_.Pop(&type, data);
      if (next == FrameReader::Next::kFrame) return type == FrameType::kFileData;
      if (next == FrameReader::Next::kMalformed) return false;
      const ssize_t count = read(connection_, buffer, sizeof(buffer));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return false;
      frames_.Append(std::string_view(buffer, static_cast<size_t>(count)));
    }
  }

  void ReadFile(const std::string& path) {
    const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    struct stat info;
    if (!fd.valid() || fstat(fd.get(), &info) != 0) return Answer(errno, "read " + path);
    if (!S_ISREG(info.st_mode))
      return Answer(S_ISDIR(info.st_mode) ? EISDIR : EINVAL, "read " + path);
    std::string buffer(kDataBytesMax, '\0');
    while (true) {
      const ssize_t count = read(fd.get(), buffer.data(), buffer.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return Answer(errno, "read " + path);
      if (count == 0) return Answer(0, "");
      Send(RawFrame(FrameType::kFileData,
                    std::string_view(buffer.data(), static_cast<size_t>(count))));
    }
  }

  void WriteFile(const WriteRequest& request) {
    const std::string what = "write " + request.path;
    if (request.make_parents != 0) {
      const size_t slash = request.path.rfind('/');
      if (slash != std::string::npos && slash > 0) {
        if (const int error = MakeDirs(request.path.substr(0, slash)); error != 0)
          return Answer(error, what);
      }
    }
    const Fd fd(open(request.path.c_str(),
                     O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
                     request.mode & 07777));
    struct stat info;
    if (!fd.valid() || fstat(fd.get(), &info) != 0) return Answer(errno, what);
    if (!S_ISREG(info.st_mode)) return Answer(EINVAL, what);
    if (fchmod(fd.get(), request.mode & 07777) != 0 && errno != EPERM) return Answer(errno, what);
    std::string data;
    int error = 0;
    while (true) {
      if (!ReadData(&data)) _exit(0);
      if (data.empty()) break;
      for (size_t at = 0;
           error == 0 && at < data.size();) {  // after an error the rest is read and dropped
        const ssize_t count = write(fd.get(), data.data() + at, data.size() - at);
        if (count < 0 && errno != EINTR) error = errno;
        if (count > 0) at += static_cast<size_t>(count);
      }
    }
    Answer(error, what);
  }

  void ListDir(const std::string& path) {
    DIR* directory = opendir(path.c_str());
    if (directory == nullptr) return Answer(errno, "list " + path);
    uint32_t entries = 0;
    while (const dirent* item = readdir(directory)) {
      const std::string name = item->d_name;
      if (name == "." || name == "..") continue;
      if (++entries > kListEntriesMax) return Answer(E2BIG, "list " + path);
      struct stat info;
      if (fstatat(dirfd(directory), item->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0)
        continue;  // gone meanwhile
      Entry entry;
      entry.name = name;
      entry.mode = info.st_mode;
      entry.size = static_cast<uint64_t>(info.st_size);
      entry.modified_us = info.st_mtim.tv_sec * 1'000'000ll + info.st_mtim.tv_nsec / 1000;
      if (S_ISLNK(info.st_mode)) {
        char target[4096];
        const ssize_t size = readlinkat(dirfd(directory), item->d_name, target, sizeof(target));
        if (size > 0) entry.link_target.assign(target, static_cast<size_t>(size));
      }
      Send(Frame(FrameType::kEntry, entry));
    }
    Answer(0, "");
  }

  // Until the daemon closes its end, or the directory is gone.
  void Watch(const WatchRequest& request) {
    TreeWatch tree(
        request.path, request.recursive != 0, [this](WatchKind kind, const std::string& path) {
          Send(Frame(FrameType::kWatchEvent, WatchEvent{static_cast<uint8_t>(kind), path}));
        });
    if (const int error = tree.Open(); error != 0) {
      return Answer(error, error == ENOSPC ? "watch " + request.path + ": too many directories"
                                           : "watch " + request.path);
    }
    Send(Frame(FrameType::kWatchEvent, WatchEvent{static_cast<uint8_t>(WatchKind::kStarted), ""}));
    while (true) {
      pollfd ready[] = {{tree.fd(), POLLIN, 0}, {connection_, POLLIN, 0}};
      if (poll(ready, 2, -1) < 0) continue;
      if (ready[1].revents != 0) return;  // it has nothing to say but that it closes
      if (!tree.Step()) return Answer(0, "");
    }
  }

  static int MakeDirs(const std::string& path) {
    for (size_t at = 1; at <= path.size(); ++at) {
      if (at < path.size() && path[at] != '/') continue;
      if (mkdir(path.substr(0, at).c_str(), 0755) != 0 && errno != EEXIST) return errno;
    }
    struct stat info;
    if (stat(path.c_str(), &info) != 0) return errno;
    return S_ISDIR(info.st_mode) ? 0 : ENOTDIR;
  }

  // Removes `name` in `parent` and all below it, never through a symbolic link.
  static int RemoveAt(int parent, const char* name, int depth) {
    if (unlinkat(parent, name, 0) == 0) return 0;
    if (errno != EISDIR && errno != EPERM) return errno;
    if (unlinkat(parent, name, AT_REMOVEDIR) == 0) return 0;
    if (errno != ENOTEMPTY && errno != EEXIST) return errno;
    if (depth > kDepthMax) return ELOOP;
    DIR* directory = nullptr;
    {
      const int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
      if (fd < 0) return errno;
      directory = fdopendir(fd);
    }
    if (directory == nullptr) return errno;
    int error = 0;
    while (const dirent* item = error == 0 ? readdir(directory) : nullptr) {
      if (strcmp(item->d_name, ".") == 0 || strcmp(item->d_name, "..") == 0) continue;
      error = RemoveAt(dirfd(directory), item->d_name, depth + 1);
      if (error == ENOENT) error = 0;
    }
    closedir(directory);
    if (error != 0) return error;
    return unlinkat(parent, name, AT_REMOVEDIR) == 0 ? 0 : errno;
  }

 private:
  const int connection_;
  FrameReader frames_;
};

std::string WithoutTrailingSlash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

}  // namespace

bool IsFileOperation(FrameType type) {
  return (type >= FrameType::kReadFile && type <= FrameType::kRemove) || type == FrameType::kWatch;
}

bool FileOperationUser(FrameType type, const std::string& payload, std::string* user) {
  PathRequest path;
  WriteRequest write;
  MoveRequest move;
  WatchRequest watch;
  if (type == FrameType::kWatch) return Decode(payload, &watch) && (*user = watch.user, true);
  if (type == FrameType::kWriteFile) return Decode(payload, &write) && (*user = write.user, true);
  if (type == FrameType::kMove) return Decode(payload, &move) && (*user = move.user, true);
  return Decode(payload, &path) && (*user = path.user, true);
}

void ServeFileOperation(int connection, FrameType type, const std::string& payload,
                        FrameReader rest, const Identity& identity,
                        const std::string& working_dir) {
  Server server(connection, std::move(rest));
  if (type != FrameType::kWatch) alarm(kSecondsMax);
  umask(022);
  if (!BecomeUnprivileged(identity)) {
    server.Answer(errno, "change to the sandbox's user");
    _exit(0);
  }
  (void)!chdir(
      working_dir.c_str());  // relative paths fail by themselves where it cannot be entered
  PathRequest path;
  WriteRequest write;
  MoveRequest move;
  WatchRequest watch;
  if (type == FrameType::kWatch && Decode(payload, &watch)) {
    server.Watch(watch);
  } else if (type == FrameType::kWriteFile && Decode(payload, &write)) {
    server.WriteFile(write);
  } else if (type == FrameType::kMove && Decode(payload, &move)) {
    server.Answer(rename(move.from.c_str(), move.to.c_str()) == 0 ? 0 : errno, "move " + move.from);
  } else if (Decode(payload, &path)) {
    if (type == FrameType::kReadFile) server.ReadFile(path.path);
    if (type == FrameType::kListDir) server.ListDir(path.path);
    if (type == FrameType::kMakeDir)
      server.Answer(Server::MakeDirs(WithoutTrailingSlash(path.path)), "make " + path.path);
    if (type == FrameType::kRemove) {
      server.Answer(Server::RemoveAt(AT_FDCWD, WithoutTrailingSlash(path.path).c_str(), 0),
                    "remove " + path.path);
    }
  }
  _exit(0);
}

}  // namespace reprise::sandboxd::agent
