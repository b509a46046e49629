// A daemon without its server: the real journal in a scratch directory, the real managers, a
// scripted tier. Restart is what the death of the process is to the calls: the tier, which stands
// for their supervisors, goes on.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "base/fd.h"
#include "sandboxd/call_manager.h"
#include "sandboxd/sandbox_manager.h"
#include "storage/store.h"
#include "tests/unit/sandboxd/faulty_call_log.h"
#include "tests/unit/sandboxd/scripted_substrate.h"

namespace reprise::sandboxd {

// All that one reader got.
struct Received {
  absl::Status status;
  sandbox::Started started;
  sandbox::Result result;
  std::string out, err;    // stdout after its last gap
  uint64_t out_begin = 0;  // offset of the first byte of `out`
};

class Node {
 public:
  explicit Node(CallOptions calls = {}, SandboxOptions sandboxes = {});
  // Of a process that may be killed: journal and images lie in `directory`, for the next one.
  explicit Node(const std::string& directory);
  ~Node();

  // Another `boot_id`: the machine was restarted too.
  void Restart(const std::string& boot_id = "boot-1");
  // Drops the managers and closes the journal, as Restart's first half.
  void Down();

  void MakeBox(const std::string& id = "box");
  static sandbox::ExecuteRequest Request(const std::string& call_id);
  // Reads a stream to its end.
  static Received Read(const std::shared_ptr<CallStream>& stream);
  // Reads until `bytes` bytes of output have come.
  static std::string ReadSome(const std::shared_ptr<CallStream>& stream, size_t bytes);
  // Attaches and reads to the end.
  Received Finish(const std::string& call_id);

  CallManager& calls() { return *calls_; }
  SandboxManager& sandboxes() { return *sandboxes_; }
  FaultyCallLog& log() { return *log_; }
  ScriptedSubstrate& tier() { return tier_; }

 private:
  CallOptions call_options_;
  SandboxOptions sandbox_options_;
  base::ScratchDir dir_;
  const std::string journal_;
  ScriptedSubstrate tier_;
  std::unique_ptr<storage::Store> store_;
  std::unique_ptr<FaultyCallLog> log_;
  std::unique_ptr<SandboxManager> sandboxes_;
  std::unique_ptr<CallManager> calls_;
};

}  // namespace reprise::sandboxd
