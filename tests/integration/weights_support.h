// A rollout daemon whose weights a test changes: checkpoints that differ, jobs that need no
// sandbox, rolloutd as a process that can be killed, and a check of whole records against the
// engine.
#pragma once

#include <sys/types.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "engine/engine.h"
#include "reprise/rollout/v1/rollout.grpc.pb.h"

namespace reprise::rollout {

using Json = nlohmann::json;
namespace wire = ::reprise::rollout::v1;

inline const char kTinyModel[] = REPRISE_SOURCE_DIR "/examples/tiny-v4";

// tiny-v4 with every value of its output matrix changed by up to one part in sixteen; another
// checkpoint for each `variant` from 1 on.
void WriteCheckpoint(const std::string& directory, int variant);

// rolloutd on a state directory of its own, without a sandbox daemon, for as long as this lives.
class Rolloutd {
 public:
  explicit Rolloutd(const std::string& state, const std::string& fail_point = "");
  ~Rolloutd();
  Rolloutd(const Rolloutd&) = delete;
  Rolloutd& operator=(const Rolloutd&) = delete;

  wire::RolloutService::Stub* stub() { return stub_.get(); }
  wire::Job Submit(const std::string& toml);
  wire::Job Get(const std::string& job_id);
  void Pause(const std::string& job_id);
  void Resume(const std::string& job_id);
  // Waits until the job sampled that many tokens.
  void WaitTokens(const std::string& job_id, uint64_t tokens);
  grpc::Status Load(const std::string& directory, wire::LoadWeightsAnswer* answer,
                    const std::string& running = "", const std::string& kv = "",
                    uint64_t version = 0);
  // Waits until the job ends; its records by group and sample.
  std::vector<Json> Finish(const std::string& job_id);
  // Waits until the process was killed by its fail point.
  void WaitKilled();

 private:
  pid_t pid_ = -1;
  std::unique_ptr<wire::RolloutService::Stub> stub_;
};

// A job of `tasks` tasks x 2 samples of up to 120 tokens of one turn each, hot enough to use most
// of them, judged without a sandbox. Its task set is written into `directory`.
std::string HotJob(const std::string& id, const std::string& directory, int tasks, int in_flight,
                   const std::string& more = "");

// Every sampled token and log-probability of the record is, to the bit, what `engine` draws when it
// feeds the tokens under the weights that the record names, and keeps or makes again the KV state
// as it says. `weights`: by version.
void CheckAgainstWeights(const Json& record, engine::Engine* engine,
                         const std::map<uint64_t, std::shared_ptr<const engine::Weights>>& weights);

}  // namespace reprise::rollout
