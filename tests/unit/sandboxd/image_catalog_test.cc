// The catalogue without mounts: what is refused, what is shared, what a kill at any point leaves,
// and what collection may take.
#include "sandboxd/image/image_catalog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "base/failpoint.h"
#include "base/fd.h"
#include "tests/unit/sandboxd/image_support.h"
#include "tests/unit/sandboxd/tar_builder.h"

namespace reprise::sandboxd {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class ImageCatalogTest : public ImageTest {
 protected:
  // Whether every chunk of the image can be read.
  static ::testing::AssertionResult Whole(ImageCatalog* catalog, const CatalogImage& image) {
    for (const std::string& id : image.layers) {
      auto layer = LayerFile::Open(catalog->LayerPath(id), id);
      if (!layer.ok()) return ::testing::AssertionFailure() << layer.status();
      for (uint64_t i = 0; i < (*layer)->chunks(); ++i) {
        const ChunkRef chunk = (*layer)->chunk(i);
        if (chunk.length == 0) continue;
        auto content = catalog->chunks()->Get(chunk.id);
        if (!content.ok()) return ::testing::AssertionFailure() << content.status();
      }
    }
    return ::testing::AssertionSuccess();
  }
  // Runs `work` in a process that dies at `point`; false when it came through.
  template <typename Work>
  static bool DiesAt(const std::string& point, const Work& work) {
    const pid_t child = fork();
    if (child == 0) {
      if (!base::ArmFailPoint(point).ok()) _exit(1);
      work();
      _exit(0);
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) return true;
    EXPECT_EQ(WEXITSTATUS(status), 0) << point;
    return false;
  }
  absl::Status BuildTar(const std::string& tar) {
    WriteText(Dir("layer.tar"), tar);
    auto catalog = OpenCatalog();
    auto writer = *catalog->chunks()->Begin();
    LayerTree tree;
    ChunkPacker packer(writer.get());
    return BuildFromTar(Dir("layer.tar"), "layer", &packer, &tree);
  }
};

TEST_F(ImageCatalogTest, TheSameTreeGivesTheSameLayer) {
  MakeRichTree(Dir("tree"));
  auto catalog = OpenCatalog();
  auto one = catalog->Import("one", Dir("tree"));
  auto two = catalog->Import("two", Dir("tree"));
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(one->layers, two->layers);
  EXPECT_EQ(one->digest, two->digest);
  EXPECT_TRUE(Whole(catalog.get(), *one));
  auto sizes = catalog->Sizes(*one);
  ASSERT_TRUE(sizes.ok()) << sizes.status();
  EXPECT_EQ(sizes->at(0).shared_bytes, sizes->at(0).content_bytes);
  EXPECT_THAT(sizes->at(0).images, testing::ElementsAre("one", "two"));
}

TEST_F(ImageCatalogTest, ImagesShareTheChunksOfFilesThatTheyShare) {
  const std::string big(2'000'000, 'b');
  std::string noise = big;
  for (size_t i = 0; i < noise.size(); ++i) noise[i] = static_cast<char>((i * 2654435761u) >> 13);
  WriteText(Dir("a/big"), noise);
  WriteText(Dir("a/other"), "a");
  WriteText(Dir("b/elsewhere/renamed"), noise);
  WriteText(Dir("b/more"), std::string(700'000, 'm'));
  auto catalog = OpenCatalog();
  ASSERT_TRUE(catalog->Import("a", Dir("a")).ok());
  auto b = catalog->Import("b", Dir("b"));
  ASSERT_TRUE(b.ok()) << b.status();
  EXPECT_EQ(catalog->Sizes(*b)->at(0).shared_bytes, noise.size());
}

TEST_F(ImageCatalogTest, OneNewSmallFileChangesFewSharedChunks) {
  for (int i = 0; i < 2000; ++i) {
    std::string text(3000, '\0');
    for (size_t j = 0; j < text.size(); ++j) text[j] = static_cast<char>((i * 7919 + j * j) >> 3);
    WriteText(Dir("tree/" + std::to_string(10'000 + i)), text);
  }
  auto catalog = OpenCatalog();
  ASSERT_TRUE(catalog->Import("before", Dir("tree")).ok());
  WriteText(Dir("tree/10500-new"), std::string(5000, 'n'));
  auto after = catalog->Import("after", Dir("tree"));
  const LayerSizes sizes = catalog->Sizes(*after)->at(0);
  EXPECT_GT(sizes.shared_bytes, sizes.content_bytes * 9 / 10);
}

TEST_F(ImageCatalogTest, AnotherNodeStartsFromTheColdTier) {
  MakeRichTree(Dir("tree"));
  options_.cold = Dir("cold");
  auto image = OpenCatalog()->Import("image", Dir("tree"));
  ASSERT_TRUE(image.ok()) << image.status();
  options_.dir = Dir("another");
  auto other = OpenCatalog();
  auto found = other->Get("image");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->layers, image->layers);
  EXPECT_TRUE(Whole(other.get(), *found));
  EXPECT_TRUE(absl::IsNotFound(other->Get("nothing").status()));
}

TEST_F(ImageCatalogTest, AKilledImportLeavesNothingThatCollectionDoesNotTake) {
  WriteText(Dir("old/file"), std::string(400'000, 'o'));
  MakeRichTree(Dir("tree"));
  const auto old = OpenCatalog()->Import("old", Dir("old"));
  ASSERT_TRUE(old.ok());
  int died = 0;
  for (const std::string point : {"image.built:1", "objects.synced:1", "objects.renamed:1",
                                  "objects.renamed:5", "image.chunks:1", "image.layer:1"}) {
    died += DiesAt(point, [&] { (void)OpenCatalog()->Import("new", Dir("tree")); }) ? 1 : 0;
    auto catalog = OpenCatalog();
    EXPECT_TRUE(absl::IsNotFound(catalog->Get("new").status())) << point;
    EXPECT_TRUE(Whole(catalog.get(), *catalog->Get("old"))) << point;
    auto collected = catalog->Collect();
    ASSERT_TRUE(collected.ok()) << point << collected.status();
    EXPECT_EQ(collected->layers, point == "image.layer:1" ? 1u : 0u) << point;
    EXPECT_TRUE(Whole(catalog.get(), *old)) << point;
    auto again = catalog->Collect();
    EXPECT_EQ(again->layers + again->chunks, 0u) << point;
  }
  EXPECT_EQ(died, 6);
  auto catalog = OpenCatalog();
  auto image = catalog->Import("new", Dir("tree"));
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_TRUE(Whole(catalog.get(), *image));
}

TEST_F(ImageCatalogTest, AKilledCollectionTakesNothingThatIsNamed) {
  MakeRichTree(Dir("tree"));
  WriteText(Dir("shared/sizes/262145"), ReadText(Dir("tree/sizes/262145")));
  int died = 0;
  for (const std::string point :
       {"collect.layer:1", "collect.marked:1", "collect.chunk:1", "collect.chunk:4"}) {
    auto keep = OpenCatalog()->Import("keep", Dir("shared"));
    ASSERT_TRUE(keep.ok());
    ASSERT_TRUE(OpenCatalog()->Import("go", Dir("tree")).ok());
    ASSERT_TRUE(OpenCatalog()->Remove("go").ok());
    died += DiesAt(point, [&] { (void)OpenCatalog()->Collect(); }) ? 1 : 0;
    auto catalog = OpenCatalog();
    EXPECT_TRUE(Whole(catalog.get(), *keep)) << point;
    ASSERT_TRUE(catalog->Collect().ok());
    EXPECT_TRUE(Whole(catalog.get(), *keep)) << point;
    // What was half collected can come back.
    auto back = catalog->Import("go", Dir("tree"));
    ASSERT_TRUE(back.ok());
    EXPECT_TRUE(Whole(catalog.get(), *back)) << point;
  }
  EXPECT_EQ(died, 4);
}

TEST_F(ImageCatalogTest, HostileLayersAreRefusedWithTheEntryInTheError) {
  const std::pair<const char*, std::string> kHostile[] = {
      {"null", TarBuilder().Device("null").Build()},
      {"../up", TarBuilder().File("../up", "x").Build()},
      {"/abs", TarBuilder().File("/abs", "x").Build()},
      {"link/in", TarBuilder().SymLink("link", "/etc").File("link/in", "x").Build()},
      {"etc/shadow", TarBuilder().HardLink("hard", "../../etc/shadow").Build()},
      {"hard", TarBuilder().HardLink("hard", "missing").Build()},
      {"dev", TarBuilder().SymLink("dev", "/etc").Build()},
      {".wh...", TarBuilder().File(".wh...", "").Build()},
  };
  for (const auto& [name, tar] : kHostile) {
    const absl::Status status = BuildTar(tar);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name << " " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
    EXPECT_THAT(std::string(status.message()), testing::StartsWith("layer: "));
  }
  std::string whole = TarBuilder().File("a", std::string(5000, 'a')).File("b", "b").Build();
  EXPECT_TRUE(BuildTar(whole).ok());
  EXPECT_EQ(BuildTar(whole.substr(0, 3000)).code(), absl::StatusCode::kDataLoss);
}

TEST_F(ImageCatalogTest, ADamagedLayerFileIsNamed) {
  WriteText(Dir("tree/file"), "content");
  auto catalog = OpenCatalog();
  auto image = catalog->Import("image", Dir("tree"));
  std::string file = ReadText(catalog->LayerPath(image->layers[0]));
  file[file.size() / 2] ^= 1;
  WriteText(catalog->LayerPath(image->layers[0]), file);
  const absl::Status status =
      LayerFile::Open(catalog->LayerPath(image->layers[0]), image->layers[0]).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(catalog->LayerPath(image->layers[0])));
}

TEST(LayerTree, RefusesWhatLeadsOut) {
  LayerTree tree;
  LayerNode link;
  link.mode = S_IFLNK | 0777;
  link.target = "/etc";
  LayerNode file;
  file.mode = S_IFREG | 0644;
  ASSERT_TRUE(tree.Add("link", link).ok());
  for (const std::string& bad :
       {std::string("/etc/passwd"), std::string("../up"), std::string("a/../../up"),
        std::string("link/passwd"), std::string("zero\0byte", 9), std::string(256, 'n')}) {
    EXPECT_EQ(tree.Add(bad, file).status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_FALSE(tree.Link(bad, "link").ok()) << bad;
  }
  EXPECT_TRUE(absl::IsNotFound(tree.Link("new", "nothing")));
  EXPECT_FALSE(tree.Add("", file).ok());
}

TEST(LayerTree, DeletionsAndReplacements) {
  LayerTree tree;
  LayerNode file, directory;
  file.mode = S_IFREG | 0644;
  directory.mode = S_IFDIR | 0700;
  ASSERT_TRUE(tree.Whiteout("a/gone").ok());
  EXPECT_TRUE(IsWhiteout(tree.nodes()[*tree.Find("a/gone")]));
  ASSERT_TRUE(tree.Add("a/gone", directory).ok());
  EXPECT_TRUE(tree.nodes()[*tree.Find("a/gone")].opaque) << "what was below came back";
  ASSERT_TRUE(tree.Add("a/gone/in", file).ok());
  ASSERT_TRUE(tree.Whiteout("a/gone").ok());
  EXPECT_TRUE(tree.Find("a/gone/in").ok()) << "a layer cannot delete its own";
  ASSERT_TRUE(tree.Add("a/gone", file).ok());
  EXPECT_FALSE(tree.Find("a/gone/in").ok());
  ASSERT_TRUE(tree.Opaque("b").ok());
  EXPECT_TRUE(tree.nodes()[*tree.Find("b")].opaque);
}

TEST(LayerTree, KeepsNoAttributeThatMeansSomethingToTheHost) {
  for (const char* name : {"user.x", "security.capability"}) EXPECT_TRUE(KeepsXattr(name)) << name;
  for (const char* name :
       {"trusted.overlay.redirect", "trusted.overlay.opaque", "user.overlay.opaque",
        "security.selinux", "system.posix_acl_access", "user.", ""}) {
    EXPECT_FALSE(KeepsXattr(name)) << name;
  }
}

}  // namespace
}  // namespace reprise::sandboxd
