#include "sandboxd/image/image_catalog.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/container/flat_hash_set.h"
#include "base/fd.h"
#include "base/failpoint.h"
#include "base/format.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/image/image_name.h"

namespace reprise::sandboxd {
namespace {

using nlohmann::json;

constexpr size_t kIdDigits = 64;
constexpr char kLayerSuffix[] = ".layer";
constexpr size_t kRecordBytesMax = 1 << 20;

std::string HexOf(std::string_view digest) {
  return std::string(digest.substr(digest.find(':') + 1));
}

std::string ToJson(const CatalogImage& image) {
  return json{{"name", image.name},
              {"digest", image.digest},
              {"layers", image.layers},
              {"content_bytes", image.content_bytes},
              {"env", image.config.env},
              {"user", image.config.user},
              {"working_dir", image.config.working_dir}}
      .dump();
}

absl::StatusOr<CatalogImage> FromJson(const std::string& text, const std::string& what) {
  const json record = json::parse(text, nullptr, /*allow_exceptions=*/false);
  CatalogImage image;
  auto damaged = [&what] {
    return absl::DataLossError(fmt::format("image record {} is damaged: import it again", what));
  };
  auto strings = [&record](const char* key, std::vector<std::string>* out) {
    if (!record.contains(key) || !record[key].is_array()) return false;
    for (const json& item : record[key]) {
      if (!item.is_string()) return false;
      out->push_back(item.get<std::string>());
    }
    return true;
  };
  if (!record.is_object()) return damaged();
  for (auto [key, field] : {std::pair{"name", &image.name},
                            {"digest", &image.digest},
                            {"user", &image.config.user},
                            {"working_dir", &image.config.working_dir}}) {
    if (!record.contains(key) || !record[key].is_string()) return damaged();
    *field = record[key].get<std::string>();
  }
  if (!record.contains("content_bytes") || !record["content_bytes"].is_number_unsigned())
    return damaged();
  image.content_bytes = record["content_bytes"].get<uint64_t>();
  if (!strings("layers", &image.layers) || !strings("env", &image.config.env)) return damaged();
  for (const std::string& id : image.layers) {
    if (!storage::ParseChunkId(id).ok()) return damaged();
  }
  if (!CheckImageName(image.name).ok()) return damaged();
  return image;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ImageCatalog>> ImageCatalog::Open(ImageCatalogOptions options) {
  std::shared_ptr<storage::ColdTier> cold;
  if (!options.cold.empty()) {
    ASSIGN_OR_RETURN(cold, storage::OpenColdTier(options.cold));
  }
  return OpenWith(std::move(options), std::move(cold));
}

absl::StatusOr<std::unique_ptr<ImageCatalog>> ImageCatalog::OpenWith(
    ImageCatalogOptions options, std::shared_ptr<storage::ColdTier> cold) {
  for (const char* part : {"images", "layers", "sources", "traces", "scratch"}) {
    RETURN_IF_ERROR(base::MakeDirs(options.dir + "/" + part, 0700));
  }
  ASSIGN_OR_RETURN(auto chunks,
                   storage::ChunkStore::Open({options.dir + "/chunks", options.disk_bytes_max,
                                              options.memory_bytes_max, cold}));
  return std::unique_ptr<ImageCatalog>(
      new ImageCatalog(std::move(options), std::move(cold), std::move(chunks)));
}

std::string ImageCatalog::LayerPath(const std::string& id) const {
  return options_.dir + "/layers/" + id + kLayerSuffix;
}
std::string ImageCatalog::RecordPath(const std::string& name) const {
  return options_.dir + "/images/" + HexOf(Sha256Digest(name)) + ".json";
}
std::string ImageCatalog::SourcePath(const std::string& digest) const {
  return options_.dir + "/sources/" + HexOf(digest);
}

absl::StatusOr<base::UniqueFd> ImageCatalog::Lock(int operation) const {
  const std::string path = options_.dir + "/lock";
  base::UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return base::ErrnoStatus(errno, fmt::format("open {}", path));
  while (flock(fd.get(), operation) != 0) {
    if (errno == EINTR) continue;
    if (errno == EWOULDBLOCK)
      return absl::UnavailableError(
          "an image is being imported or packed: try again when it is done");
    return base::ErrnoStatus(errno, fmt::format("lock {}", path));
  }
  return fd;
}

absl::StatusOr<CatalogImage> ImageCatalog::ReadRecord(const std::string& path) const {
  ASSIGN_OR_RETURN(const std::string text, base::ReadFile(path, kRecordBytesMax));
  return FromJson(text, path);
}

absl::Status ImageCatalog::WriteRecord(CatalogImage* written) {
  written->content_bytes = 0;
  for (const std::string& id : written->layers) {
    ASSIGN_OR_RETURN(const auto layer, LayerFile::Open(LayerPath(id), id));
    for (uint64_t i = 0; i < layer->chunks(); ++i) written->content_bytes += layer->chunk(i).length;
  }
  const CatalogImage& image = *written;
  const std::string text = ToJson(image);
  if (cold_ != nullptr)
    RETURN_IF_ERROR(cold_->Put("images/" + HexOf(Sha256Digest(image.name)), text));
  return base::WriteFileAtomic(RecordPath(image.name), text);
}

// Chunks, then the layer file: whoever finds the file finds its chunks.
absl::StatusOr<std::string> ImageCatalog::AddLayer(
    const std::function<absl::Status(ChunkPacker*, LayerTree*)>& build, uint64_t* stored_bytes) {
  ASSIGN_OR_RETURN(auto writer, chunks_->Begin());
  LayerTree tree;
  std::vector<ChunkRef> refs;
  {
    ChunkPacker packer(writer.get());
    RETURN_IF_ERROR(build(&packer, &tree));
    ASSIGN_OR_RETURN(refs, packer.Finish());
  }
  ASSIGN_OR_RETURN(
      const ErofsMetadata metadata,
      WriteErofs(tree, refs.size() * storage::kChunkBytesMax, storage::kChunkBytesMax));
  const std::string file = EncodeLayerFile(metadata, refs);
  const std::string id = HexOf(Sha256Digest(file));
  base::FailPoint("image.built");
  RETURN_IF_ERROR(writer->Commit());
  base::FailPoint("image.chunks");
  if (cold_ != nullptr) RETURN_IF_ERROR(cold_->Put("layers/" + id, file));
  RETURN_IF_ERROR(base::WriteFileAtomic(LayerPath(id), file));
  base::FailPoint("image.layer");
  if (stored_bytes != nullptr) *stored_bytes = writer->new_bytes();
  return id;
}

absl::StatusOr<std::string> ImageCatalog::AddBlob(const ImageLayer& layer,
                                                  const std::string& what) {
  const std::string source = SourcePath(layer.blob.digest);
  if (absl::StatusOr<std::string> known = base::ReadFile(source, kIdDigits); known.ok()) {
    if (storage::ParseChunkId(*known).ok() && BringLayer(*known).ok()) return known;
  }
  ASSIGN_OR_RETURN(std::string id, AddLayer([&](ChunkPacker* packer, LayerTree* tree) {
                     return BuildFromTar(layer.path, what, packer, tree);
                   }));
  RETURN_IF_ERROR(base::WriteFileAtomic(source, id));
  return id;
}

absl::StatusOr<CatalogImage> ImageCatalog::Import(const std::string& name,
                                                  const std::string& source) {
  RETURN_IF_ERROR(CheckImageName(name));
  if (source.empty() || source.front() != '/') {
    return absl::InvalidArgumentError(
        fmt::format("image source '{}' must be an absolute path on this host", source));
  }
  ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock(LOCK_SH));
  CatalogImage image;
  image.name = name;
  std::error_code error;
  if (std::filesystem::is_directory(source, error) &&
      !std::filesystem::exists(source + "/oci-layout", error)) {
    ASSIGN_OR_RETURN(std::string id, AddLayer([&](ChunkPacker* packer, LayerTree* tree) {
                       return BuildFromDirectory(source, DirectoryKind::kRoot, packer, tree);
                     }));
    image.digest = Sha256Digest(id);
    image.layers.push_back(std::move(id));
  } else {
    const base::TempPath scratch(options_.dir + "/scratch/import-");
    RETURN_IF_ERROR(base::MakeDirs(scratch.path(), 0700));
    ASSIGN_OR_RETURN(const ImageBundle bundle, OpenImageSource(source, scratch.path()));
    image.digest = bundle.manifest.digest;
    image.config = bundle.config;
    for (const ImageLayer& layer : bundle.layers) {
      ASSIGN_OR_RETURN(std::string id,
                       AddBlob(layer, fmt::format("{}: layer {}", source, layer.blob.digest)));
      image.layers.push_back(std::move(id));
    }
  }
  RETURN_IF_ERROR(WriteRecord(&image));
  base::LogInfo(fmt::format("imported image {} from {}: {} layers, {}", name, source,
                            image.layers.size(), image.digest));
  return image;
}

absl::StatusOr<CatalogImage> ImageCatalog::PackDiff(const std::string& name,
                                                    const CatalogImage& base,
                                                    const std::string& upper,
                                                    uint64_t* stored_bytes) {
  RETURN_IF_ERROR(CheckImageName(name));
  if (base.layers.size() >= kImageLayersMax) {
    return absl::FailedPreconditionError(
        fmt::format("image {} has {} layers already: import it as one directory to go on",
                    base.name, base.layers.size()));
  }
  ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock(LOCK_SH));
  ASSIGN_OR_RETURN(
      std::string id,
      AddLayer(
          [&](ChunkPacker* packer, LayerTree* tree) {
            return BuildFromDirectory(upper, DirectoryKind::kUpper, packer, tree);
          },
          stored_bytes));
  CatalogImage image = base;
  image.name = name;
  image.layers.push_back(std::move(id));
  std::string all;
  for (const std::string& layer : image.layers) all += layer;
  image.digest = Sha256Digest(all);
  for (const std::string& layer : image.layers) RETURN_IF_ERROR(BringLayer(layer));
  RETURN_IF_ERROR(WriteRecord(&image));
  return image;
}

absl::StatusOr<std::vector<CatalogImage>> ImageCatalog::List() const {
  std::vector<CatalogImage> images;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(options_.dir + "/images", error)) {
    if (entry.path().extension() != ".json") continue;
    ASSIGN_OR_RETURN(CatalogImage image, ReadRecord(entry.path()));
    images.push_back(std::move(image));
  }
  if (error) return base::ErrnoStatus(error.value(), fmt::format("list {}/images", options_.dir));
  std::sort(images.begin(), images.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  return images;
}

absl::Status ImageCatalog::BringLayer(const std::string& id) {
  if (access(LayerPath(id).c_str(), R_OK) == 0) return absl::OkStatus();
  if (cold_ == nullptr) return absl::NotFoundError(fmt::format("layer {} is not here", id));
  ASSIGN_OR_RETURN(const std::string file, cold_->Get("layers/" + id, kLayerFileBytesMax));
  if (HexOf(Sha256Digest(file)) != id)
    return absl::DataLossError(fmt::format("layer {} is damaged in the cold tier", id));
  return base::WriteFileAtomic(LayerPath(id), file);
}

absl::StatusOr<CatalogImage> ImageCatalog::Get(const std::string& name) {
  RETURN_IF_ERROR(CheckImageName(name));
  absl::StatusOr<CatalogImage> image = ReadRecord(RecordPath(name));
  if (!absl::IsNotFound(image.status())) return image;
  const absl::Status unknown = absl::NotFoundError(
      fmt::format("there is no image '{}': import it first (reprise image import)", name));
  if (cold_ == nullptr) return unknown;
  ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock(LOCK_SH));
  const absl::StatusOr<std::string> text =
      cold_->Get("images/" + HexOf(Sha256Digest(name)), kRecordBytesMax);
  if (absl::IsNotFound(text.status())) return unknown;
  RETURN_IF_ERROR(text.status());
  ASSIGN_OR_RETURN(image, FromJson(*text, "of " + name + " in the cold tier"));
  if (image->name != name)
    return absl::DataLossError(fmt::format("the cold tier has {} as {}", image->name, name));
  for (const std::string& id : image->layers) RETURN_IF_ERROR(BringLayer(id));
  RETURN_IF_ERROR(base::WriteFileAtomic(RecordPath(name), *text));
  return image;
}

