#include "storage/cold_directory.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/ids.h"
#include "base/status_macros.h"

namespace reprise::storage {
namespace {

class ColdDirectory final : public ColdTier {
 public:
  explicit ColdDirectory(std::string path) : path_(std::move(path)) {}

  absl::StatusOr<std::string> Get(const std::string& key, size_t bytes_max) override {
    RETURN_IF_ERROR(Check(key));
    absl::StatusOr<std::string> object = base::ReadFile(PathOf(key), bytes_max);
    if (absl::IsResourceExhausted(object.status()))
      return absl::DataLossError(std::string(object.status().message()));
    return object;
  }

  absl::StatusOr<bool> Has(const std::string& key) override {
    RETURN_IF_ERROR(Check(key));
    struct stat info {};
    if (stat(PathOf(key).c_str(), &info) == 0) return S_ISREG(info.st_mode);
    if (errno == ENOENT || errno == ENOTDIR) return false;
    return base::ErrnoStatus(errno, fmt::format("stat {}", PathOf(key)));
  }

  absl::Status Put(const std::string& key, std::string_view object) override {
    RETURN_IF_ERROR(Check(key));
    const std::string path = PathOf(key);
    RETURN_IF_ERROR(base::MakeDirs(path.substr(0, path.rfind('/'))));
    return base::WriteFileAtomic(path, object);
  }

  absl::Status Remove(const std::string& key) override {
    RETURN_IF_ERROR(Check(key));
    if (unlink(PathOf(key).c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
    return base::ErrnoStatus(errno, fmt::format("remove {}", PathOf(key)));
  }

 private:
  static absl::Status Check(const std::string& key) {
    return base::CheckId(key, "cold key", /*allow_slash=*/true);
  }
  std::string PathOf(const std::string& key) const { return path_ + "/" + key; }

  const std::string path_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<ColdTier>> OpenColdDirectory(const std::string& path) {
  RETURN_IF_ERROR(base::MakeDirs(path));
  return std::make_shared<ColdDirectory>(path);
}

}  // namespace reprise::storage
