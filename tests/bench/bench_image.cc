// Images: how fast an instance's file system is there, how fast images come in, what a cold image's
// first command moves, and what a full read costs, each beside its rival on the same machine.
//   bench_image [MIB]   size of the large image; default 2048
// The cold tier answers after 1 ms at 200 MB/s. Needs root, /dev/fuse and Linux 6.12.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "base/clock.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/log.h"
#include "sandboxd/image/image_catalog.h"
#include "sandboxd/image/layer_fuse.h"
#include "storage/cold_directory.h"

namespace reprise::sandboxd {
namespace {

namespace fs = std::filesystem;

constexpr int kInstances = 200;
constexpr double kColdBytesPerSecond = 200e6;
constexpr auto kColdLatency = std::chrono::milliseconds(1);
constexpr size_t kReadBytes = 1 << 20;

// A directory that answers as a distant store does. Requests wait side by side, bytes do not.
class ThrottledCold final : public storage::ColdTier {
 public:
  explicit ThrottledCold(std::shared_ptr<storage::ColdTier> below) : below_(std::move(below)) {}
  absl::StatusOr<std::string> Get(const std::string& key, size_t bytes_max) override {
    absl::StatusOr<std::string> object = below_->Get(key, bytes_max);
    if (object.ok()) Wait(object->size());
    return object;
  }
  absl::StatusOr<bool> Has(const std::string& key) override { return below_->Has(key); }
  absl::Status Put(const std::string& key, std::string_view object) override {
    return below_->Put(key, object);
  }
  absl::Status Remove(const std::string& key) override { return below_->Remove(key); }

