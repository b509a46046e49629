// How often the kernel's OOM killer ran in a container's memory cgroup, on v1 and v2 hosts: the
// difference over a call tells a program that ate its memory from one that was killed by somebody
// else.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace reprise::sandboxd {

// The cgroup path of a container, as the runtime takes it: below the root of each hierarchy, so
// that no parent stays behind when the last container goes.
std::string CgroupPath(const std::string& container);

// OOM kills since the container was made; nothing when the host does not tell.
std::optional<uint64_t> OomKills(const std::string& container);

}  // namespace reprise::sandboxd
