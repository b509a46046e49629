// Images as users have them, imported and run: directory, OCI layout, OCI archive, docker save
// archive. What is not an image, is damaged or hostile is refused and leaves nothing in containerd.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <map>

#include "sandboxd/container/containerd_client.h"
#include "sandboxd/image/blob.h"
#include "sandboxd/image/image_config.h"
#include "tests/integration/container_support.h"
#include "tests/unit/sandboxd/tar_builder.h"

namespace reprise::sandboxd {
namespace {

using ::testing::HasSubstr;

using Files = std::map<std::string, std::string>;  // by path in the image

struct Layers {
  std::string base, top;  // tars; the second deletes a file of the first
  std::string config;
};

Layers MakeLayers(std::string_view architecture = HostArchitecture()) {
  Layers layers;
  layers.base = TarBuilder()
                    .Directory("bin/")
                    .File("bin/busybox", *base::ReadFile("/bin/busybox"), 0755)
                    .HardLink("bin/sh", "bin/busybox")
                    .HardLink("bin/cat", "bin/busybox")
                    .File("gone", "x")
                    .Build();
  layers.top = TarBuilder().File(".wh.gone", "").File("added", "from the second layer\n").Build();
  layers.config = fmt::format(
      R"({{"architecture":"{}","os":"linux","config":{{"Env":["COLOUR=blue"],"User":"1234:1234"}},)"
      R"("rootfs":{{"type":"layers","diff_ids":["{}","{}"]}}}})",
      architecture, Sha256Digest(layers.base), Sha256Digest(layers.top));
  return layers;
}

std::string BlobPath(const std::string& blob) {
  return "blobs/sha256/" + Sha256Digest(blob).substr(7);
}

Files OciLayout(const Layers& layers) {
  auto descriptor = [](const std::string& type, const std::string& blob) {
    return fmt::format(R"({{"mediaType":"{}","digest":"{}","size":{}}})", type, Sha256Digest(blob),
                       blob.size());
  };
  const std::string layer_type = "application/vnd.oci.image.layer.v1.tar";
  const std::string manifest =
      fmt::format(R"({{"schemaVersion":2,"config":{},"layers":[{},{}]}})",
                  descriptor("application/vnd.oci.image.config.v1+json", layers.config),
                  descriptor(layer_type, layers.base), descriptor(layer_type, layers.top));
  Files files = {{"oci-layout", R"({"imageLayoutVersion":"1.0.0"})"},
                 {"index.json",
                  fmt::format(R"({{"schemaVersion":2,"manifests":[{}]}})",
                              descriptor("application/vnd.oci.image.manifest.v1+json", manifest))}};
  for (const std::string& blob : {layers.base, layers.top, layers.config, manifest})
    files[BlobPath(blob)] = blob;
  return files;
}

// As `docker save` wrote them before OCI layouts.
Files DockerSave(const Layers& layers) {
  return {
      {"manifest.json",
       R"([{"Config":"config.json","RepoTags":["a:b"],"Layers":["1/layer.tar","2/layer.tar"]}])"},
      {"config.json", layers.config},
      {"1/layer.tar", layers.base},
      {"2/layer.tar", layers.top}};
}

std::string Tar(const Files& files) {
  TarBuilder tar;
  for (const auto& [path, content] : files) tar.File(path, content);
  return tar.Build();
}

class ContainerImageTest : public ContainerTest {
 protected:
  std::string Archive(const std::string& content) {
    const std::string path = fmt::format("{}/image-{}.tar", scratch_.path(), next_file_++);
    EXPECT_TRUE(base::WriteFileAtomic(path, content).ok());
    return path;
  }
  std::string Directory(const Files& files) {
    const std::string path = fmt::format("{}/image-{}", scratch_.path(), next_file_++);
    for (const auto& [name, content] : files) {
      std::filesystem::create_directories(std::filesystem::path(path + "/" + name).parent_path());
      EXPECT_TRUE(base::WriteFileAtomic(path + "/" + name, content).ok());
    }
    return path;
  }
  // Imports what MakeLayers made, runs it, removes it.
  void ImportAndRun(const std::string& source) {
    absl::StatusOr<sandbox::Image> image = tier_->ImportImage("from/test:v1", source);
    ASSERT_TRUE(image.ok()) << image.status();
    EXPECT_EQ(image->layers(), 2u);
    absl::StatusOr<std::vector<sandbox::Image>> images = tier_->ListImages();
    ASSERT_TRUE(images.ok());
    ASSERT_EQ(images->size(), 2u);
    EXPECT_EQ((*images)[1].name(), "from/test:v1");
    EXPECT_EQ((*images)[1].digest(), image->digest());
    const TestSandbox box = Create([](auto& spec) { spec.set_image("from/test:v1"); });
    const Done done =
        Run(box,
            "cat /added; [ -e /gone ] || echo deleted; echo $COLOUR; cat /proc/self/status | "
            "while read name value; do [ $name = Uid: ] && echo $value; done");
    EXPECT_THAT(done.out, HasSubstr("from the second layer\ndeleted\nblue\n1234"))
        << done.err << done.result.ShortDebugString();
    // An image that a sandbox uses can go; what the sandbox needs of it stays until that goes.
    ASSERT_TRUE(tier_->RemoveImage("from/test:v1").ok());
    EXPECT_EQ(Run(box, "cat /added").out, "from the second layer\n");
    EXPECT_TRUE(absl::IsNotFound(tier_->RemoveImage("from/test:v1")));
  }
  std::string Refusal(const std::string& source, absl::StatusCode code) {
    const absl::Status status = tier_->ImportImage("bad", source).status();
    EXPECT_EQ(status.code(), code) << status;
    return std::string(status.message());
  }