 private:
  using Clock = std::chrono::steady_clock;
  void Wait(size_t bytes) {
    Clock::time_point until;
    {
      absl::MutexLock lock(&mutex_);
      free_at_ = std::max(free_at_, Clock::now()) +
                 std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(
                     static_cast<double>(bytes) / kColdBytesPerSecond));
      until = free_at_ + kColdLatency;
    }
    std::this_thread::sleep_until(until);
  }
  const std::shared_ptr<storage::ColdTier> below_;
  absl::Mutex mutex_;
  Clock::time_point free_at_;
};

void Check(const absl::Status& status) {
  if (status.ok()) return;
  fmt::print(stderr, "bench_image: {}\n", status.message());
  std::exit(1);
}
void CheckErrno(bool done, const char* what) {
  if (!done) Check(base::ErrnoStatus(errno, what));
}

// Half noise, half text: about what programs and libraries compress to.
void WriteFile(const std::string& path, size_t bytes, std::mt19937_64* random) {
  std::string data(bytes, 'r');
  for (size_t i = 0; i + 8 <= bytes; i += 16) {
    const uint64_t word = (*random)();
    std::copy_n(reinterpret_cast<const char*>(&word), 8, data.data() + i);
  }
  std::ofstream(path, std::ios::binary) << data;
}

// A tree of `mib`: a third of it in files of 4 to 60 KiB, the rest in files of 1 to 8 MiB.
uint64_t MakeTree(const std::string& root, uint64_t mib) {
  std::mt19937_64 random(mib);
  uint64_t bytes = 0;
  for (int directory = 0; bytes < mib << 20; ++directory) {
    const std::string path = fmt::format("{}/d{}/", root, directory);
    fs::create_directories(path);
    uint64_t small = 0, large = 0;
    for (int i = 0; i < 100; ++i) {
      const size_t size = 4096 + random() % 57'344;
      WriteFile(path + std::to_string(i), size, &random);
      small += size;
    }
    for (int i = 0; large < 2 * small; ++i) {
      const size_t size = (1 << 20) + random() % (7 << 20);
      WriteFile(path + "large" + std::to_string(i), size, &random);
      large += size;
    }
    bytes += small + large;
  }
  return bytes;
}

uint64_t ReadWhole(const std::string& path) {
  base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  CheckErrno(fd.valid(), path.c_str());
  static std::string buffer(kReadBytes, '\0');
  uint64_t bytes = 0;
  while (true) {
    const ssize_t count = read(fd.get(), buffer.data(), buffer.size());
    CheckErrno(count >= 0, path.c_str());
    if (count == 0) return bytes;
    bytes += static_cast<uint64_t>(count);
  }
}

// Reads every `step`-th file.
uint64_t ReadTree(const std::string& root, size_t step) {
  std::vector<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  uint64_t bytes = 0;
  for (size_t i = 0; i < files.size(); i += step) bytes += ReadWhole(files[i]);
  return bytes;
}

// A server of its own for one catalogue, with the throttled cold tier or none; gone with this.
class Server {
 public:
  Server(const std::string& dir, const std::string& cold) : files_(dir + "-files") {
    fs::create_directories(files_);
    int ends[2];
    CheckErrno(pipe(ends) == 0, "pipe");
    pid_ = fork();
    if (pid_ == 0) {
      close(ends[0]);
      std::shared_ptr<storage::ColdTier> tier;
      if (!cold.empty()) tier = std::make_shared<ThrottledCold>(*storage::OpenColdDirectory(cold));
      auto catalog = ImageCatalog::OpenWith({dir, ""}, tier);
      Check(catalog.status());
      Check(ServeLayers(catalog->get(), {files_}, [&] { (void)!write(ends[1], "r", 1); }));
      const storage::ChunkCounters& counters = (*catalog)->chunks()->counters();
      std::ofstream(dir + "-moved") << counters.cold_bytes;
      std::_Exit(0);
    }
    close(ends[1]);
    char ready = 0;
    CheckErrno(read(ends[0], &ready, 1) == 1, "start the server");
    close(ends[0]);
  }
  ~Server() {
    for (const std::string& mounted : mounts_) umount2(mounted.c_str(), MNT_DETACH);
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
    umount2(files_.c_str(), MNT_DETACH);
  }
  std::string Mount(const std::string& layer) {
    const std::string target = fmt::format("{}-mount{}", files_, mounts_.size());
    fs::create_directories(target);
    CheckErrno(mount((files_ + "/" + layer).c_str(), target.c_str(), "erofs", MS_RDONLY | MS_NODEV,
                     "directio") == 0,
               "mount EROFS on a file (Linux 6.12)");
    mounts_.push_back(target);
    return target;
  }
  const std::string& files() const { return files_; }

