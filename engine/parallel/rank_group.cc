#include "engine/parallel/rank_group.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/program_dir.h"
#include "base/secret_file.h"
#include "base/status_macros.h"
#include "engine/parallel/frame.h"

extern char** environ;

namespace reprise::engine {
namespace {

constexpr int kStartMs = 30'000;  // for a started rank to listen
constexpr std::string_view kListening = "listening on ";

absl::Status Named(const std::string& name, const absl::Status& status) {
  return absl::Status(status.code(), fmt::format("{}: {}", name, std::string(status.message())));
}

// What a started rank says first.
absl::StatusOr<std::string> ReadAddress(int fd) {
  std::string line;
  for (char c = 0; line.size() < 4096;) {
    pollfd ready = {fd, POLLIN, 0};
    const int polled = ::poll(&ready, 1, kStartMs);
    if (polled < 0 && errno == EINTR) continue;
    if (polled == 0)
      return absl::UnavailableError(fmt::format("does not listen after {} s", kStartMs / 1000));
    if (::read(fd, &c, 1) != 1) break;
    if (c != '\n') {
      line += c;
    } else if (line.rfind(kListening, 0) == 0) {
      return line.substr(kListening.size());
    } else {
      break;
    }
  }
  return absl::UnavailableError("ended before it listened; its last words are above");
}

}  // namespace

absl::StatusOr<std::unique_ptr<RankGroup>> RankGroup::Form(const std::string& directory,
                                                           const EngineOptions& options,
                                                           const ParallelOptions& parallel) {
  auto group = std::unique_ptr<RankGroup>(new RankGroup);
  std::vector<std::string> addresses = {""};
  if (parallel.others.empty()) {
    RETURN_IF_ERROR(group->StartRanks(parallel, &addresses));
  } else {
    for (const std::string& address : parallel.others) {
      group->ranks_.push_back(
          {fmt::format("rank {} ({})", addresses.size(), address), base::UniqueFd(), -1});
      addresses.push_back(address);
    }
  }
  std::string secret;
  if (!parallel.secret_file.empty()) {
    ASSIGN_OR_RETURN(secret, base::ReadSecretFile(parallel.secret_file, "rank secret"));
  }
  RETURN_IF_ERROR(group->Connect(directory, options, addresses, secret));
  return group;
}

absl::Status RankGroup::StartRanks(const ParallelOptions& parallel,
                                   std::vector<std::string>* addresses) {
  sockets_ = std::make_unique<base::ScratchDir>("ranks");
  std::string helper = parallel.helper;
  if (helper.empty()) {
    ASSIGN_OR_RETURN(helper, base::ProgramDir());
    helper += "/reprise-rank";
  }
  for (int rank = 1; rank < parallel.ranks; ++rank) {
    ASSIGN_OR_RETURN(std::string address, StartRank(helper, rank));
    addresses->push_back(std::move(address));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> RankGroup::StartRank(const std::string& helper, int rank) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return base::ErrnoStatus(errno, "cannot start a rank");
  base::UniqueFd words(ends[0]), said(ends[1]);
  const std::string address = fmt::format("unix:{}/{}", sockets_->path(), rank);
  std::vector<std::string> arguments = {helper, "--listen", address, "--once"};
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, said.get(), STDOUT_FILENO);
  pid_t pid = -1;
  const int error = ::posix_spawn(&pid, helper.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return base::ErrnoStatus(error, fmt::format("cannot start {}", helper));
  said.Reset();
  ranks_.push_back({fmt::format("rank {} (process {})", rank, pid), base::UniqueFd(), pid});
  auto listening = ReadAddress(words.get());
  if (!listening.ok()) return Named(ranks_.back().name, listening.status());
  return listening;
}

// Every rank takes up the commands before any is told to call another.
absl::Status RankGroup::Connect(const std::string& directory, const EngineOptions& options,
                                const std::vector<std::string>& addresses,
                                const std::string& secret) {
  const auto call = [&](size_t rank, Role role) -> absl::StatusOr<base::UniqueFd> {
    auto fd = Dial(addresses[rank]);
    absl::Status done = fd.status();
    if (done.ok()) done = ShakeHandsAsCaller(fd->get(), secret, role);
    if (!done.ok()) return Named(ranks_[rank - 1].name, done);
    return fd;
  };
  for (size_t rank = 1; rank < addresses.size(); ++rank) {
    ASSIGN_OR_RETURN(ranks_[rank - 1].commands, call(rank, kCommands));
  }
  rank_wire::Start start;
  for (const std::string& address : addresses) start.add_addresses(address);
  start.set_model_directory(directory);
  start.set_threads(options.threads);
  start.set_max_context(options.max_context);
  start.set_numerics(static_cast<int32_t>(options.numerics));
  start.set_prefix_cache_bytes(options.prefix_cache_bytes);
  std::vector<base::UniqueFd> peers(addresses.size());
  for (size_t rank = 1; rank < addresses.size(); ++rank) {
    start.set_rank(static_cast<uint32_t>(rank));
    absl::Status sent = SendMessage(ranks_[rank - 1].commands.get(), start);
    if (!sent.ok()) return Named(ranks_[rank - 1].name, sent);
  }
  for (size_t rank = 1; rank < addresses.size(); ++rank) {
    ASSIGN_OR_RETURN(peers[rank], call(rank, /*role=*/1));
  }
  mesh_ = std::make_unique<Mesh>(0, std::move(peers));
  return absl::OkStatus();
}

RankGroup::~RankGroup() {
  // A rank ends with its connections.
  mesh_.reset();
  for (Rank& rank : ranks_) rank.commands.Reset();
  for (const Rank& rank : ranks_) {
    while (rank.pid > 0 && ::waitpid(rank.pid, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
}

absl::Status RankGroup::Tell(const rank_wire::Command& command) {
  absl::MutexLock lock(&mutex_);
  for (const Rank& rank : ranks_) {
    if (!failed_.ok()) break;
    absl::Status sent = SendMessage(rank.commands.get(), command);
    if (!sent.ok()) failed_ = Named(rank.name, sent);
  }
  return failed_;
}

absl::Status RankGroup::ReceiveLoaded(const std::string& digest) {
  absl::Status first;
  for (const Rank& rank : ranks_) {
    rank_wire::Answer answer;
    absl::Status got = ReceiveMessage(rank.commands.get(), &answer);
    if (got.ok() && !answer.error().empty()) {
      got = absl::FailedPreconditionError(answer.error());
    } else if (got.ok() && answer.digest() != digest) {
      got = absl::FailedPreconditionError(
          "has other files there than the first rank: copy the checkpoint again");
    }
    if (first.ok() && !got.ok()) first = Named(rank.name, got);
  }
  return first;
}

absl::Status RankGroup::status() const {
  absl::MutexLock lock(&mutex_);
  if (!failed_.ok()) return failed_;
  return mesh_->status();
}

}  // namespace reprise::engine
