// Reads an OCI image layout: index.json -> (index ->) manifest -> config and layers, all by digest.
// Of several manifests the one for this host is taken; several for this host are an error, because
// the name would be a guess.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/status_macros.h"
#include "sandboxd/image/image_source.h"
#include "sandboxd/image/layer_scan.h"

namespace reprise::sandboxd {
namespace {

using nlohmann::json;

constexpr int kIndexDepthMax = 4;
constexpr std::string_view kManifestTypes[] = {
    kManifestMediaType, "application/vnd.docker.distribution.manifest.v2+json"};
constexpr std::string_view kIndexTypes[] = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json"};

bool In(std::string_view value, const auto& list) {
  return std::find(std::begin(list), std::end(list), value) != std::end(list);
}

std::string StringAt(const json& object, const char* name) {
  auto found = object.is_object() ? object.find(name) : object.end();
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

class Layout {
 public:
  Layout(std::string directory, std::string name)
      : directory_(std::move(directory)), name_(std::move(name)) {}

  // REQUIRES: CheckDigest(digest) was OK.
  std::string BlobPath(const std::string& digest) const {
    return directory_ + "/blobs/sha256/" + digest.substr(digest.find(':') + 1);
  }

  // Collects the manifests for this host that `text` (an index) names.
  absl::Status Collect(const std::string& text, int depth, std::vector<BlobRef>* manifests) const {
    const json index = json::parse(text, nullptr, false);
    if (!index.is_object() || !index.contains("manifests") || !index["manifests"].is_array()) {
      return absl::InvalidArgumentError(fmt::format("{}: the index is not an OCI index", name_));
    }
    if (depth > kIndexDepthMax) {
      return absl::InvalidArgumentError(fmt::format("{}: indexes are nested too deeply", name_));
    }
    for (const json& entry : index["manifests"]) {
      const json platform = entry.is_object() ? entry.value("platform", json()) : json();
      if (platform.is_object() && (StringAt(platform, "os") != "linux" ||
                                   StringAt(platform, "architecture") != HostArchitecture())) {
        continue;
      }
      BlobRef blob{StringAt(entry, "mediaType"), StringAt(entry, "digest"), -1};
      RETURN_IF_ERROR(CheckDigest(blob.digest, name_ + ", index"));
      if (entry.contains("size") && entry["size"].is_number_integer())
        blob.size = entry["size"].get<int64_t>();
      if (In(blob.media_type, kManifestTypes)) {
        manifests->push_back(blob);
      } else if (In(blob.media_type, kIndexTypes)) {
        ASSIGN_OR_RETURN(const std::string inner,
                         ReadDocumentBlob(BlobPath(blob.digest), blob, name_));
        RETURN_IF_ERROR(Collect(inner, depth + 1, manifests));
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ImageBundle> Load(const BlobRef& manifest_blob) const {
    ImageBundle bundle;
    bundle.manifest = manifest_blob;
    ASSIGN_OR_RETURN(bundle.manifest_json,
                     ReadDocumentBlob(BlobPath(manifest_blob.digest), manifest_blob, name_));
    ASSIGN_OR_RETURN(ImageManifest manifest,
                     ParseManifest(bundle.manifest_json, name_ + ", manifest"));
    bundle.config_blob = manifest.config;
    ASSIGN_OR_RETURN(bundle.config_json,
                     ReadDocumentBlob(BlobPath(manifest.config.digest), manifest.config, name_));
    ASSIGN_OR_RETURN(bundle.config, ParseConfig(bundle.config_json, name_ + ", config"));
    if (bundle.config.diff_ids.size() != manifest.layers.size()) {
      return absl::InvalidArgumentError(fmt::format("{}: the manifest has {} layers, the config {}",
                                                    name_, manifest.layers.size(),
                                                    bundle.config.diff_ids.size()));
    }
    for (const BlobRef& layer : manifest.layers) {
      const std::string path = BlobPath(layer.digest);
      RETURN_IF_ERROR(VerifyBlobFile(path, layer, name_));
      RETURN_IF_ERROR(ScanLayer(path, fmt::format("{}, layer {}", name_, layer.digest)));
      bundle.layers.push_back({layer, path});
    }
    return bundle;
  }

 private:
  const std::string directory_;
  const std::string name_;
};

}  // namespace

absl::StatusOr<ImageBundle> OpenOciLayout(const std::string& directory, const std::string& name) {
  const Layout layout(directory, name);
  ASSIGN_OR_RETURN(const std::string index,
                   base::ReadFile(directory + "/index.json", kImageDocumentBytesMax));
  std::vector<BlobRef> manifests;
  RETURN_IF_ERROR(layout.Collect(index, 0, &manifests));
  if (manifests.size() != 1) {
    return absl::InvalidArgumentError(
        fmt::format("{}: it holds {} images for linux/{}; one is needed", name, manifests.size(),
                    HostArchitecture()));
  }
  return layout.Load(manifests.front());
}

}  // namespace reprise::sandboxd