 private:
  const std::string files_;
  pid_t pid_ = -1;
  std::vector<std::string> mounts_;
};

double Percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

// From nothing but the served file to a writable root: EROFS mount and overlay, in milliseconds.
void BenchReady(const char* name, const std::string& scratch, const Server& server,
                const std::string& layer) {
  const std::string lower = scratch + "/lower", merged = scratch + "/merged";
  std::vector<double> fresh, shared;
  for (const char* part : {"/lower", "/merged"}) fs::create_directories(scratch + part);
  for (int i = 0; i < kInstances; ++i) {
    const std::string box = fmt::format("{}/box{}", scratch, i);
    fs::create_directories(box + "/upper");
    fs::create_directories(box + "/work");
    const std::string options =
        fmt::format("index=off,lowerdir={},upperdir={}/upper,workdir={}/work", lower, box, box);
    const std::string file = server.files() + "/" + layer;
    const base::Stopwatch whole;
    CheckErrno(mount(file.c_str(), lower.c_str(), "erofs", MS_RDONLY, "directio") == 0, "mount");
    const base::Stopwatch overlay;
    CheckErrno(mount("overlay", merged.c_str(), "overlay", 0, options.c_str()) == 0, "overlay");
    fresh.push_back(static_cast<double>(whole.ElapsedMicros()) / 1000);
    shared.push_back(static_cast<double>(overlay.ElapsedMicros()) / 1000);
    umount2(merged.c_str(), 0);
    umount2(lower.c_str(), 0);
  }
  fmt::print(
      "instance ready, {:<9} p50 {:.3f} ms  p99 {:.3f} ms   (layer already mounted: p50 {:.3f} ms)"
      "   bar: p50 <= 0.5 ms\n",
      name, Percentile(fresh, 0.5), Percentile(fresh, 0.99), Percentile(shared, 0.5));
}

// Seconds of a shell command; negative when it is not there or fails.
double ShellSeconds(const std::string& command) {
  const base::Stopwatch watch;
  const int code = std::system(("(" + command + ") >/dev/null 2>&1").c_str());
  return code == 0 ? static_cast<double>(watch.ElapsedMicros()) / 1e6 : -1;
}

void Line(const std::string& what, uint64_t bytes, double seconds) {
  if (seconds < 0) return fmt::print("{:<44} not here\n", what);
  fmt::print("{:<44} {:8.1f} MB/s  ({:.2f} s)\n", what, static_cast<double>(bytes) / 1e6 / seconds,
             seconds);
}

double ImportSeconds(const std::string& dir, const std::string& source, std::string* layer) {
  auto catalog = ImageCatalog::OpenWith({dir, ""}, nullptr);
  Check(catalog.status());
  const base::Stopwatch watch;
  auto image = (*catalog)->Import("image", source);
  Check(image.status());
  *layer = image->layers.back();
  return static_cast<double>(watch.ElapsedMicros()) / 1e6;
}

void BenchImport(const std::string& scratch, const std::string& tree, uint64_t bytes,
                 std::string* layer) {
  Line("import a directory, durable", bytes, ImportSeconds(scratch + "/small", tree, layer));
  const std::string image = scratch + "/rival.erofs";
  Line("mkfs.erofs, uncompressed", bytes, ShellSeconds("mkfs.erofs " + image + " " + tree));
  fs::remove(image);
  Line("mkfs.erofs, uncompressed, synced", bytes,
       ShellSeconds(fmt::format("mkfs.erofs {0} {1} && sync {0}", image, tree)));
  const std::string oci = scratch + "/oci";
  if (ShellSeconds(
          fmt::format("tar -C {1} -cf {0}.tar . && umoci init --layout {0} && "
                      "umoci new --image {0}:t && umoci raw add-layer --image {0}:t {0}.tar",
                      oci, tree)) < 0) {
    return fmt::print("umoci: not here\n");
  }
  std::string unused;
  Line("import an OCI layout (gzip), durable", bytes,
       ImportSeconds(scratch + "/oci-c", oci, &unused));
  Line("umoci unpack of the same", bytes,
       ShellSeconds(fmt::format("umoci unpack --image {}:t {}/unpacked", oci, scratch)));
}

void BenchCold(const std::string& scratch, const std::string& tree, uint64_t bytes) {
  const std::string cold = scratch + "/cold", dir = scratch + "/node";
  std::string layer;
  {
    auto catalog = ImageCatalog::Open({scratch + "/importer", cold});
    Check(catalog.status());
    auto image = (*catalog)->Import("image", tree);
    Check(image.status());
    layer = image->layers[0];
  }
  uint64_t stored = 0;
  std::vector<std::string> keys;
  for (const auto& entry : fs::recursive_directory_iterator(cold)) {
    if (!entry.is_regular_file()) continue;
    stored += entry.file_size();
    keys.push_back(entry.path().string().substr(cold.size() + 1));
  }
  ThrottledCold throttled(*storage::OpenColdDirectory(cold));
  {
    auto catalog = ImageCatalog::OpenWith(
        {dir, ""}, std::make_shared<ThrottledCold>(*storage::OpenColdDirectory(cold)));
    Check(catalog.status());
    Check((*catalog)->Get("image").status());
  }
  const uint64_t metadata = fs::file_size(dir + "/layers/" + layer + ".layer");
  double seconds = 0;
  uint64_t read = 0;
  {
    Server server(dir, cold);
    const base::Stopwatch watch;
    read = ReadTree(server.Mount(layer), 20);
    seconds = static_cast<double>(watch.ElapsedMicros()) / 1e6;
  }
  uint64_t moved = 0;
  std::ifstream(dir + "-moved") >> moved;
  moved += metadata;
  const double share = 100.0 * static_cast<double>(moved) / static_cast<double>(stored);
  fmt::print(
      "cold image, {:.1f} % of it read: moved {:.1f} MB of {:.1f} MB = {:.1f} %, {:.2f} s"
      "   bar: 5 % read moves <= 8 %\n",
      100.0 * static_cast<double>(read) / static_cast<double>(bytes),
      static_cast<double>(moved) / 1e6, static_cast<double>(stored) / 1e6, share, seconds);
  fs::create_directories(scratch + "/copy");
  const base::Stopwatch watch;
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (size_t i = next++; i < keys.size(); i = next++) {
        const absl::StatusOr<std::string> object = throttled.Get(keys[i], kLayerFileBytesMax);
        Check(object.status());
        std::ofstream(fmt::format("{}/copy/{}", scratch, i), std::ios::binary) << *object;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  fmt::print("the same, after a full copy:  moved {:.1f} MB, {:.2f} s before the first read\n",
             static_cast<double>(stored) / 1e6, static_cast<double>(watch.ElapsedMicros()) / 1e6);
}

void BenchRead(const std::string& tree, Server* server, const std::string& layer) {
  const std::string mounted = server->Mount(layer);
  auto seconds = [](const std::string& root, uint64_t* bytes) {
    const base::Stopwatch watch;
    *bytes = ReadTree(root, 1);
    return static_cast<double>(watch.ElapsedMicros()) / 1e6;
  };
  uint64_t bytes = 0;
  const double first = seconds(mounted, &bytes);
  seconds(tree, &bytes);
  double ours = 1e9, plain = 1e9;
  for (int i = 0; i < 5; ++i) {
    ours = std::min(ours, seconds(mounted, &bytes));
    plain = std::min(plain, seconds(tree, &bytes));
  }
  Line("full read, chunks on local disk, not mounted yet", bytes, first);
  Line("full read, warm", bytes, ours);
  Line("full read of the plain directory, warm", bytes, plain);
  fmt::print("warm / plain: {:.2f}   bar: <= 1.3\n", ours / plain);
}

int Main(int argc, char** argv) {
  if (geteuid() != 0 || access("/dev/fuse", R_OK | W_OK) != 0) {
    fmt::print("bench_image: skipped: it needs root and /dev/fuse\n");
    return 0;
  }
  base::SetLogLevel(base::LogLevel::kError);
  const uint64_t large_mib = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 2048;
  const base::ScratchDir scratch("reprise-bench-image");
  const std::string small = scratch.path() + "/tree100", large = scratch.path() + "/tree-large";
  const uint64_t small_bytes = MakeTree(small, 100);
  std::string layer, large_layer;
  BenchImport(scratch.path(), small, small_bytes, &layer);
  {
    Server server(scratch.path() + "/small", "");
    BenchReady("100 MB", scratch.path(), server, layer);
    BenchRead(small, &server, layer);
  }
  const uint64_t large_bytes = MakeTree(large, large_mib);
  Line(fmt::format("import a directory of {} MiB, durable", large_bytes >> 20), large_bytes,
       ImportSeconds(scratch.path() + "/large", large, &large_layer));
  {
    Server server(scratch.path() + "/large", "");
    BenchReady(fmt::format("{} MB", large_bytes / 1'000'000).c_str(), scratch.path(), server,
               large_layer);
  }
  BenchCold(scratch.path(), large, large_bytes);
  return 0;
}

}  // namespace
}  // namespace reprise::sandboxd

int main(int argc, char** argv) { return reprise::sandboxd::Main(argc, argv); }
