// Reads an unpacked `docker save` archive of the kind before OCI layouts: manifest.json names a
// config file and one layer.tar a layer. An OCI manifest is made for it.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/image/image_source.h"
#include "sandboxd/image/layer_scan.h"

namespace reprise::sandboxd {
namespace {

using nlohmann::json;

constexpr size_t kReadBytes = 1 << 20;

// Digest, size and kind of a layer file: Docker writes plain tars, other tools gzip them.
absl::StatusOr<BlobRef> DescribeLayer(const std::string& path, const std::string& what) {
  base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat info;
  if (!fd.valid() || fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::NotFoundError(fmt::format("{}: the layer is missing", what));
  }
  BlobRef blob{kTarLayerMediaType, "", info.st_size};
  Sha256 hash;
  std::string buffer(kReadBytes, '\0');
  bool first = true;
  while (true) {
    const ssize_t count = read(fd.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return base::ErrnoStatus(errno, fmt::format("{}: read {}", what, path));
    if (count == 0) break;
    const std::string_view piece(buffer.data(), static_cast<size_t>(count));
    if (first && piece.starts_with("\x1f\x8b")) blob.media_type = kGzipLayerMediaType;
    first = false;
    hash.Update(piece);
  }
  blob.digest = hash.Digest();
  return blob;
}

}  // namespace

absl::StatusOr<ImageBundle> OpenDockerLayout(const std::string& directory,
                                             const std::string& name) {
  const std::string what = name + ", manifest.json";
  ASSIGN_OR_RETURN(const std::string text,
                   base::ReadFile(directory + "/manifest.json", kImageDocumentBytesMax));
  const json document = json::parse(text, nullptr, false);
  if (!document.is_array() || document.size() != 1 || !document[0].is_object()) {
    return absl::InvalidArgumentError(fmt::format("{}: it must hold exactly one image", what));
  }
  const json& image = document[0];
  const json config_name = image.value("Config", json());
  const json layer_names = image.value("Layers", json());
  if (!config_name.is_string() || !layer_names.is_array() || layer_names.empty() ||
      layer_names.size() > kImageLayersMax) {
    return absl::InvalidArgumentError(
        fmt::format("{}: Config or Layers is missing or too long", what));
  }
  // Names become paths below `directory`, where UnpackArchive made nothing but directories and
  // regular files.
  RETURN_IF_ERROR(
      base::CheckId(config_name.get<std::string>(), what + ", Config", /*allow_slash=*/true));
  ImageBundle bundle;
  ASSIGN_OR_RETURN(
      bundle.config_json,
      base::ReadFile(directory + "/" + config_name.get<std::string>(), kImageDocumentBytesMax));
  ASSIGN_OR_RETURN(bundle.config, ParseConfig(bundle.config_json, name + ", config"));
  if (bundle.config.diff_ids.size() != layer_names.size()) {
    return absl::InvalidArgumentError(fmt::format("{}: {} layers, but the config has {}", what,
                                                  layer_names.size(),
                                                  bundle.config.diff_ids.size()));
  }
  ImageManifest manifest;
  for (const json& layer_name : layer_names) {
    if (!layer_name.is_string())
      return absl::InvalidArgumentError(fmt::format("{}: a layer has no name", what));
    RETURN_IF_ERROR(
        base::CheckId(layer_name.get<std::string>(), what + ", Layers", /*allow_slash=*/true));
    const std::string path = directory + "/" + layer_name.get<std::string>();
    const std::string where = fmt::format("{}, layer {}", name, layer_name.get<std::string>());
    ASSIGN_OR_RETURN(BlobRef blob, DescribeLayer(path, where));
    RETURN_IF_ERROR(ScanLayer(path, where));
    manifest.layers.push_back(blob);
    bundle.layers.push_back({std::move(blob), path});
  }
  bundle.config_blob = {kConfigMediaType, Sha256Digest(bundle.config_json),
                        static_cast<int64_t>(bundle.config_json.size())};
  manifest.config = bundle.config_blob;
  bundle.manifest_json = MakeManifest(manifest);
  bundle.manifest = {kManifestMediaType, Sha256Digest(bundle.manifest_json),
                     static_cast<int64_t>(bundle.manifest_json.size())};
  return bundle;
}

}  // namespace reprise::sandboxd
