#include "sandboxd/container/oom_watch.h"

#include <fmt/format.h>

#include <cstdlib>
#include <string_view>

#include "base/fd.h"

namespace reprise::sandboxd {
namespace {

constexpr uint64_t kFileBytesMax = 64 << 10;

}  // namespace

std::string CgroupPath(const std::string& container) { return fmt::format("/{}", container); }

std::optional<uint64_t> OomKills(const std::string& container) {
  for (const std::string& path :
       {fmt::format("/sys/fs/cgroup/memory{}/memory.oom_control", CgroupPath(container)),
        fmt::format("/sys/fs/cgroup{}/memory.events", CgroupPath(container))}) {
    const absl::StatusOr<std::string> text = base::ReadFile(path, kFileBytesMax);
    if (!text.ok()) continue;
    constexpr std::string_view kKey = "oom_kill ";
    for (size_t at = 0; (at = text->find(kKey, at)) != std::string::npos; ++at) {
      if (at == 0 || (*text)[at - 1] == '\n')
        return std::strtoull(text->c_str() + at + kKey.size(), nullptr, 10);
    }
  }
  return std::nullopt;
}

}  // namespace reprise::sandboxd
