#include "clients/cli/image_verbs.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/status_macros.h"
#include "clients/cli/output.h"
#include "sandboxd/image/image_catalog.h"

namespace reprise::cli {
namespace {

using sandboxd::CatalogImage;
using sandboxd::ImageCatalog;
using sandboxd::LayerSizes;

constexpr size_t kIdDigitsShown = 12;

absl::StatusOr<std::unique_ptr<ImageCatalog>> OpenImages(const ImageOptions& options) {
  if (options.state.empty()) return UsageError("no state directory named: give --state DIR");
  const std::string dir = options.state + "/sandboxd/images";
  struct stat info {};
  if (stat(dir.c_str(), &info) != 0) {
    if (errno != ENOENT) return base::ErrnoStatus(errno, fmt::format("open {}", dir));
    return absl::NotFoundError(
        fmt::format("{} keeps no images in chunks: start its daemon with --image-chunks, then "
                    "`reprise image import`",
                    options.state));
  }
  return ImageCatalog::Open({dir, ""});
}

Json ToJson(const CatalogImage& image, const std::vector<LayerSizes>& sizes) {
  Json layers = Json::array();
  for (const LayerSizes& size : sizes) {
    layers.push_back({{"id", size.id},
                      {"inodes", size.inodes},
                      {"metadata_bytes", size.metadata_bytes},
                      {"content_bytes", size.content_bytes},
                      {"chunks", size.chunks},
                      {"shared_bytes", size.shared_bytes},
                      {"local_bytes", size.local_bytes},
                      {"images", size.images}});
  }
  return {{"name", image.name},
          {"digest", image.digest},
          {"content_bytes", image.content_bytes},
          {"layers", layers}};
}

}  // namespace

absl::StatusOr<int> ShowImage(const Context& context, const ImageOptions& options) {
  ASSIGN_OR_RETURN(const auto catalog, OpenImages(options));
  ASSIGN_OR_RETURN(const CatalogImage image, catalog->Get(options.name));
  ASSIGN_OR_RETURN(const std::vector<LayerSizes> sizes, catalog->Sizes(image));
  if (context.json) {
    PrintJson(ToJson(image, sizes));
    return kExitDone;
  }
  Print(fmt::format("{}  {}\n", image.name, image.digest));
  Table table({"LAYER", "FILES", "METADATA", "CONTENT", "SHARED", "ON DISK", "ALSO IN"});
  uint64_t content = 0, shared = 0, local = 0, metadata = 0;
  for (const LayerSizes& size : sizes) {
    std::string others;
    for (const std::string& name : size.images) {
      if (name != image.name) others += (others.empty() ? "" : ", ") + name;
    }
    table.Add({size.id.substr(0, kIdDigitsShown), Count(size.inodes),
               HumanBytes(size.metadata_bytes), HumanBytes(size.content_bytes),
               HumanBytes(size.shared_bytes), HumanBytes(size.local_bytes), others});
    metadata += size.metadata_bytes;
    content += size.content_bytes;
    shared += size.shared_bytes;
    local += size.local_bytes;
  }
  Print(table.Render());
  Print(fmt::format(
      "{} of content, {} of it shared with other images; {} on local disk; {} of "
      "metadata is all that a start needs\n",
      HumanBytes(content), HumanBytes(shared), HumanBytes(local), HumanBytes(metadata)));
  return kExitDone;
}

absl::StatusOr<int> CollectImages(const Context& context, const ImageOptions& options) {
  ASSIGN_OR_RETURN(const auto catalog, OpenImages(options));
  ASSIGN_OR_RETURN(const ImageCatalog::Collected collected, catalog->Collect());
  if (context.json) {
    PrintJson({{"layers", collected.layers},
               {"chunks", collected.chunks},
               {"chunk_bytes", collected.chunk_bytes}});
  } else {
    Print(fmt::format("removed {} layers and {} chunks: {}\n", collected.layers, collected.chunks,
                      HumanBytes(collected.chunk_bytes)));
  }
  return kExitDone;
}

}  // namespace reprise::cli
