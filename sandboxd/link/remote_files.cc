#include "sandboxd/link/remote_files.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/status_macros.h"
#include "sandboxd/agent/protocol.h"
#include "sandboxd/link/agent_link.h"

namespace reprise::sandboxd {
namespace {

using agent::FrameType;

constexpr uint32_t kDefaultMode = 0644;
constexpr size_t kWatchPathBytesMax = 64 << 10;  // of one event; deep trees exceed PATH_MAX

absl::Status BrokenProtocol() {
  return absl::DataLossError("the agent of the sandbox broke the protocol");
}

absl::StatusOr<AgentConnection> Request(const std::string& run_dir, const std::string& frame) {
  ASSIGN_OR_RETURN(AgentConnection connection, AgentConnection::Open(run_dir));
  RETURN_IF_ERROR(connection.Send(frame));
  return connection;
}

std::string PathFrame(FrameType type, const RemotePath& path) {
  return agent::Frame(type, agent::PathRequest{path.path, path.user});
}

// Feeds frames of type `wanted` to `each`, until the answer.
absl::Status ReceiveAll(AgentConnection& connection, FrameType wanted,
                        const std::function<absl::Status(const std::string&)>& each) {
  while (true) {
    ASSIGN_OR_RETURN(const AgentConnection::Received received, connection.Receive());
    if (received.type == FrameType::kOk) return absl::OkStatus();
    if (received.type == FrameType::kError) return AgentError(received.payload);
    if (received.type != wanted) return BrokenProtocol();
    RETURN_IF_ERROR(each(received.payload));
  }
}

// The connection is the watch: closing it ends the process that watches.
class RemoteWatch final : public FileWatch {
 public:
  explicit RemoteWatch(AgentConnection connection) : connection_(std::move(connection)) {}

  int fd() const override { return connection_.fd(); }
  absl::StatusOr<std::optional<sandbox::WatchEvent>> TryNext() override {
    ASSIGN_OR_RETURN(const std::optional<AgentConnection::Received> received,
                     connection_.TryReceive());
    if (!received.has_value()) return std::nullopt;
    if (received->type == FrameType::kOk)
      return absl::NotFoundError("the watched directory is gone");
    agent::WatchEvent event;
    if (received->type != FrameType::kWatchEvent || !agent::Decode(received->payload, &event) ||
        event.kind <= sandbox::WATCH_EVENT_KIND_STARTED || event.path.size() > kWatchPathBytesMax ||
        !sandbox::WatchEventKind_IsValid(event.kind)) {
      return BrokenProtocol();
    }
    sandbox::WatchEvent out;
    out.set_kind(static_cast<sandbox::WatchEventKind>(event.kind));
    out.set_path(std::move(event.path));
    return out;
  }

 private:
  AgentConnection connection_;
};

}  // namespace

absl::Status ReadRemoteFile(const RemotePath& file,
                            const std::function<absl::Status(std::string_view)>& chunk) {
  ASSIGN_OR_RETURN(AgentConnection connection,
                   Request(file.run_dir, PathFrame(FrameType::kReadFile, file)));
  return ReceiveAll(connection, FrameType::kFileData, [&](const std::string& data) -> absl::Status {
    if (data.size() > agent::kDataBytesMax) return BrokenProtocol();
    return chunk(data);
  });
}

absl::Status WriteRemoteFile(const RemotePath& file, uint32_t mode, bool make_parents,
                             const std::function<absl::StatusOr<std::string>()>& next) {
  const agent::WriteRequest request{file.path, file.user, mode == 0 ? kDefaultMode : mode,
                                    static_cast<uint8_t>(make_parents ? 1 : 0)};
  ASSIGN_OR_RETURN(AgentConnection connection,
                   Request(file.run_dir, agent::Frame(FrameType::kWriteFile, request)));
  absl::Status sent;
  while (sent.ok()) {
    ASSIGN_OR_RETURN(const std::string piece, next());
    for (size_t at = 0; sent.ok() && at < piece.size(); at += agent::kDataBytesMax) {
      sent = connection.Send(agent::RawFrame(
          FrameType::kFileData, std::string_view(piece).substr(at, agent::kDataBytesMax)));
    }
    if (!piece.empty()) continue;
    if (sent.ok()) sent = connection.Send(agent::RawFrame(FrameType::kFileData, ""));
    break;
  }
  // An agent that cannot open the file says why and closes while data is on its way: its words come
  // first.
  absl::Status answer = connection.ReceiveOk();
  return absl::IsUnavailable(answer) && !sent.ok() ? sent : answer;
}

absl::Status WriteInputFiles(const std::string& run_dir, const std::string& user,
                             const sandbox::ExecuteRequest& request) {
  for (const sandbox::InputFile& file : request.files()) {
    const RemotePath target{run_dir, request.working_dir() + "/" + file.path(),
                            request.user().empty() ? user : request.user()};
    bool given = false;
    RETURN_IF_ERROR(WriteRemoteFile(
        target, file.mode(), /*make_parents=*/true, [&]() -> absl::StatusOr<std::string> {
          return std::exchange(given, true) ? std::string() : file.content();
        }));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<sandbox::FileInfo>> ListRemoteDir(const RemotePath& directory) {
  ASSIGN_OR_RETURN(AgentConnection connection,
                   Request(directory.run_dir, PathFrame(FrameType::kListDir, directory)));
  std::vector<sandbox::FileInfo> entries;
  auto take = [&](const std::string& payload) -> absl::Status {
    agent::Entry entry;
    if (!agent::Decode(payload, &entry) || entries.size() >= agent::kListEntriesMax)
      return BrokenProtocol();
    sandbox::FileInfo& info = entries.emplace_back();
    info.set_name(entry.name);
    info.set_link_target(entry.link_target);
    info.set_mode(entry.mode);
    info.set_size(entry.size);
    info.set_modified_us(entry.modified_us);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(ReceiveAll(connection, FrameType::kEntry, take));
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return a.name() < b.name(); });
  return entries;
}

absl::StatusOr<std::unique_ptr<FileWatch>> WatchRemoteDir(const RemotePath& directory,
                                                          bool recursive) {
  const agent::WatchRequest request{directory.path, directory.user,
                                    static_cast<uint8_t>(recursive)};
  ASSIGN_OR_RETURN(AgentConnection connection,
                   Request(directory.run_dir, agent::Frame(FrameType::kWatch, request)));
  ASSIGN_OR_RETURN(const AgentConnection::Received first, connection.Receive());
  if (first.type == FrameType::kError) return AgentError(first.payload);
  agent::WatchEvent started;
  if (first.type != FrameType::kWatchEvent || !agent::Decode(first.payload, &started) ||
      started.kind != static_cast<uint8_t>(agent::WatchKind::kStarted)) {
    return BrokenProtocol();
  }
  return std::make_unique<RemoteWatch>(std::move(connection));
}

absl::Status MakeRemoteDir(const RemotePath& directory) {
  return AgentRequest(directory.run_dir, PathFrame(FrameType::kMakeDir, directory));
}

absl::Status RemoveRemotePath(const RemotePath& path) {
  return AgentRequest(path.run_dir, PathFrame(FrameType::kRemove, path));
}

absl::Status MoveRemotePath(const RemotePath& from, const std::string& to) {
  return AgentRequest(from.run_dir,
                      agent::Frame(FrameType::kMove, agent::MoveRequest{from.path, to, from.user}));
}

}  // namespace reprise::sandboxd
