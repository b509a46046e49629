#include "sandboxd/image/image_config.h"

#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>

#include "base/status_macros.h"

namespace reprise::sandboxd {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 6> kLayerMediaTypes = {
    kCommittedLayerMediaType, kTarLayerMediaType, kGzipLayerMediaType, "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip"};

absl::Status Malformed(const std::string& what, std::string_view why) {
  return absl::InvalidArgumentError(fmt::format("{}: {}", what, why));
}

absl::StatusOr<json> ParseObject(std::string_view text, const std::string& what) {
  if (text.size() > kImageDocumentBytesMax) return Malformed(what, "larger than 8 MiB");
  json document = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) return Malformed(what, "not a JSON object");
  return document;
}

// The string member `name`, "" when absent or null.
absl::StatusOr<std::string> OptionalString(const json& object, const char* name,
                                           const std::string& what) {
  auto found = object.find(name);
  if (found == object.end() || found->is_null()) return std::string();
  if (!found->is_string()) return Malformed(what, fmt::format("{} is not a string", name));
  std::string value = found->get<std::string>();
  if (value.find('\0') != std::string::npos)
    return Malformed(what, fmt::format("{} contains a NUL byte", name));
  return value;
}

absl::StatusOr<std::vector<std::string>> OptionalStrings(const json& object, const char* name,
                                                         const std::string& what) {
  std::vector<std::string> values;
  auto found = object.find(name);
  if (found == object.end() || found->is_null()) return values;
  if (!found->is_array()) return Malformed(what, fmt::format("{} is not an array", name));
  for (const json& item : *found) {
    if (!item.is_string())
      return Malformed(what, fmt::format("{} holds something that is not a string", name));
    values.push_back(item.get<std::string>());
    if (values.back().find('\0') != std::string::npos) {
      return Malformed(what, fmt::format("{} contains a NUL byte", name));
    }
  }
  return values;
}

absl::StatusOr<BlobRef> ParseDescriptor(const json& object, const std::string& what) {
  if (!object.is_object()) return Malformed(what, "not a descriptor");
  BlobRef blob;
  ASSIGN_OR_RETURN(blob.media_type, OptionalString(object, "mediaType", what));
  ASSIGN_OR_RETURN(blob.digest, OptionalString(object, "digest", what));
  RETURN_IF_ERROR(CheckDigest(blob.digest, what));
  auto size = object.find("size");
  if (size == object.end() || !size->is_number_integer() || *size < 0) {
    return Malformed(what, "the descriptor has no size");
  }
  blob.size = size->get<int64_t>();
  return blob;
}

json ToJson(const BlobRef& blob) {
  return {{"mediaType", blob.media_type}, {"digest", blob.digest}, {"size", blob.size}};
}

}  // namespace

absl::StatusOr<ImageManifest> ParseManifest(std::string_view text, const std::string& what) {
  ASSIGN_OR_RETURN(const json document, ParseObject(text, what));
  auto config = document.find("config");
  auto layers = document.find("layers");
  if (config == document.end() || layers == document.end() || !layers->is_array()) {
    return Malformed(what, "not an image manifest (no config or layers)");
  }
  if (layers->size() > kImageLayersMax) {
    return Malformed(
        what, fmt::format("{} layers; at most {} are supported", layers->size(), kImageLayersMax));
  }
  ImageManifest manifest;
  ASSIGN_OR_RETURN(manifest.config, ParseDescriptor(*config, what + ", config"));
  for (const json& layer : *layers) {
    const std::string where = fmt::format("{}, layer {}", what, manifest.layers.size());
    ASSIGN_OR_RETURN(BlobRef blob, ParseDescriptor(layer, where));
    if (std::find(kLayerMediaTypes.begin(), kLayerMediaTypes.end(), blob.media_type) ==
        kLayerMediaTypes.end()) {
      return Malformed(
          where,
          fmt::format("media type '{}' is not a tar, tar+gzip or tar+zstd layer", blob.media_type));
    }
    manifest.layers.push_back(std::move(blob));
  }
  if (manifest.layers.empty()) return Malformed(what, "the image has no layers");
  return manifest;
}

absl::StatusOr<ImageConfig> ParseConfig(std::string_view text, const std::string& what) {
  ASSIGN_OR_RETURN(const json document, ParseObject(text, what));
  ImageConfig config;
  auto rootfs = document.find("rootfs");
  if (rootfs == document.end() || !rootfs->is_object())
    return Malformed(what, "not an image config (no rootfs)");
  ASSIGN_OR_RETURN(config.diff_ids, OptionalStrings(*rootfs, "diff_ids", what));
  for (const std::string& diff_id : config.diff_ids)
    RETURN_IF_ERROR(CheckDigest(diff_id, what + ", diff_ids"));
  ASSIGN_OR_RETURN(const std::string os, OptionalString(document, "os", what));
  ASSIGN_OR_RETURN(const std::string architecture, OptionalString(document, "architecture", what));
  if ((!os.empty() && os != "linux") ||
      (!architecture.empty() && architecture != HostArchitecture())) {
    return Malformed(what, fmt::format("the image is for {}/{}, this host is linux/{}", os,
                                       architecture, HostArchitecture()));
  }
  auto process = document.find("config");
  if (process == document.end() || process->is_null()) return config;
  if (!process->is_object()) return Malformed(what, "config is not an object");
  ASSIGN_OR_RETURN(config.env, OptionalStrings(*process, "Env", what));
  ASSIGN_OR_RETURN(config.user, OptionalString(*process, "User", what));
  ASSIGN_OR_RETURN(config.working_dir, OptionalString(*process, "WorkingDir", what));
  return config;
}

std::vector<std::string> ChainIds(const std::vector<std::string>& diff_ids) {
  std::vector<std::string> chain;
  for (const std::string& diff_id : diff_ids) {
    chain.push_back(chain.empty() ? diff_id : Sha256Digest(chain.back() + " " + diff_id));
  }
  return chain;
}

std::string MakeManifest(const ImageManifest& manifest) {
  json layers = json::array();
  for (const BlobRef& layer : manifest.layers) layers.push_back(ToJson(layer));
  return json({{"schemaVersion", 2},
               {"mediaType", kManifestMediaType},
               {"config", ToJson(manifest.config)},
               {"layers", layers}})
      .dump();
}

std::string MakeConfig(const ImageConfig& config) {
  json process = json::object();
  if (!config.env.empty()) process["Env"] = config.env;
  if (!config.user.empty()) process["User"] = config.user;
  if (!config.working_dir.empty()) process["WorkingDir"] = config.working_dir;
  return json({{"architecture", std::string(HostArchitecture())},
               {"os", "linux"},
               {"config", process},
               {"rootfs", {{"type", "layers"}, {"diff_ids", config.diff_ids}}}})
      .dump();
}

std::string_view HostArchitecture() {
#if defined(__x86_64__)
  return "amd64";
#elif defined(__aarch64__)
  return "arm64";
#else
#error "name this architecture as Go does"
#endif
}

}  // namespace reprise::sandboxd
