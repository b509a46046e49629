// Opens what a user calls an image: a directory with a root file system, an OCI layout (directory
// or archive) or a `docker save` archive. The answer is a complete, verified image whose blobs are
// files of this host: every digest was computed, every layer was read to its end. Nothing is
// written outside the scratch directory.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sandboxd/image/blob.h"
#include "sandboxd/image/image_config.h"

namespace reprise::sandboxd {

struct ImageLayer {
  BlobRef blob;
  std::string path;  // a file of this host
};

struct ImageBundle {
  BlobRef manifest;
  std::string manifest_json;
  BlobRef config_blob;
  std::string config_json;
  ImageConfig config;
  std::vector<ImageLayer> layers;  // base first; as many as config.diff_ids
};

// `scratch` is an empty directory that outlives the use of the bundle. Errors: NOT_FOUND (no such
// source, a missing blob), INVALID_ARGUMENT (not an image, hostile names), DATA_LOSS (truncated,
// digest differs), UNIMPLEMENTED (a whole disk), RESOURCE_EXHAUSTED (limits).
absl::StatusOr<ImageBundle> OpenImageSource(const std::string& source, const std::string& scratch);

// The parts, each for one kind of source. `name` is how errors call the source.
absl::StatusOr<ImageBundle> OpenOciLayout(const std::string& directory, const std::string& name);
absl::StatusOr<ImageBundle> OpenDockerLayout(const std::string& directory, const std::string& name);
absl::StatusOr<ImageBundle> OpenRootDirectory(const std::string& directory,
                                              const std::string& scratch);

// Reads a blob's file of at most kImageDocumentBytesMax and compares it with its digest and size.
absl::StatusOr<std::string> ReadDocumentBlob(const std::string& path, const BlobRef& blob,
                                             const std::string& what);
// Compares a file of any size with its digest and size.
absl::Status VerifyBlobFile(const std::string& path, const BlobRef& blob, const std::string& what);

}  // namespace reprise::sandboxd
