// reprise-imagefs: serves the layers of one catalogue as files, a process of its own so that
// sandboxes read on while their daemon restarts. Returns when the files are there; the server goes
// on in the background until it is unmounted or gets SIGTERM.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "base/fd.h"
#include "base/format.h"
#include "base/log.h"
#include "sandboxd/image/layer_fuse.h"

namespace reprise::sandboxd {
namespace {

constexpr char kReady = 'r';

// In the background process. Whoever waits at `pipe` learns that it is ready, or that it is not
// from the pipe's end.
int Serve(const ImageCatalogOptions& catalog_options, const LayerFuseOptions& options, int pipe) {
  absl::StatusOr<std::unique_ptr<ImageCatalog>> catalog = ImageCatalog::Open(catalog_options);
  absl::Status status = catalog.status();
  if (status.ok()) {
    status = ServeLayers(catalog->get(), options, [pipe] {
      (void)base::WriteAll(pipe, std::string_view(&kReady, 1), "ready pipe");
      close(pipe);
    });
  }
  if (status.ok()) return 0;
  base::LogError(status.message().empty() ? "imagefs" : std::string(status.message()));
  return 1;
}

int Main(int argc, char** argv) {
  ImageCatalogOptions catalog;
  LayerFuseOptions options;
  std::string log;
  CLI::App app("serves image layers as files that are read on demand");
  app.add_option("--dir", catalog.dir, "catalogue of images")->required();
  app.add_option("--mount", options.mount_point, "where to serve")->required();
  app.add_option("--cold", catalog.cold, "cold tier: a directory or s3://BUCKET?region=...");
  app.add_option("--disk-bytes", catalog.disk_bytes_max, "bound of chunks on local disk");
  app.add_option("--memory-bytes", catalog.memory_bytes_max, "bound of chunks in memory");
  app.add_option("--log", log, "file that log lines are appended to")->required();
  CLI11_PARSE(app, argc, argv);

  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return 1;
  const pid_t child = fork();
  if (child < 0) return 1;
  if (child == 0) {
    close(ends[0]);
    setsid();
    const base::UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
    const base::UniqueFd out(open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    dup2(null.get(), STDIN_FILENO);
    dup2(null.get(), STDOUT_FILENO);
    dup2(out.valid() ? out.get() : null.get(), STDERR_FILENO);
    return Serve(catalog, options, ends[1]);
  }
  close(ends[1]);
  char answer = 0;
  const bool ready = read(ends[0], &answer, 1) == 1 && answer == kReady;
  if (!ready) fmt::print(stderr, "reprise-imagefs: not started; {} says why\n", log);
  return ready ? 0 : 1;
}

}  // namespace
}  // namespace reprise::sandboxd

int main(int argc, char** argv) { return reprise::sandboxd::Main(argc, argv); }
