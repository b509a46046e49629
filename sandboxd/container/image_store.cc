#include "sandboxd/container/image_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <memory>

#include "base/fd.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/container/image_labels.h"
#include "sandboxd/image/image_name.h"

namespace reprise::sandboxd {
namespace {

constexpr int64_t kImportLeaseSeconds = 24 * 3600;
constexpr size_t kReadBytes = 1 << 20;

absl::StatusOr<std::function<absl::StatusOr<std::string>()>> FromFile(const std::string& path) {
  auto fd = std::make_shared<base::UniqueFd>(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd->valid()) return base::ErrnoStatus(errno, fmt::format("open {}", path));
  return [fd, path]() -> absl::StatusOr<std::string> {
    std::string piece(kReadBytes, '\0');
    while (true) {
      const ssize_t count = read(fd->get(), piece.data(), piece.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return base::ErrnoStatus(errno, fmt::format("read {}", path));
      piece.resize(static_cast<size_t>(count));
      return piece;
    }
  };
}

}  // namespace

absl::StatusOr<std::unique_ptr<LeaseHolder>> LeaseHolder::Make(ContainerdClient* client,
                                                               int64_t seconds, bool collect) {
  const std::string id = "reprise-" + base::RandomHex(16);
  RETURN_IF_ERROR(client->CreateLease(id, seconds));
  return std::unique_ptr<LeaseHolder>(new LeaseHolder(client, id, collect));
}

LeaseHolder::~LeaseHolder() {
  if (absl::Status status = client_->DeleteLease(id_, collect_); !status.ok()) {
    base::LogWarn(fmt::format("lease {} stays until it expires: {}", id_, status.message()));
  }
}

void ImageStore::UseChunks(std::unique_ptr<ImageCatalog> catalog,
                           std::unique_ptr<ImageMounts> mounts) {
  catalog_ = std::move(catalog);
  mounts_ = std::move(mounts);
}

absl::StatusOr<sandbox::Image> ImageStore::Import(const std::string& name,
                                                  const std::string& source) {
  RETURN_IF_ERROR(CheckImageName(name));
  if (catalog_ != nullptr) {
    ASSIGN_OR_RETURN(const CatalogImage image, catalog_->Import(name, source));
    return ToProto(image);
  }
  if (source.empty() || source.front() != '/') {
    return absl::InvalidArgumentError(
        fmt::format("image source '{}' must be an absolute path on this host", source));
  }
  const base::TempPath scratch(scratch_dir_ + "/import-");
  RETURN_IF_ERROR(base::MakeDirs(scratch.path(), 0700));
  ASSIGN_OR_RETURN(const ImageBundle bundle, OpenImageSource(source, scratch.path()));

  ASSIGN_OR_RETURN(const auto lease,
                   LeaseHolder::Make(client_, kImportLeaseSeconds, /*collect=*/true));
  const std::vector<std::string> chain = ChainIds(bundle.config.diff_ids);
  RETURN_IF_ERROR(WriteBlobs(lease->id(), bundle, chain.back()));
  RETURN_IF_ERROR(Unpack(lease->id(), bundle, chain));
  uint64_t size = 0;
  for (const ImageLayer& layer : bundle.layers) size += static_cast<uint64_t>(layer.blob.size);
  const ImageRecord record{
      name,
      bundle.manifest,
      {{kSizeLabel, std::to_string(size)}, {kLayersLabel, std::to_string(chain.size())}}};
  RETURN_IF_ERROR(client_->PutImage(record));
  base::LogInfo(fmt::format("imported image {} from {}: {} layers, {} bytes, {}", name, source,
                            chain.size(), size, bundle.manifest.digest));
  return ToProto(record);
}

// Layers first, then what refers to them: garbage collection follows the labels from the image to
// the snapshot.
absl::Status ImageStore::WriteBlobs(const std::string& lease, const ImageBundle& bundle,
                                    const std::string& top_snapshot) {
  Labels references = {{kConfigRefLabel, bundle.config_blob.digest}};
  for (size_t i = 0; i < bundle.layers.size(); ++i) {
    const ImageLayer& layer = bundle.layers[i];
    ASSIGN_OR_RETURN(auto next, FromFile(layer.path));
    RETURN_IF_ERROR(client_->WriteBlob(lease, layer.blob, {}, next));
    references[fmt::format("containerd.io/gc.ref.content.l.{}", i)] = layer.blob.digest;
  }
  RETURN_IF_ERROR(client_->WriteBlob(lease, bundle.config_blob, {{kSnapshotRefLabel, top_snapshot}},
                                     Once(bundle.config_json)));
  return client_->WriteBlob(lease, bundle.manifest, references, Once(bundle.manifest_json));
}

absl::Status ImageStore::Unpack(const std::string& lease, const ImageBundle& bundle,
                                const std::vector<std::string>& chain) {
  for (size_t i = 0; i < chain.size(); ++i) {
    ASSIGN_OR_RETURN(const bool exists, client_->SnapshotExists(chain[i]));
    if (exists) continue;
    const std::string key = fmt::format("unpack-{}-{}", base::RandomHex(8), chain[i]);
    const std::string parent = i == 0 ? "" : chain[i - 1];
    ASSIGN_OR_RETURN(const auto mounts, client_->PrepareSnapshot(lease, key, parent, {}));
    absl::StatusOr<std::string> diff_id = client_->ApplyLayer(lease, bundle.layers[i].blob, mounts);
    absl::Status status = diff_id.status();
    if (status.ok() && *diff_id != bundle.config.diff_ids[i]) {
      status = absl::DataLossError(
          fmt::format("layer {} unpacks to {}, but the image's config says {}",
                      bundle.layers[i].blob.digest, *diff_id, bundle.config.diff_ids[i]));
    }
    if (status.ok()) status = client_->CommitSnapshot(lease, chain[i], key, {});
    if (status.ok()) continue;
    (void)client_->RemoveSnapshot(key);
    if (!absl::IsAlreadyExists(status))
      return status;  // else another import made the same layer meanwhile
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<sandbox::Image>> ImageStore::List() {
  ASSIGN_OR_RETURN(const std::vector<ImageRecord> records, client_->ListImages());
  std::map<std::string, sandbox::Image> by_name;
  for (const ImageRecord& record : records) by_name[record.name] = ToProto(record);
  if (catalog_ != nullptr) {
    ASSIGN_OR_RETURN(const std::vector<CatalogImage> catalogued, catalog_->List());
    for (const CatalogImage& image : catalogued) by_name[image.name] = ToProto(image);
  }
  std::vector<sandbox::Image> images;
  for (auto& [name, image] : by_name) images.push_back(std::move(image));
  return images;
}

absl::Status ImageStore::Remove(const std::string& name) {
  RETURN_IF_ERROR(CheckImageName(name));
  if (catalog_ != nullptr) {
    absl::Status removed = catalog_->Remove(name);
    if (removed.ok()) {
      ASSIGN_OR_RETURN(const std::vector<CatalogImage> left, catalog_->List());
      return mounts_->UnmountUnused(left);
    }
    if (!absl::IsNotFound(removed)) return removed;
  }
  absl::Status status = client_->DeleteImage(name);
  if (absl::IsNotFound(status))
    return absl::NotFoundError(fmt::format("there is no image '{}'", name));
  return status;
}

absl::StatusOr<ResolvedImage> ImageStore::Resolve(const std::string& name) {
  RETURN_IF_ERROR(CheckImageName(name));
  if (catalog_ != nullptr) {
    absl::StatusOr<CatalogImage> found = catalog_->Get(name);
    if (found.ok()) {
      ResolvedImage image{name, found->digest, "", {}, found->config, found->content_bytes};
      ASSIGN_OR_RETURN(image.lower, mounts_->Mount(*found));
      return image;
    }
    if (!absl::IsNotFound(found.status())) return found.status();
  }
  absl::StatusOr<ImageRecord> record = client_->GetImage(name);
  if (absl::IsNotFound(record.status())) {
    return absl::NotFoundError(
        fmt::format("there is no image '{}': import it first (reprise image import)", name));
  }
  RETURN_IF_ERROR(record.status());
  const std::string what = fmt::format("image {}", name);
  ASSIGN_OR_RETURN(const std::string manifest_json,
                   client_->ReadBlob(record->target.digest, kImageDocumentBytesMax));
  ASSIGN_OR_RETURN(const ImageManifest manifest, ParseManifest(manifest_json, what));
  ASSIGN_OR_RETURN(const std::string config_json,
                   client_->ReadBlob(manifest.config.digest, kImageDocumentBytesMax));
  ResolvedImage image{
      name, record->target.digest, "", {}, {}, NumberAt(record->labels, kSizeLabel)};
  ASSIGN_OR_RETURN(image.config, ParseConfig(config_json, what));
  image.top_snapshot = ChainIds(image.config.diff_ids).back();
  return image;
}

}  // namespace reprise::sandboxd
