// Both daemons in the process of a test, with a real state directory, the tiny model and its tasks;
// and a job run to its end, as the records that it exports.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "reprise/rollout/v1/rollout.grpc.pb.h"
#include "rollout/embedded.h"

namespace reprise::rollout {

using Json = nlohmann::json;
namespace wire = ::reprise::rollout::v1;

inline const char kTinyModel[] = REPRISE_SOURCE_DIR "/examples/tiny-v4";

// The top of a job file over tasks `first` .. `first` + `limit` of the tiny model's test set.
std::string JobTop(const std::string& id, uint64_t seed, int first, int limit, int group_size);

// What the model is told about its only tool; `command` is a TOML array.
std::string ShTool(const std::string& command, const std::string& limits = "timeout_ms = 10000");
inline const char kRunShell[] = R"(["/bin/sh", "-c", "{command}"])";

class Daemons {
 public:
  // Goes on with what is in `state`.
  explicit Daemons(const std::string& state, int threads = 2,
                   const std::string& helper_dir = REPRISE_BIN_DIR,
                   const RetentionOptions& retention = {});
  const std::string& address() const { return embedded_->rollout_address(); }
  const std::string& sandbox_address() const { return embedded_->sandbox_address(); }
  wire::RolloutService::Stub* stub() { return stub_.get(); }

  // Submits without waiting.
  wire::Job Submit(const std::string& toml);
  wire::Job Get(const std::string& job_id);
  // Waits until the job sampled that many tokens.
  void WaitTokens(const std::string& job_id, uint64_t tokens);
  // Waits until the job ends; its records in the order of the file.
  struct Ended {
    wire::Job job;
    std::string bytes;  // of trajectories.jsonl
    std::vector<Json> records;
  };
  Ended Run(const std::string& toml, bool without_timing = false);
  Ended Finish(const std::string& job_id, bool without_timing = false);

 private:
  Ended Read(const struct RunJobSummary& summary);

  base::ScratchDir files_;
  std::unique_ptr<Embedded> embedded_;
  std::unique_ptr<wire::RolloutService::Stub> stub_;
};

}  // namespace reprise::rollout
