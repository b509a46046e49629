// envd's filesystem service, without its watches (e2b_watch.cc).
#include <sys/stat.h>

#include <memory>
#include <utility>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "reprise/envd/v1/filesystem.pb.h"
#include "sandboxd/api/http/box_files.h"
#include "sandboxd/api/http/e2b.h"
#include "sandboxd/api/http/process_stream.h"

namespace reprise::sandboxd::http {
namespace {

namespace envd = ::reprise::envd::v1;

constexpr size_t kBodyMax = 1u << 20;
constexpr uint32_t kDepthMax = 64;
constexpr int kEntriesMax = 100'000;  // of one listing, over all its levels

std::string Permissions(uint32_t mode) {
  std::string text = S_ISDIR(mode) ? "d" : S_ISLNK(mode) ? "l" : "-";
  constexpr char kBits[] = "rwxrwxrwx";
  for (int bit = 8; bit >= 0; --bit) text += (mode >> bit & 1) != 0 ? kBits[8 - bit] : '-';
  return text;
}

class Filesystem {
 public:
  explicit Filesystem(Surface surface) : surface_(surface) {}

  absl::Status Stat(const std::string& id, const envd::StatRequest& request,
                    envd::StatResponse* response) {
    ASSIGN_OR_RETURN(const BoxFiles files, BoxFiles::Open(surface_.sandboxes, id));
    ASSIGN_OR_RETURN(const std::string path, files.Path(request.path()));
    return Describe(files, path, response->mutable_entry());
  }

  absl::Status MakeDir(const std::string& id, const envd::MakeDirRequest& request,
                       envd::MakeDirResponse* response) {
    ASSIGN_OR_RETURN(const BoxFiles files, BoxFiles::Open(surface_.sandboxes, id));
    ASSIGN_OR_RETURN(const std::string path, files.Path(request.path()));
    if (files.Stat(path).ok())
      return absl::AlreadyExistsError(fmt::format("{} exists already", path));
    RETURN_IF_ERROR(files.MakeDir(path));
    return Describe(files, path, response->mutable_entry());
  }

  absl::Status Move(const std::string& id, const envd::MoveRequest& request,
                    envd::MoveResponse* response) {
    ASSIGN_OR_RETURN(const BoxFiles files, BoxFiles::Open(surface_.sandboxes, id));
    ASSIGN_OR_RETURN(const std::string from, files.Path(request.source()));
    ASSIGN_OR_RETURN(const std::string to, files.Path(request.destination()));
    if (const std::string parent = SplitPath(to).first; parent != "/")
      RETURN_IF_ERROR(files.MakeDir(parent));
    RETURN_IF_ERROR(files.Move(from, to));
    return Describe(files, to, response->mutable_entry());
  }

  absl::Status Remove(const std::string& id, const envd::RemoveRequest& request,
                      envd::RemoveResponse*) {
    ASSIGN_OR_RETURN(const BoxFiles files, BoxFiles::Open(surface_.sandboxes, id));
    ASSIGN_OR_RETURN(const std::string path, files.Path(request.path()));
    return files.Remove(path);
  }

  absl::Status ListDir(const std::string& id, const envd::ListDirRequest& request,
                       envd::ListDirResponse* response) {
    ASSIGN_OR_RETURN(const BoxFiles files, BoxFiles::Open(surface_.sandboxes, id));
    ASSIGN_OR_RETURN(const std::string path, files.Path(request.path()));
    if (path != "/") {
      ASSIGN_OR_RETURN(const sandbox::FileInfo info, files.Stat(path));
      if (!S_ISDIR(info.mode()) && !S_ISLNK(info.mode()))
        return absl::InvalidArgumentError(fmt::format("path is not a directory: {}", path));
    }
    const uint32_t depth = request.depth() == 0 ? 1 : std::min(request.depth(), kDepthMax);
    return Walk(files, path, depth, response);
  }

 private:
  static absl::Status Walk(const BoxFiles& files, const std::string& dir, uint32_t depth,
                           envd::ListDirResponse* response) {
    ASSIGN_OR_RETURN(const std::vector<sandbox::FileInfo> entries, files.List(dir));
    for (const sandbox::FileInfo& info : entries) {
      if (response->entries_size() >= kEntriesMax) {
        return absl::ResourceExhaustedError(
            fmt::format("more than {} entries: list with less depth", kEntriesMax));
      }
      const std::string path = CleanPath(info.name(), dir);
      Fill(files, path, info, response->add_entries());
      if (depth > 1 && S_ISDIR(info.mode()))
        RETURN_IF_ERROR(Walk(files, path, depth - 1, response));
    }
    return absl::OkStatus();
  }

  static absl::Status Describe(const BoxFiles& files, const std::string& path,
                               envd::EntryInfo* entry) {
    ASSIGN_OR_RETURN(const sandbox::FileInfo info, files.Stat(path));
    Fill(files, path, info, entry);
    return absl::OkStatus();
  }

  static void Fill(const BoxFiles& files, const std::string& path, const sandbox::FileInfo& info,
                   envd::EntryInfo* entry) {
    entry->set_name(info.name());
    entry->set_path(path);
    entry->set_size(static_cast<int64_t>(info.size()));
    entry->set_mode(info.mode() & 07777);
    entry->set_permissions(Permissions(info.mode()));
    entry->set_owner(files.user().empty() ? "root" : files.user());
    entry->set_group(entry->owner());
    entry->mutable_modified_time()->set_seconds(info.modified_us() / 1'000'000);
    entry->mutable_modified_time()->set_nanos(
        static_cast<int32_t>(info.modified_us() % 1'000'000 * 1000));
    bool directory = S_ISDIR(info.mode());
    if (S_ISLNK(info.mode())) {
      entry->set_symlink_target(info.link_target());
      directory = files.IsDirectory(path);
    }
    entry->set_type(directory ? envd::FILE_TYPE_DIRECTORY : envd::FILE_TYPE_FILE);
  }

  const Surface surface_;
};

}  // namespace

void AddFilesystemRoutes(const Surface& surface, Router* router) {
  auto filesystem = std::make_shared<Filesystem>(surface);
  auto add = [&](const char* verb, Handler handler) {
    Route route;
    route.method = "POST";
    route.pattern = fmt::format("/filesystem.Filesystem/{}", verb);
    route.guard = EnvdGuard(surface);
    route.body_max = kBodyMax;
    route.handler = std::move(handler);
    router->Add(std::move(route));
  };
  add("Stat",
      UnaryVerb<envd::StatRequest, envd::StatResponse>(surface, filesystem, &Filesystem::Stat));
  add("MakeDir", UnaryVerb<envd::MakeDirRequest, envd::MakeDirResponse>(surface, filesystem,
                                                                        &Filesystem::MakeDir));
  add("Move",
      UnaryVerb<envd::MoveRequest, envd::MoveResponse>(surface, filesystem, &Filesystem::Move));
  add("Remove", UnaryVerb<envd::RemoveRequest, envd::RemoveResponse>(surface, filesystem,
                                                                     &Filesystem::Remove));
  add("ListDir", UnaryVerb<envd::ListDirRequest, envd::ListDirResponse>(surface, filesystem,
                                                                        &Filesystem::ListDir));
}

}  // namespace reprise::sandboxd::http
