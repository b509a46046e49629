#include "sandboxd/agent/os.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>
#include <charconv>
#include <string_view>

namespace reprise::sandboxd::agent {
namespace {

constexpr size_t kAccountFileBytesMax = 1 << 20;
constexpr size_t kGroupsMax = 64;

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

bool ParseId(std::string_view text, uint32_t* id) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *id);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

// The line of an account file whose field `index` is `value`.
std::vector<std::string_view> FindLine(std::string_view file, size_t index, std::string_view value,
                                       size_t fields) {
  for (const std::string_view line : Split(file, '\n')) {
    auto parts = Split(line, ':');
    if (parts.size() >= fields && parts[index] == value) return parts;
  }
  return {};
}

}  // namespace

int64_t NowUs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000ll + now.tv_nsec / 1000;
}
int64_t NowMs() { return NowUs() / 1000; }

std::string ReadSmallFile(const std::string& path, size_t max) {
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  std::string text;
  char buffer[4096];
  while (fd.valid() && text.size() < max) {
    const ssize_t count = read(fd.get(), buffer, std::min(sizeof(buffer), max - text.size()));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    text.append(buffer, static_cast<size_t>(count));
  }
  return text;
}

bool ResolveIdentity(const std::string& user, Identity* identity, std::string* why) {
  const size_t colon = user.find(':');
  const std::string_view name = std::string_view(user).substr(0, colon);
  const std::string passwd = ReadSmallFile("/etc/passwd", kAccountFileBytesMax);
  const std::string group = ReadSmallFile("/etc/group", kAccountFileBytesMax);
  *identity = Identity();
  auto line = FindLine(passwd, 0, name.empty() ? "root" : name, 6);
  if (line.empty() && ParseId(name, &identity->uid)) line = FindLine(passwd, 2, name, 6);
  if (!line.empty()) {
    if (!ParseId(line[2], &identity->uid) || !ParseId(line[3], &identity->gid)) {
      *why = "/etc/passwd is malformed at user '" + user + "'";
      return false;
    }
    if (line[5].starts_with('/')) identity->home = line[5];
  } else if (!name.empty() && !ParseId(name, &identity->uid)) {
    *why = "there is no user '" + user + "' in the sandbox's /etc/passwd";
    return false;
  }
  if (colon != std::string::npos) {
    const std::string_view wanted = std::string_view(user).substr(colon + 1);
    const auto found = FindLine(group, 0, wanted, 3);
    if (!(found.empty() ? ParseId(wanted, &identity->gid) : ParseId(found[2], &identity->gid))) {
      *why = "there is no group of '" + user + "' in the sandbox's /etc/group";
      return false;
    }
  } else if (!line.empty()) {
    for (const std::string_view entry : Split(group, '\n')) {
      const auto parts = Split(entry, ':');
      uint32_t gid = 0;
      if (parts.size() < 4 || !ParseId(parts[2], &gid) || identity->groups.size() >= kGroupsMax)
        continue;
      const auto members = Split(parts[3], ',');
      if (std::find(members.begin(), members.end(), line[0]) != members.end())
        identity->groups.push_back(gid);
    }
  }
  if (identity->uid >= kKeeperUid || identity->gid >= kKeeperUid) {
    *why = "user '" + user + "' is outside of 0..65534";
    return false;
  }
  return true;
}

bool SetCapabilities(uint64_t keep) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  for (int i = 0; i < 2; ++i)
    data[i].effective = data[i].permitted = static_cast<uint32_t>(keep >> (32 * i));
  return syscall(SYS_capset, &header, data) == 0;
}

bool BecomeUnprivileged(const Identity& identity) {
  static_assert(sizeof(gid_t) == sizeof(uint32_t));
  if (setgroups(identity.groups.size(), identity.groups.data()) != 0) return false;
  if (setresgid(identity.gid, identity.gid, identity.gid) != 0) return false;
  if (setresuid(identity.uid, identity.uid, identity.uid) != 0) return false;
  return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) == 0 && SetCapabilities(0);
}

}  // namespace reprise::sandboxd::agent
