// The processes that run a part of a model for another one.
#pragma once

#include <sys/types.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace reprise {

// Those that run reprise-rank under `parent`.
inline std::vector<pid_t> RanksOf(pid_t parent) {
  std::vector<pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream stat(entry.path() / "stat");
    std::string line;
    std::getline(stat, line);
    const size_t end = line.rfind(')');
    if (end == std::string::npos || line.find("(reprise-rank)") == std::string::npos) continue;
    char state = 0;
    int own_parent = 0;
    if (std::sscanf(line.c_str() + end + 1, " %c %d", &state, &own_parent) == 2 &&
        own_parent == parent) {
      found.push_back(std::stoi(name));
    }
  }
  return found;
}

}  // namespace reprise
