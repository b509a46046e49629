// The agent: one thread, one poll loop over the listening socket, the connections of the daemon,
// the pipes of the calls and the ends of child processes. Serves calls, hands file operations to
// processes of their own, reaps.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sandboxd/agent/call.h"
#include "sandboxd/agent/os.h"
#include "sandboxd/agent/protocol.h"

namespace reprise::sandboxd::agent {

struct AgentOptions {
  std::string user;              // of calls and files, where the request names none
  std::string working_dir;       // base of relative paths
  std::string home;              // HOME of every call; "" = that of its user
  Launcher* launcher = nullptr;  // outlives the agent
  // An owner outside of any container: it serves one call, lets every peer in that its directory
  // lets in, and its Run returns when that call is released, or when `life_fd` hangs up before
  // there was a call.
  bool single_call = false;
  int life_fd = -1;
};

class Agent {
 public:
  Agent(AgentOptions options, Fd listener, Fd child_signals)
      : options_(std::move(options)),
        listener_(std::move(listener)),
        child_signals_(std::move(child_signals)) {}

  // Returns only with `single_call`: an agent lives as long as its container.
  void Run();

 private:
  struct Connection {
    Fd fd;
    FrameReader in;
    std::string out;
    bool closing = false;               // close when `out` is written
    bool answered = false;              // the first frame was dealt with
    std::unique_ptr<Start> start;       // waits for its standard input
    std::string start_data;             // standard input, then the files
    std::unique_ptr<Stdin> stdin_wait;  // waits for room
    std::shared_ptr<Call> call;         // what this connection streams
    uint64_t sent[2] = {0, 0};
    bool end_sent = false;
  };

  void Accept();
  void Reap();
  void Serve(Connection& connection);
  void Read(Connection& connection);
  void Write(Connection& connection);
  void HandleFrame(Connection& connection, FrameType type, const std::string& payload);
  void HandleFirst(Connection& connection, FrameType type, const std::string& payload);
  void HandleStart(Connection& connection);
  void HandleAttach(Connection& connection, const Attach& attach);
  void HandleControl(Connection& connection, FrameType type, const std::string& payload);
  void StartFileOperation(Connection& connection, FrameType type, const std::string& payload);
  void TryStdin(Connection& connection);
  void Prune();
  void Release(const std::string& call_id);
  void Pump(Connection& connection);
  static bool Owed(const Connection& connection);
  bool Finished() const;
  void Answer(Connection& connection, int error, const std::string& message);
  std::shared_ptr<Call> Find(const std::string& call_id) const;
  std::vector<std::string> Environment(const std::vector<std::string>& added,
                                       const Identity& identity) const;

  AgentOptions options_;
  Fd listener_, child_signals_;
  std::list<Connection> connections_;
  std::map<std::string, std::shared_ptr<Call>> calls_;
  bool served_ = false;     // a call was started
  bool life_over_ = false;  // life_fd hung up
  std::list<std::shared_ptr<Call>>
      released_;  // only so that their background processes can go on writing
};

}  // namespace reprise::sandboxd::agent
