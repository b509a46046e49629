// Ranks of one process that are connected to each other over socket pairs.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <memory>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "engine/parallel/mesh.h"

namespace reprise::engine {

// Connected ranks.
inline std::vector<std::unique_ptr<Mesh>> MakeRanks(int size) {
  std::vector<std::vector<base::UniqueFd>> ends(static_cast<size_t>(size));
  for (auto& row : ends) row.resize(static_cast<size_t>(size));
  for (size_t a = 0; a < ends.size(); ++a) {
    for (size_t b = a + 1; b < ends.size(); ++b) {
      int pair[2];
      EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
      ends[a][b].Reset(pair[0]);
      ends[b][a].Reset(pair[1]);
    }
  }
  std::vector<std::unique_ptr<Mesh>> ranks;
  for (int rank = 0; rank < size; ++rank)
    ranks.push_back(std::make_unique<Mesh>(rank, std::move(ends[static_cast<size_t>(rank)])));
  return ranks;
}

}  // namespace reprise::engine
