#include "sandboxd/function/root.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandboxd/agent/os.h"

namespace reprise::sandboxd::function {
namespace {

// Programs and libraries of the host; links stay links (merged /usr), directories are bound.
constexpr const char* kHostTrees[] = {"/bin",    "/lib",  "/lib32", "/lib64",
                                      "/libx32", "/sbin", "/usr"};
constexpr const char* kDevices[] = {"/dev/full", "/dev/null", "/dev/random", "/dev/urandom",
                                    "/dev/zero"};
constexpr char kOwnTerminal[] = "/dev/tty";
constexpr size_t kEtcFileBytesMax = 8 << 20;

struct TextFile {
  const char* path;
  const char* text;
};
constexpr TextFile kEtc[] = {
    {"/etc/passwd",
     "root:x:0:0:root:/root:/usr/sbin/nologin\nsandbox:x:1000:1000:sandbox:/work:/bin/sh\n"
     "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"},
    {"/etc/group", "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n"},
    {"/etc/hosts", "127.0.0.1 localhost function\n::1 localhost\n"},
    {"/etc/hostname", "function\n"},
    {"/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"},
    {"/etc/host.conf", "multi on\n"},
};
// Copied from the host where they are: what the dynamic loader needs.
constexpr const char* kEtcCopies[] = {"/etc/ld.so.cache", "/etc/ld.so.conf"};
// Bound where they are: alternatives are links into /usr, the certificates are public.
constexpr const char* kEtcTrees[] = {"/etc/alternatives", "/etc/ssl/certs"};

class RootBuilder {
 public:
  RootBuilder(std::string root, std::string* why) : root_(std::move(root)), why_(why) {}

  bool Build() {
    return Check(unshare(CLONE_NEWNS) == 0, "enter a mount namespace", "/") &&
           Check(mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) == 0,
                 "make a slave of the host", "/") &&
           Check(mount("root", root_.c_str(), "tmpfs", MS_NOSUID | MS_NODEV,
                       "mode=0755,size=16m,nr_inodes=4096") == 0,
                 "mount a tmpfs at", root_) &&
           Trees() && Etc() && Devices() && Places() &&
           Seal(root_, /*recursive=*/false, /*devices=*/false);
  }

 private:
  bool Check(bool done, const char* what, const std::string& where) {
    if (!done) *why_ = std::string("cannot ") + what + " " + where + ": " + strerror(errno);
    return done;
  }
  std::string In(const std::string& path) const { return root_ + path; }
  bool Dir(const std::string& path, mode_t mode = 0755) {
    return Check(mkdir(In(path).c_str(), mode) == 0 || errno == EEXIST, "make", In(path));
  }
  // Read-only, without setuid programs, and without devices unless it is one.
  bool Seal(const std::string& path, bool recursive, bool devices) {
    mount_attr attributes{};
    attributes.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | (devices ? 0 : MOUNT_ATTR_NODEV);
    const unsigned flags = recursive ? AT_RECURSIVE : 0;
    return Check(syscall(SYS_mount_setattr, AT_FDCWD, path.c_str(), flags, &attributes,
                         sizeof(attributes)) == 0,
                 "make read-only", path);
  }
  bool Bind(const std::string& path, bool devices) {
    return Check(mount(path.c_str(), In(path).c_str(), nullptr, MS_BIND | MS_REC, nullptr) == 0,
                 "bind", path) &&
           Seal(In(path), /*recursive=*/true, devices);
  }
  bool Write(const std::string& path, const std::string& text) {
    const agent::Fd fd(open(In(path).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    return Check(fd.valid() &&
                     write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()),
                 "write", In(path));
  }

  bool Trees() {
    for (const char* tree : kHostTrees) {
      struct stat info {};
      if (lstat(tree, &info) != 0) continue;
      if (S_ISLNK(info.st_mode)) {
        char target[4096];
        const ssize_t length = readlink(tree, target, sizeof(target) - 1);
        if (!Check(length > 0, "read the link", tree)) return false;
        target[length] = '\0';
        if (!Check(symlink(target, In(tree).c_str()) == 0, "link", In(tree))) return false;
      } else if (!Dir(tree) || !Bind(tree, /*devices=*/false)) {
        return false;
      }
    }
    return true;
  }

  bool Etc() {
    if (!Dir("/etc") || !Dir("/etc/ssl")) return false;
    for (const TextFile& file : kEtc) {
      if (!Write(file.path, file.text)) return false;
    }
    for (const char* path : kEtcCopies) {
      if (access(path, R_OK) == 0 && !Write(path, agent::ReadSmallFile(path, kEtcFileBytesMax)))
        return false;
    }
    for (const char* path : kEtcTrees) {
      if (access(path, F_OK) == 0 && (!Dir(path) || !Bind(path, /*devices=*/false))) return false;
    }
    return true;
  }

  bool Devices() {
    if (!Dir("/dev") || !Dir("/dev/shm") || !Dir("/dev/pts")) return false;
    for (const char* device : kDevices) {
      if (!Write(device, "") || !Bind(device, /*devices=*/true)) return false;
    }
    // Whoever opens it gets its own session's terminal, which is never one of the host's.
    if (access(kOwnTerminal, F_OK) == 0 &&
        (!Write(kOwnTerminal, "") || !Bind(kOwnTerminal, /*devices=*/true))) {
      return false;
    }
    constexpr const char* kLinks[][2] = {{"/proc/self/fd", "/dev/fd"},
                                         {"/proc/self/fd/0", "/dev/stdin"},
                                         {"/proc/self/fd/1", "/dev/stdout"},
                                         {"/proc/self/fd/2", "/dev/stderr"}};
    for (const auto& link : kLinks) {
      if (!Check(symlink(link[0], In(link[1]).c_str()) == 0, "link", In(link[1]))) return false;
    }
    return true;
  }

  bool Places() {
    for (const char* place : {"/proc", "/root", "/run", "/sys", "/tmp", "/work"}) {
      if (!Dir(place)) return false;
    }
    for (const char* place : kOpenPlaces) {
      if (!Dir(place)) return false;
    }
    return Check(symlink("/tmp", In("/var/tmp").c_str()) == 0, "link", In("/var/tmp"));
  }

  const std::string root_;
  std::string* const why_;
};

}  // namespace

bool BuildRoot(const std::string& path, std::string* why) { return RootBuilder(path, why).Build(); }

}  // namespace reprise::sandboxd::function
