// The images of a node, stored for reading on demand: records that name layers, layer files that
// name chunks, chunks in their tiers. Everything is written before what names it, and removed after
// it, so that a kill at any point leaves at most what Collect takes away. Several processes may use
// one catalogue. Layout: sandboxd/image/FORMAT.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fd.h"
#include "sandboxd/image/image_source.h"
#include "sandboxd/image/layer_build.h"
#include "sandboxd/image/layer_file.h"
#include "storage/chunk_store.h"

namespace reprise::sandboxd {

struct ImageCatalogOptions {
  std::string dir;   // made when it is missing
  std::string cold;  // as storage::OpenColdTier takes it; "" = none
  uint64_t disk_bytes_max = 50ull << 30;
  uint64_t memory_bytes_max = 64ull << 20;
};

struct CatalogImage {
  std::string name;
  std::string digest;               // "sha256:<hex>"; the same content and config, the same digest
  std::vector<std::string> layers;  // ids, base first
  uint64_t content_bytes = 0;       // of all layers' chunks, uncompressed
  ImageConfig config;
};

struct LayerSizes {
  std::string id;
  uint64_t inodes = 0;
  uint64_t metadata_bytes = 0;  // local, needed to start
  uint64_t content_bytes = 0;   // of its chunks, uncompressed
  uint64_t chunks = 0;
  uint64_t shared_bytes = 0;  // of content_bytes, in chunks that other images' layers have too
  uint64_t local_bytes = 0;   // of its chunks on local disk, as stored
  std::vector<std::string> images;  // that have this layer
};

class ImageCatalog {
 public:
  static absl::StatusOr<std::unique_ptr<ImageCatalog>> Open(ImageCatalogOptions options);
  // With a cold tier that is open already (nullptr: none); options.cold is not looked at.
  static absl::StatusOr<std::unique_ptr<ImageCatalog>> OpenWith(
      ImageCatalogOptions options, std::shared_ptr<storage::ColdTier> cold);
  ImageCatalog(const ImageCatalog&) = delete;
  ImageCatalog& operator=(const ImageCatalog&) = delete;

  // Brings in a directory, an OCI layout or archive, or a `docker save` archive under `name`,
  // replacing an image of that name. Layers that are here already are not read again. Errors as
  // OpenImageSource, and the store's.
  absl::StatusOr<CatalogImage> Import(const std::string& name, const std::string& source);

  // A new image: `base` and the upper directory of an overlay on it, as one more layer.
  // FAILED_PRECONDITION when it would have more than kImageLayersMax. `stored_bytes`, if given,
  // receives the bytes of its new chunks, as stored.
  absl::StatusOr<CatalogImage> PackDiff(const std::string& name, const CatalogImage& base,
                                        const std::string& upper,
                                        uint64_t* stored_bytes = nullptr);

  // Ordered by name.
  absl::StatusOr<std::vector<CatalogImage>> List() const;
  // Of this node, else of the cold tier: its record and layer files are brought here then.
  // NOT_FOUND.
  absl::StatusOr<CatalogImage> Get(const std::string& name);
  absl::Status Remove(const std::string& name);
  absl::StatusOr<std::vector<LayerSizes>> Sizes(const CatalogImage& image) const;

  struct Collected {
    uint64_t layers = 0, chunks = 0, chunk_bytes = 0;
  };
  // Removes layers that no image names and nobody has open, then chunks that no layer names.
  // UNAVAILABLE while an import runs.
  absl::StatusOr<Collected> Collect();

  std::string LayerPath(const std::string& id) const;
  const std::string& dir() const { return options_.dir; }
  storage::ChunkStore* chunks() { return chunks_.get(); }

 private:
  ImageCatalog(ImageCatalogOptions options, std::shared_ptr<storage::ColdTier> cold,
               std::unique_ptr<storage::ChunkStore> chunks)
      : options_(std::move(options)), cold_(std::move(cold)), chunks_(std::move(chunks)) {}

  absl::StatusOr<base::UniqueFd> Lock(int operation) const;
  std::string RecordPath(const std::string& name) const;
  std::string SourcePath(const std::string& digest) const;
  absl::StatusOr<CatalogImage> ReadRecord(const std::string& path) const;
  absl::Status WriteRecord(CatalogImage* written);  // counts its bytes
  absl::StatusOr<std::string> AddLayer(
      const std::function<absl::Status(ChunkPacker*, LayerTree*)>& build,
      uint64_t* stored_bytes = nullptr);
  absl::StatusOr<std::string> AddBlob(const ImageLayer& layer, const std::string& what);
  absl::Status BringLayer(const std::string& id);
  absl::StatusOr<std::vector<std::string>> LayerIds() const;

  const ImageCatalogOptions options_;
  const std::shared_ptr<storage::ColdTier> cold_;
  const std::unique_ptr<storage::ChunkStore> chunks_;
};

}  // namespace reprise::sandboxd
