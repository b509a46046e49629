#include "engine/parallel/mesh.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/status_macros.h"

namespace reprise::engine {
namespace {

// A rank that computes for longer than this between two exchanges counts as lost. Milliseconds.
constexpr int kSilenceMs = 600'000;
// Tries before the thread sleeps: the other ranks are mostly microseconds behind.
constexpr int kSpins = 200;

absl::Status Lost(int rank, std::string_view why) {
  return absl::UnavailableError(fmt::format("rank {} is gone: {}", rank, why));
}

bool Later() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

Mesh::Mesh(int rank, std::vector<base::UniqueFd> peers)
    : rank_(rank), peers_(std::move(peers)), exchanges_(peers_.size()) {}

void Mesh::AllGather(float* data, absl::Span<const int64_t> bounds) {
  if (!status_.ok()) return;
  status_ = Gather(reinterpret_cast<char*>(data), bounds);
  ++calls_;
}

absl::Status Mesh::Push(int peer, Exchange* exchange, const char* part) {
  const size_t all = sizeof(Head) + exchange->out.bytes;
  while (exchange->sent < all) {
    iovec pieces[2];
    int count = 0;
    size_t skip = exchange->sent;
    if (skip < sizeof(Head)) {
      pieces[count++] = {reinterpret_cast<char*>(&exchange->out) + skip, sizeof(Head) - skip};
      skip = sizeof(Head);
    }
    const size_t at = skip - sizeof(Head);
    if (at < exchange->out.bytes)
      pieces[count++] = {const_cast<char*>(part) + at, exchange->out.bytes - at};
    msghdr message = {};
    message.msg_iov = pieces;
    message.msg_iovlen = static_cast<size_t>(count);
    const ssize_t sent = ::sendmsg(peers_[peer].get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) return Later() ? absl::OkStatus() : Lost(peer, std::strerror(errno));
    exchange->sent += static_cast<size_t>(sent);
  }
  return absl::OkStatus();
}

absl::Status Mesh::Pull(int peer, Exchange* exchange, char* part, uint64_t bytes) {
  while (exchange->received < sizeof(Head) + bytes) {
    const bool head = exchange->received < sizeof(Head);
    char* to = head ? reinterpret_cast<char*>(&exchange->in) + exchange->received
                    : part + (exchange->received - sizeof(Head));
    const size_t room = (head ? sizeof(Head) : sizeof(Head) + bytes) - exchange->received;
    const ssize_t got = ::recv(peers_[peer].get(), to, room, MSG_DONTWAIT);
    if (got < 0) return Later() ? absl::OkStatus() : Lost(peer, std::strerror(errno));
    if (got == 0) return Lost(peer, "it closed its connection");
    exchange->received += static_cast<size_t>(got);
    if (exchange->received != sizeof(Head)) continue;
    if (exchange->in.call != calls_ || exchange->in.bytes != bytes) {
      return Lost(peer, fmt::format("it sent {} bytes for exchange {}, where {} for {} are due",
                                    exchange->in.bytes, exchange->in.call, bytes, calls_));
    }
  }
  return absl::OkStatus();
}

absl::Status Mesh::Gather(char* data, absl::Span<const int64_t> bounds) {
  const auto bytes_of = [&](int rank) {
    return static_cast<uint64_t>(bounds[rank + 1] - bounds[rank]) * sizeof(float);
  };
  const auto part_of = [&](int rank) {
    return data + bounds[rank] * static_cast<int64_t>(sizeof(float));
  };
  for (Exchange& exchange : exchanges_) exchange = {{calls_, bytes_of(rank_)}, {}, 0, 0};
  exchanges_[rank_].received = sizeof(Head);
  std::vector<pollfd> waits;
  for (int tries = 0;; ++tries) {
    waits.clear();
    size_t moved = 0, before = 0;
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank_) continue;
      Exchange& exchange = exchanges_[peer];
      before += exchange.sent + exchange.received;
      RETURN_IF_ERROR(Push(peer, &exchange, part_of(rank_)));
      RETURN_IF_ERROR(Pull(peer, &exchange, part_of(peer), bytes_of(peer)));
      moved += exchange.sent + exchange.received;
      short events = 0;
      if (exchange.sent < sizeof(Head) + exchange.out.bytes) events |= POLLOUT;
      if (exchange.received < sizeof(Head) + bytes_of(peer)) events |= POLLIN;
      if (events != 0) waits.push_back({peers_[peer].get(), events, 0});
    }
    if (waits.empty()) return absl::OkStatus();
    if (moved != before) tries = 0;
    if (tries < kSpins) continue;
    const int ready = ::poll(waits.data(), waits.size(), kSilenceMs);
    if (ready == 0) {
      const auto silent = std::find_if(exchanges_.begin(), exchanges_.end(),
                                       [](const Exchange& e) { return e.received < sizeof(Head); });
      return Lost(static_cast<int>(silent - exchanges_.begin()),
                  fmt::format("silent for {} s", kSilenceMs / 1000));
    }
  }
}

}  // namespace reprise::engine
