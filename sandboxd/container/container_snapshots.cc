// The files of a container as an image. With images in chunks the upper directory is packed into a
// layer of chunks, which are shared with what is stored already; with containerd's own store it is
// copied into a snapshot on the image's own, and files that did not change since the last one are
// shared with that.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/failpoint.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/container/container_life.h"
#include "sandboxd/container/image_labels.h"
#include "sandboxd/container/image_store.h"
#include "sandboxd/container/overlay.h"
#include "sandboxd/image/image_name.h"

namespace reprise::sandboxd {
namespace {

using nlohmann::json;

constexpr int64_t kPackLeaseSeconds = 3600;
constexpr uint64_t kBoxFileBytesMax = 1 << 20;

std::string BoxImagePath(const std::string& directory) { return directory + "/image.json"; }

// Not synced: a container does not outlive its machine.
absl::Status WriteSmallFile(const std::string& path, const std::string& text) {
  const base::UniqueFd fd(
      open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return base::ErrnoStatus(errno, "make " + path);
  return base::WriteAll(fd.get(), text, path);
}

absl::Status CheckLayers(const ResolvedImage& base, size_t layers) {
  if (layers < kImageLayersMax) return absl::OkStatus();
  return absl::FailedPreconditionError(fmt::format(
      "image {} has {} layers already: import it as one directory to go on", base.name, layers));
}

}  // namespace

absl::Status WriteBoxImage(const std::string& directory, const ResolvedImage& image) {
  return WriteSmallFile(BoxImagePath(directory), json{{"name", image.name},
                                                      {"digest", image.digest},
                                                      {"top_snapshot", image.top_snapshot},
                                                      {"lower", image.lower},
                                                      {"size_bytes", image.size_bytes},
                                                      {"diff_ids", image.config.diff_ids},
                                                      {"env", image.config.env},
                                                      {"user", image.config.user},
                                                      {"working_dir", image.config.working_dir}}
                                                     .dump());
}

absl::StatusOr<ResolvedImage> ReadBoxImage(const std::string& directory) {
  const std::string path = BoxImagePath(directory);
  absl::StatusOr<std::string> text = base::ReadFile(path, kBoxFileBytesMax);
  if (absl::IsNotFound(text.status())) {
    return absl::FailedPreconditionError(
        fmt::format("{} is missing: the sandbox was made before there were snapshots", path));
  }
  RETURN_IF_ERROR(text.status());
  const json document = json::parse(*text, nullptr, /*allow_exceptions=*/false);
  ResolvedImage image;
  try {
    document.at("name").get_to(image.name);
    document.at("digest").get_to(image.digest);
    document.at("top_snapshot").get_to(image.top_snapshot);
    document.at("lower").get_to(image.lower);
    document.at("size_bytes").get_to(image.size_bytes);
    document.at("diff_ids").get_to(image.config.diff_ids);
    document.at("env").get_to(image.config.env);
    document.at("user").get_to(image.config.user);
    document.at("working_dir").get_to(image.config.working_dir);
  } catch (const json::exception&) {
    return absl::DataLossError(fmt::format("{} is damaged: the sandbox has no snapshots", path));
  }
  return image;
}

absl::StatusOr<SnapshotImage> ContainerLife::Snapshot(const std::string& container,
                                                      const std::string& name) {
  RETURN_IF_ERROR(base::CheckId(container, "placement"));
  ASSIGN_OR_RETURN(const ResolvedImage base, ReadBoxImage(BoxDir(container)));
  std::string upper = BoxDir(container) + "/layer/fs";
  if (base.lower.empty()) {
    ASSIGN_OR_RETURN(const std::vector<MountSpec> mounts, client_->SnapshotMounts(container));
    ASSIGN_OR_RETURN(const OverlayDirs dirs, ParseOverlay(mounts));
    upper = dirs.upper;
  }
  return images_->Pack(base, upper, BoxDir(container) + "/last-snapshot", name);
}

absl::StatusOr<SnapshotImage> ImageStore::Pack(const ResolvedImage& base, const std::string& upper,
                                               const std::string& memo, const std::string& name) {
  RETURN_IF_ERROR(CheckImageName(name));
  return base.lower.empty() ? PackCopy(base, upper, memo, name) : PackChunks(base, upper, name);
}

absl::StatusOr<SnapshotImage> ImageStore::PackChunks(const ResolvedImage& base,
                                                     const std::string& upper,
                                                     const std::string& name) {
  if (catalog_ == nullptr) {
    return absl::FailedPreconditionError(
        "the sandbox was made from an image in chunks: start sandboxd with --image-chunks");
  }
  CatalogImage image{base.name, base.digest, {}, base.size_bytes, base.config};
  // Directories are named by their layers, topmost first.
  for (const std::string& directory : base.lower)
    image.layers.insert(image.layers.begin(), std::filesystem::path(directory).filename());
  SnapshotImage snapshot;
  ASSIGN_OR_RETURN(const CatalogImage packed,
                   catalog_->PackDiff(name, image, upper, &snapshot.stored_bytes));
  snapshot.image = ToProto(packed);
  return snapshot;
}

absl::StatusOr<SnapshotImage> ImageStore::PackCopy(const ResolvedImage& base,
                                                   const std::string& upper,
                                                   const std::string& memo,
                                                   const std::string& name) {
  RETURN_IF_ERROR(CheckLayers(base, base.config.diff_ids.size()));
  // Whatever goes wrong with the last copy, all files are copied then.
  const std::string last = base::ReadFile(memo, kBoxFileBytesMax).value_or("");
  ASSIGN_OR_RETURN(const auto lease,
                   LeaseHolder::Make(client_, kPackLeaseSeconds, /*collect=*/false));
  const std::string key = "snapshot-" + base::RandomHex(12);
  ASSIGN_OR_RETURN(const std::vector<MountSpec> mounts,
                   client_->PrepareSnapshot(lease->id(), key, base.top_snapshot, {}));
  ImageConfig config = base.config;
  std::string copied_to;
  auto copy = [&]() -> absl::StatusOr<UpperCopy> {
    ASSIGN_OR_RETURN(const OverlayDirs dirs, ParseOverlay(mounts));
    ASSIGN_OR_RETURN(UpperCopy copied, CopyUpper(upper, dirs.upper, last));
    base::FailPoint("snapshot.copied");
    config.diff_ids.push_back(copied.digest);
    RETURN_IF_ERROR(
        client_->CommitSnapshot(lease->id(), ChainIds(config.diff_ids).back(), key, {}));
    copied_to = dirs.upper;
    return copied;
  };
  absl::StatusOr<UpperCopy> copied = copy();
  if (!copied.ok()) {
    (void)client_->RemoveSnapshot(key);
    // The same files were kept before: that layer is used.
    if (!absl::IsAlreadyExists(copied.status())) return copied.status();
    copied = UpperCopy();
    copied->digest = config.diff_ids.back();
  } else if (absl::Status noted = WriteSmallFile(memo, copied_to); !noted.ok()) {
    base::LogWarn(fmt::format("the next snapshot copies everything: {}", noted.message()));
  }
  const std::string chain = ChainIds(config.diff_ids).back();

  const std::string config_json = MakeConfig(config);
  const BlobRef config_blob{kConfigMediaType, Sha256Digest(config_json),
                            static_cast<int64_t>(config_json.size())};
  ImageManifest manifest{config_blob, {}};
  for (const std::string& diff_id : config.diff_ids)
    manifest.layers.push_back({kCommittedLayerMediaType, diff_id, 0});
  const std::string manifest_json = MakeManifest(manifest);
  const ImageRecord record{
      name,
      {kManifestMediaType, Sha256Digest(manifest_json), static_cast<int64_t>(manifest_json.size())},
      {{kSizeLabel, std::to_string(base.size_bytes + copied->content_bytes)},
       {kLayersLabel, std::to_string(config.diff_ids.size())}}};
  RETURN_IF_ERROR(client_->WriteBlob(lease->id(), config_blob, {{kSnapshotRefLabel, chain}},
                                     Once(config_json)));
  RETURN_IF_ERROR(client_->WriteBlob(lease->id(), record.target,
                                     {{kConfigRefLabel, config_blob.digest}}, Once(manifest_json)));
  base::FailPoint("snapshot.written");
  RETURN_IF_ERROR(client_->PutImage(record));
  // A layer that was there already may have been collected until the image named it.
  ASSIGN_OR_RETURN(const bool whole, client_->SnapshotExists(chain));
  if (!whole) {
    (void)client_->DeleteImage(name);
    return absl::UnavailableError(
        fmt::format("a layer of {} was removed while it was packed: try again", name));
  }
  return SnapshotImage{ToProto(record), copied->copied_bytes};
}

}  // namespace reprise::sandboxd
