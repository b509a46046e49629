// The two JSON documents of an OCI image, decoded strictly: the manifest names a config and layers,
// the config names the layers' uncompressed digests and what a process of the image starts with.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sandboxd/image/blob.h"

namespace reprise::sandboxd {

inline constexpr size_t kImageDocumentBytesMax = 8 << 20;  // a manifest, an index or a config
inline constexpr size_t kImageLayersMax = 127;  // overlayfs takes a few hundred, runtimes 127

struct ImageManifest {
  BlobRef config;
  std::vector<BlobRef> layers;  // base first
};

struct ImageConfig {
  std::vector<std::string> diff_ids;  // of the uncompressed layers, base first
  std::vector<std::string> env;       // NAME=value
  std::string user;                   // "", "name", "uid" or "uid:gid"
  std::string working_dir;            // "" when the image names none
};

// `what` begins every error: the source and the document.
absl::StatusOr<ImageManifest> ParseManifest(std::string_view json, const std::string& what);
absl::StatusOr<ImageConfig> ParseConfig(std::string_view json, const std::string& what);

// The name under which the snapshot of layers 0..i is kept, for every i (OCI image specification,
// ChainID).
std::vector<std::string> ChainIds(const std::vector<std::string>& diff_ids);

// A manifest for the given blobs and a config for one with the given layers; the same input gives
// the same bytes.
std::string MakeManifest(const ImageManifest& manifest);
std::string MakeConfig(const ImageConfig& config);

// The kind of machine that images must be made for here, in Go's words: "amd64", "arm64".
std::string_view HostArchitecture();

inline constexpr char kManifestMediaType[] = "application/vnd.oci.image.manifest.v1+json";
inline constexpr char kConfigMediaType[] = "application/vnd.oci.image.config.v1+json";
inline constexpr char kTarLayerMediaType[] = "application/vnd.oci.image.layer.v1.tar";
// A layer that is there only as containerd's committed snapshot, named by the digest of its files.
inline constexpr char kCommittedLayerMediaType[] = "application/vnd.reprise.layer.v1.committed";
inline constexpr char kGzipLayerMediaType[] = "application/vnd.oci.image.layer.v1.tar+gzip";

}  // namespace reprise::sandboxd
