// How containerd is told of an image: labels of its record, and what garbage collection follows.
// Shared by the files of ImageStore.
#pragma once

#include <cstdlib>
#include <functional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "sandboxd/container/containerd_client.h"
#include "sandboxd/image/image_catalog.h"

namespace reprise::sandboxd {

namespace sandbox = ::reprise::sandbox::v1;

inline constexpr char kSizeLabel[] = "reprise/size";      // of the layers, bytes as stored
inline constexpr char kLayersLabel[] = "reprise/layers";  // number of layers
inline constexpr char kSnapshotRefLabel[] = "containerd.io/gc.ref.snapshot.overlayfs";
inline constexpr char kConfigRefLabel[] = "containerd.io/gc.ref.content.config";

// A blob source that gives `text` once.
inline std::function<absl::StatusOr<std::string>()> Once(std::string text) {
  return [text = std::move(text)]() mutable -> absl::StatusOr<std::string> {
    return std::exchange(text, "");
  };
}

inline uint64_t NumberAt(const Labels& labels, const char* key) {
  auto found = labels.find(key);
  return found == labels.end() ? 0 : std::strtoull(found->second.c_str(), nullptr, 10);
}

inline sandbox::Image ToProto(const ImageRecord& record) {
  sandbox::Image image;
  image.set_name(record.name);
  image.set_digest(record.target.digest);
  image.set_size_bytes(NumberAt(record.labels, kSizeLabel));
  image.set_layers(static_cast<uint32_t>(NumberAt(record.labels, kLayersLabel)));
  return image;
}

inline sandbox::Image ToProto(const CatalogImage& catalogued) {
  sandbox::Image image;
  image.set_name(catalogued.name);
  image.set_digest(catalogued.digest);
  image.set_size_bytes(catalogued.content_bytes);
  image.set_layers(static_cast<uint32_t>(catalogued.layers.size()));
  return image;
}

}  // namespace reprise::sandboxd