  ContainerdClient client_{Address(), "reprise"};
  int next_file_ = 0;
};

TEST_F(ContainerImageTest, RunsAnOciArchive) {
  ImportAndRun(Archive(Tar(OciLayout(MakeLayers()))));
}

TEST_F(ContainerImageTest, RunsAnOciLayoutDirectory) {
  ImportAndRun(Directory(OciLayout(MakeLayers())));
}

TEST_F(ContainerImageTest, RunsADockerSaveArchive) {
  ImportAndRun(Archive(Tar(DockerSave(MakeLayers()))));
}

TEST_F(ContainerImageTest, TheSameDirectoryIsTheSameImage) {
  const absl::StatusOr<sandbox::Image> first = tier_->ImportImage("one", BusyboxRoot()),
                                       second = tier_->ImportImage("two", BusyboxRoot());
  ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
  EXPECT_EQ(first->digest(), second->digest());
  EXPECT_EQ(first->layers(), 1u);
  EXPECT_GT(first->size_bytes(), 0u);
  for (const char* const name : {"one", "two"}) EXPECT_TRUE(tier_->RemoveImage(name).ok());
}

TEST_F(ContainerImageTest, RefusedImportsLeaveNothing) {
  const std::vector<std::string> blobs = client_.ListBlobs().value(),
                                 snapshots = client_.ListSnapshots().value();
  const Layers layers = MakeLayers();
  const std::string whole = Tar(OciLayout(layers));
  Refusal(Archive(whole.substr(0, whole.size() / 2)), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Refusal(Archive(Tar({{"../escaped", "x"}})), absl::StatusCode::kInvalidArgument),
              HasSubstr("../escaped"));
  EXPECT_THAT(Refusal(Archive(Tar({{"readme", "x"}})), absl::StatusCode::kInvalidArgument),
              HasSubstr("not an image"));
  Refusal("relative/path", absl::StatusCode::kInvalidArgument);
  Refusal("/no/such/path", absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::IsInvalidArgument(tier_->ImportImage("../bad", BusyboxRoot()).status()));

  // A blob that is not there, one whose content has another digest, one that another layer claims.
  Files files = OciLayout(layers);
  files.erase(BlobPath(layers.top));
  EXPECT_THAT(Refusal(Directory(files), absl::StatusCode::kNotFound),
              HasSubstr(Sha256Digest(layers.top)));
  files[BlobPath(layers.top)] = std::string(layers.top.size(), '\0');
  EXPECT_THAT(Refusal(Archive(Tar(files)), absl::StatusCode::kDataLoss),
              HasSubstr(Sha256Digest(layers.top)));
  files = DockerSave(layers);
  std::swap(files["1/layer.tar"], files["2/layer.tar"]);
  Refusal(Archive(Tar(files)), absl::StatusCode::kDataLoss);
  // Layers that reach out of the root, or hold what is no tar.
  for (const std::string& hostile :
       {TarBuilder().File("../../outside", "x").Build(), std::string("this is no archive")}) {
    Layers other = layers;
    other.config.replace(other.config.find(Sha256Digest(other.top)), 71, Sha256Digest(hostile));
    other.top = hostile;
    const absl::Status status = tier_->ImportImage("bad", Archive(Tar(OciLayout(other)))).status();
    EXPECT_FALSE(status.ok());
  }
  EXPECT_FALSE(std::filesystem::exists(scratch_.path() + "/outside"));
  // Of another machine.
  const char* const foreign = HostArchitecture() == "amd64" ? "arm64" : "amd64";
  EXPECT_THAT(
      Refusal(Archive(Tar(OciLayout(MakeLayers(foreign)))), absl::StatusCode::kInvalidArgument),
      HasSubstr(foreign));

  EXPECT_EQ(client_.ListBlobs().value(), blobs);
  EXPECT_EQ(client_.ListSnapshots().value(), snapshots);
  EXPECT_TRUE(std::filesystem::is_empty(scratch_.path() + "/state/container/import"));
}

}  // namespace
}  // namespace reprise::sandboxd
