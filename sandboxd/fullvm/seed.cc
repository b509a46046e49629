#include "sandboxd/fullvm/seed.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <string_view>

#include "base/fd.h"
#include "base/status_macros.h"

namespace reprise::sandboxd {
namespace {

constexpr uint64_t kProgramBytesMax = 64 << 20;
// In the first descriptor of the file system, which is at sector 16.
constexpr std::string_view kLabel = "cidata";
constexpr off_t kLabelAt = 16 * 2048 + 40;

// cloud-init runs it once, at the end of the first boot; the programs are static.
constexpr char kUserData[] = R"(#cloud-config
preserve_hostname: false
runcmd:
  - - sh
    - -c
    - |
      seed=$(mktemp -d) && mount -o ro LABEL=cidata "$seed" || exit 1
      mkdir -p /usr/local/sbin
      cp "$seed/reprise-guest" "$seed/reprise-agent" /usr/local/sbin/
      umount "$seed" && rmdir "$seed"
      chmod 755 /usr/local/sbin/reprise-guest /usr/local/sbin/reprise-agent
      setsid /usr/local/sbin/reprise-guest serve </dev/null >/dev/console 2>&1 &
)";

struct WriteFree {
  void operator()(archive* writer) const { archive_write_free(writer); }
};
struct EntryFree {
  void operator()(archive_entry* entry) const { archive_entry_free(entry); }
};

absl::Status Add(archive* writer, const char* name, std::string_view content, uint32_t mode) {
  const std::unique_ptr<archive_entry, EntryFree> entry(archive_entry_new());
  archive_entry_set_pathname(entry.get(), name);
  archive_entry_set_filetype(entry.get(), AE_IFREG);
  archive_entry_set_perm(entry.get(), mode);
  archive_entry_set_size(entry.get(), static_cast<la_int64_t>(content.size()));
  if (archive_write_header(writer, entry.get()) != ARCHIVE_OK ||
      archive_write_data(writer, content.data(), content.size()) !=
          static_cast<la_ssize_t>(content.size())) {
    return absl::InternalError(
        fmt::format("write {} of a seed: {}", name, archive_error_string(writer)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteSeed(const std::string& path, const Seed& seed) {
  ASSIGN_OR_RETURN(const std::string guest, base::ReadFile(seed.guest_program, kProgramBytesMax));
  ASSIGN_OR_RETURN(const std::string agent, base::ReadFile(seed.agent, kProgramBytesMax));
  const std::string meta =
      fmt::format("instance-id: {}\nlocal-hostname: {}\n", seed.instance_id, seed.hostname);
  const std::unique_ptr<archive, WriteFree> writer(archive_write_new());
  auto failed = [&] {
    return absl::InternalError(
        fmt::format("write {}: {}", path, archive_error_string(writer.get())));
  };
  if (archive_write_set_format_iso9660(writer.get()) != ARCHIVE_OK ||
      archive_write_set_options(writer.get(), "volume-id=cidata") != ARCHIVE_OK ||
      archive_write_open_filename(writer.get(), path.c_str()) != ARCHIVE_OK) {
    return failed();
  }
  RETURN_IF_ERROR(Add(writer.get(), "meta-data", meta, 0644));
  RETURN_IF_ERROR(Add(writer.get(), "user-data", kUserData, 0644));
  RETURN_IF_ERROR(Add(writer.get(), "reprise-guest", guest, 0755));
  RETURN_IF_ERROR(Add(writer.get(), "reprise-agent", agent, 0755));
  if (archive_write_close(writer.get()) != ARCHIVE_OK) return failed();
  // libarchive writes it in capitals, which older versions of cloud-init do not look for.
  const base::UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid() || pwrite(fd.get(), kLabel.data(), kLabel.size(), kLabelAt) !=
                         static_cast<ssize_t>(kLabel.size()))
    return base::ErrnoStatus(errno, "label " + path);
  return chmod(path.c_str(), 0644) == 0 ? absl::OkStatus()
                                        : base::ErrnoStatus(errno, "chmod " + path);
}

}  // namespace reprise::sandboxd