absl::Status ImageCatalog::Remove(const std::string& name) {
  RETURN_IF_ERROR(CheckImageName(name));
  if (cold_ != nullptr) RETURN_IF_ERROR(cold_->Remove("images/" + HexOf(Sha256Digest(name))));
  if (unlink(RecordPath(name).c_str()) == 0) return absl::OkStatus();
  if (errno == ENOENT) return absl::NotFoundError(fmt::format("there is no image '{}'", name));
  return base::ErrnoStatus(errno, fmt::format("remove {}", RecordPath(name)));
}

absl::StatusOr<std::vector<LayerSizes>> ImageCatalog::Sizes(const CatalogImage& image) const {
  const std::set<std::string> own(image.layers.begin(), image.layers.end());
  std::map<std::string, std::vector<std::string>> users;
  ASSIGN_OR_RETURN(const std::vector<CatalogImage> images, List());
  absl::flat_hash_set<storage::ChunkId> others;
  for (const CatalogImage& other : images) {
    for (const std::string& id : other.layers) users[id].push_back(other.name);
    if (other.name == image.name) continue;
    for (const std::string& id : other.layers) {
      ASSIGN_OR_RETURN(const auto layer, LayerFile::Open(LayerPath(id), id));
      for (uint64_t i = 0; i < layer->chunks(); ++i) others.insert(layer->chunk(i).id);
    }
  }
  std::vector<LayerSizes> sizes;
  for (const std::string& id : image.layers) {
    ASSIGN_OR_RETURN(const auto layer, LayerFile::Open(LayerPath(id), id));
    LayerSizes& size = sizes.emplace_back();
    size.id = id;
    size.inodes = layer->inodes();
    size.metadata_bytes = layer->metadata().size();
    size.images = users[id];
    for (uint64_t i = 0; i < layer->chunks(); ++i) {
      const ChunkRef chunk = layer->chunk(i);
      if (chunk.length == 0) continue;
      ++size.chunks;
      size.content_bytes += chunk.length;
      size.local_bytes += chunks_->StoredBytes(chunk.id);
      if (others.contains(chunk.id)) size.shared_bytes += chunk.length;
    }
  }
  return sizes;
}

