// Images from import to mounted file system: the kernel sees what was imported, layers stack and
// delete, what is lost is an error, the trace is fetched ahead, and servers may die.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/wait.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/unit/sandboxd/image_support.h"

namespace reprise::sandboxd {
namespace {

namespace fs = std::filesystem;

int Shell(const std::string& command) { return std::system((command + " >/dev/null 2>&1").c_str()); }

class ImageMountTest : public ImageTest {
 protected:
  void SetUp() override { NeedsMounts(); }
  CatalogImage Import(const std::string& name, const std::string& source) {
    auto image = OpenCatalog()->Import(name, source);
    EXPECT_TRUE(image.ok()) << image.status();
    return image.ok() ? *image : CatalogImage();
  }
  std::vector<std::string> Mount(const CatalogImage& image) {
    auto mounted = mounts_->Mount(image);
    EXPECT_TRUE(mounted.ok()) << mounted.status();
    return mounted.ok() ? *mounted : std::vector<std::string>();
  }
  // The chunk files of the catalogue.
  std::vector<std::string> ChunkFiles(const std::string& half) const {
    std::vector<std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(options_.dir + "/chunks/" + half)) {
      if (entry.is_regular_file() && entry.path().filename().string().size() == 64)
        files.push_back(entry.path());
    }
    return files;
  }
  // Ends the server the hard way.
  void KillServer() {
    for (const auto& entry : fs::directory_iterator("/proc")) {
      const std::string cmdline = base::ReadFile(entry.path().string() + "/cmdline").value_or("");
      if (cmdline.find("reprise-imagefs") == std::string::npos ||
          cmdline.find(options_.dir + '\0') == std::string::npos) {
        continue;
      }
      const int pid = std::stoi(entry.path().filename());
      ASSERT_EQ(kill(pid, SIGKILL), 0);
      while (fs::exists(entry.path()) &&
             !base::ReadFile(entry.path().string() + "/cmdline").value_or("").empty()) {
        std::this_thread::yield();
      }
    }
  }
};

TEST_F(ImageMountTest, TheKernelSeesWhatWasImported) {
  MakeRichTree(Dir("tree"));
  const CatalogImage image = Import("rich", Dir("tree"));
  const std::vector<std::string> mounted = Mount(image);
  ASSERT_EQ(mounted.size(), 1u);
  EXPECT_THAT(Describe(mounted[0]), testing::ContainerEq(Describe(Dir("tree"))));
}

TEST_F(ImageMountTest, FsckFindsTheImageSound) {
  if (Shell("fsck.erofs -V") != 0) GTEST_SKIP() << "no fsck.erofs here: apt-get install erofs-utils";
  MakeRichTree(Dir("tree"));
  auto file = mounts_->ImageFile(Import("rich", Dir("tree")).layers[0]);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(Shell("fsck.erofs --extract " + *file), 0);
}

TEST_F(ImageMountTest, ATarGivesTheSameLayerAsItsDirectory) {
  MakeRichTree(Dir("tree"));
  fs::remove(Dir("tree/odd/na me\nwith \xff bytes"));
  auto catalog = OpenCatalog();
  ASSERT_EQ(Shell(fmt::format("tar --sort=name --xattrs --sparse --format=pax -C {} -cf {} .",
                            Dir("tree"), Dir("layer.tar"))),
            0);
  storage::ChunkStore* store = catalog->chunks();
  auto writer = *store->Begin();
  LayerTree tree;
  ChunkPacker packer(writer.get());
  ASSERT_TRUE(BuildFromTar(Dir("layer.tar"), "layer", &packer, &tree).ok());
  auto chunks = packer.Finish();
  ASSERT_TRUE(chunks.ok());
  ASSERT_TRUE(writer->Commit().ok());
  auto metadata =
      WriteErofs(tree, chunks->size() * storage::kChunkBytesMax, storage::kChunkBytesMax);
  ASSERT_TRUE(metadata.ok());
  const std::string file = EncodeLayerFile(*metadata, *chunks);
  const std::string id = Sha256Digest(file).substr(7);
  WriteText(catalog->LayerPath(id), file);
  CatalogImage image;
  image.layers = {id};
  EXPECT_THAT(Describe(Mount(image)[0]), testing::ContainerEq(Describe(Dir("tree"))));
}

TEST_F(ImageMountTest, LayersStackAndDelete) {
  WriteText(Dir("base/keep"), "base");
  WriteText(Dir("base/gone"), "base");
  WriteText(Dir("base/hidden/below"), "base");
  WriteText(Dir("base/changed"), "base");
  const CatalogImage base = Import("base", Dir("base"));
  const std::string first = MountOverlay(Mount(base), "one");
  fs::remove(first + "/gone");
  fs::remove_all(first + "/hidden");
  WriteText(first + "/hidden/above", "new");
  WriteText(first + "/changed", "changed");
  WriteText(first + "/added", std::string(500'000, 'a'));
  auto packed = OpenCatalog()->PackDiff("snapshot", base, Dir("one/upper"));
  ASSERT_TRUE(packed.ok()) << packed.status();
  ASSERT_EQ(packed->layers.size(), 2u);
  EXPECT_EQ(packed->layers[0], base.layers[0]) << "the base is not packed again";
  const std::string second = MountOverlay(Mount(*packed), "two");
  EXPECT_THAT(Describe(second), testing::ContainerEq(Describe(first)));
  EXPECT_FALSE(fs::exists(second + "/gone"));
  EXPECT_FALSE(fs::exists(second + "/hidden/below"));
  EXPECT_EQ(ReadText(second + "/hidden/above"), "new");
  EXPECT_EQ(ReadText(second + "/keep"), "base");
}

TEST_F(ImageMountTest, ALostChunkIsAnErrorAndALineInTheLogAndNeverZeros) {
  WriteText(Dir("tree/good"), std::string(300'000, 'g'));
  std::string noise(300'000, '\0');
  for (size_t i = 0; i < noise.size(); ++i) noise[i] = static_cast<char>(i * i * 31 >> 5);
  WriteText(Dir("tree/zlost"), noise);
  const CatalogImage image = Import("lossy", Dir("tree"));
  // The chunk of the second file's start is the largest as stored.
  std::vector<std::string> files = ChunkFiles("kept");
  auto larger = [](const auto& a, const auto& b) { return fs::file_size(a) < fs::file_size(b); };
  fs::remove(*std::max_element(files.begin(), files.end(), larger));
  const std::string root = Mount(image)[0];
  EXPECT_EQ(ReadText(root + "/good"), std::string(300'000, 'g'));
  base::UniqueFd fd(open((root + "/zlost").c_str(), O_RDONLY));
  char buffer[4096];
  EXPECT_EQ(read(fd.get(), buffer, sizeof(buffer)), -1);
  EXPECT_EQ(errno, EIO);
  const std::string log = ReadText(options_.dir + "/imagefs.log");
  EXPECT_THAT(log, testing::ContainsRegex("layer " + image.layers[0] +
                                          " at offset [0-9]+: chunk [0-9a-f]+ is lost"));
}

TEST_F(ImageMountTest, FirstReadsAreTracedAndFetchedAtTheNextStart) {
  options_.cold = Dir("cold");
  ASSERT_TRUE(mounts_->Shutdown().ok());
  mounts_ = std::make_unique<ImageMounts>(
      ImageMountsOptions{options_, std::string(REPRISE_BIN_DIR) + "/reprise-imagefs"});
  for (int i = 0; i < 8; ++i) {
    std::string text(storage::kChunkBytesMax, static_cast<char>('a' + i));
    WriteText(Dir("tree/" + std::to_string(i)), text);
  }
  const CatalogImage image = Import("traced", Dir("tree"));
  for (const std::string& file : ChunkFiles("copies")) fs::remove(file);
  const std::string root = Mount(image)[0];
  for (int i : {6, 2}) EXPECT_EQ(ReadText(root + "/" + std::to_string(i))[0], 'a' + i);
  EXPECT_EQ(ChunkFiles("copies").size(), 2u) << "only what was read is fetched";
  ASSERT_TRUE(mounts_->Shutdown().ok());
  // The server saves its trace on the way out.
  const std::string trace = options_.dir + "/traces/" + image.layers[0];
  while (!fs::exists(trace)) std::this_thread::yield();
  EXPECT_EQ(ReadText(trace), std::string("\6\0\0\0\2\0\0\0", 8));
  for (const std::string& file : ChunkFiles("copies")) fs::remove(file);
  Mount(image);
  while (ChunkFiles("copies").size() < 2) std::this_thread::yield();
}

TEST_F(ImageMountTest, AServerThatWasKilledIsReplaced) {
  WriteText(Dir("tree/file"), std::string(300'000, 'f'));
  const CatalogImage image = Import("image", Dir("tree"));
  Mount(image);
  KillServer();
  EXPECT_EQ(ReadText(Mount(image)[0] + "/file"), std::string(300'000, 'f'));
}

TEST_F(ImageMountTest, MountedLayersAreNotCollected) {
  WriteText(Dir("tree/file"), std::string(300'000, 'f'));
  const CatalogImage image = Import("image", Dir("tree"));
  const std::string root = Mount(image)[0];
  auto catalog = OpenCatalog();
  ASSERT_TRUE(catalog->Remove("image").ok());
  auto collected = catalog->Collect();
  ASSERT_TRUE(collected.ok()) << collected.status();
  EXPECT_EQ(collected->layers, 0u);
  EXPECT_EQ(ReadText(root + "/file"), std::string(300'000, 'f'));
  ASSERT_TRUE(mounts_->UnmountUnused(*catalog->List()).ok());
  // The server closes the file a moment after the last mount is gone.
  do {
    collected = catalog->Collect();
    ASSERT_TRUE(collected.ok()) << collected.status();
  } while (collected->layers == 0);
  EXPECT_GT(collected->chunks, 0u);
}

}  // namespace
}  // namespace reprise::sandboxd
