#include "sandboxd/microvm/initramfs.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <vector>

#include "base/fd.h"
#include "base/format.h"
#include "base/status_macros.h"

namespace reprise::sandboxd::microvm {
namespace {

constexpr uint64_t kFileBytesMax = 64 << 20;
// What a guest needs of Debian's cloud kernel: each after those that it depends on.
std::vector<std::string> Modules(Board board, bool vsock) {
  std::vector<std::string> names = {"virtio_ring", "virtio"};
  if (board == Board::kQ35) {
    names.insert(names.end(), {"virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"});
  } else {
    names.push_back("virtio_mmio");
  }
  names.insert(names.end(), {"virtio_blk", "virtio_console", "libcrc32c", "erofs", "overlay"});
  if (vsock) {
    names.insert(names.end(),
                 {"vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"});
  }
  return names;
}

// cpio in the "newc" format: fixed fields of hexadecimal digits, names and contents padded to 4.
class Archive {
 public:
  void Add(const std::string& name, uint32_t mode, std::string_view content) {
    out_ += fmt::format(
        "070701{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
        ++inode_, mode, 0, 0, 1, 0, content.size(), 0, 0, 0, 0, name.size() + 1, 0);
    out_ += name;
    out_ += '\0';
    Pad();
    out_ += content;
    Pad();
  }
  std::string Take() {
    Add("TRAILER!!!", 0, "");
    return std::move(out_);
  }

 private:
  void Pad() { out_.append((4 - out_.size() % 4) % 4, '\0'); }
  std::string out_;
  uint32_t inode_ = 0;
};

std::string ModulePath(const GuestFiles& files, const std::string& name) {
  return fmt::format("{}/{}.ko", files.modules_dir, name);
}

}  // namespace

absl::StatusOr<GuestFiles> FindGuestFiles(const std::string& guest_dir,
                                          const std::string& helper_dir, Board board, bool vsock) {
  GuestFiles files{guest_dir + "/vmlinux", guest_dir + "/modules", helper_dir + "/reprise-guest",
                   helper_dir + "/reprise-agent"};
  for (const std::string& program : {files.guest_init, files.agent}) {
    if (access(program.c_str(), R_OK) != 0) {
      return absl::NotFoundError(
          fmt::format("{} is missing: build it, or name its directory", program));
    }
  }
  std::vector<std::string> wanted = {files.kernel};
  for (const std::string& name : Modules(board, vsock)) wanted.push_back(ModulePath(files, name));
  for (const std::string& path : wanted) {
    if (access(path.c_str(), R_OK) != 0) {
      return absl::NotFoundError(
          fmt::format("the guest kernel's {} is missing: run 'scripts/guest-kernel'", path));
    }
  }
  return files;
}

absl::Status WriteInitramfs(const GuestFiles& files, Board board, bool vsock,
                            const std::string& path) {
  Archive archive;
  std::string order;
  for (const char* const directory : {"modules", "dev", "proc", "sys"})
    archive.Add(directory, S_IFDIR | 0755, "");
  for (const std::string& name : Modules(board, vsock)) {
    ASSIGN_OR_RETURN(const std::string module,
                     base::ReadFile(ModulePath(files, name), kFileBytesMax));
    archive.Add(fmt::format("modules/{}.ko", name), S_IFREG | 0600, module);
    order += fmt::format("{}.ko\n", name);
  }
  archive.Add("modules/order", S_IFREG | 0600, order);
  ASSIGN_OR_RETURN(const std::string init, base::ReadFile(files.guest_init, kFileBytesMax));
  archive.Add("init", S_IFREG | 0700, init);
  ASSIGN_OR_RETURN(const std::string agent, base::ReadFile(files.agent, kFileBytesMax));
  archive.Add("reprise-agent", S_IFREG | 0755, agent);
  RETURN_IF_ERROR(base::WriteFileAtomic(path, archive.Take()));
  return chmod(path.c_str(), 0644) == 0 ? absl::OkStatus()
                                        : base::ErrnoStatus(errno, "chmod " + path);
}

}  // namespace reprise::sandboxd::microvm