absl::StatusOr<std::vector<std::string>> ImageCatalog::LayerIds() const {
  std::vector<std::string> ids;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(options_.dir + "/layers", error)) {
    const std::string id = entry.path().stem();
    if (entry.path().extension() == kLayerSuffix && storage::ParseChunkId(id).ok())
      ids.push_back(id);
  }
  if (error) return base::ErrnoStatus(error.value(), fmt::format("list {}/layers", options_.dir));
  return ids;
}

absl::StatusOr<ImageCatalog::Collected> ImageCatalog::Collect() {
  ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock(LOCK_EX | LOCK_NB));
  std::set<std::string> named;
  ASSIGN_OR_RETURN(const std::vector<CatalogImage> images, List());
  for (const CatalogImage& image : images) named.insert(image.layers.begin(), image.layers.end());
  ASSIGN_OR_RETURN(const std::vector<std::string> ids, LayerIds());
  Collected collected;
  absl::flat_hash_set<storage::ChunkId> chunks;
  for (const std::string& id : ids) {
    if (!named.contains(id)) {
      // A mounted layer's file is locked by whoever serves it.
      base::UniqueFd fd(open(LayerPath(id).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
      if (fd.valid() && flock(fd.get(), LOCK_EX | LOCK_NB) == 0) {
        if (unlink(LayerPath(id).c_str()) != 0)
          return base::ErrnoStatus(errno, fmt::format("remove {}", LayerPath(id)));
        ++collected.layers;
        unlink((options_.dir + "/traces/" + id).c_str());
        base::FailPoint("collect.layer");
        continue;
      }
    }
    ASSIGN_OR_RETURN(const auto layer, LayerFile::Open(LayerPath(id), id));
    for (uint64_t i = 0; i < layer->chunks(); ++i) chunks.insert(layer->chunk(i).id);
  }
  base::FailPoint("collect.marked");
  ASSIGN_OR_RETURN(const auto removed, chunks_->Collect([&](const storage::ChunkId& id) {
    return chunks.contains(id);
  }));
  collected.chunks = removed.chunks;
  collected.chunk_bytes = removed.bytes;
  return collected;
}

}  // namespace reprise::sandboxd
