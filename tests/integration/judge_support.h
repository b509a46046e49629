// An HTTP judge of a test's own, and jobs that it judges: every sample of `tasks` tasks is one
// short turn, and the test says what the judge answers.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "http/server.h"

namespace reprise::rollout {

class JudgeServer {
 public:
  using Json = nlohmann::json;
  struct Question {
    Json body;
    std::string key, authorization;  // headers
    int attempt = 0;                 // of this key, from 1
  };
  // What the judge answers; nullopt = nothing before it goes. Runs on the server's threads.
  using Answer = std::function<std::optional<http::Response>(const Question&)>;
  explicit JudgeServer(Answer answer);
  ~JudgeServer();

  std::string url() const { return "http://" + server_->address() + "/judge"; }
  // Questions so far, by key.
  std::map<std::string, int> asked();
  // Waits until `count` questions came, repeated ones too.
  void WaitAsked(int count);

 private:
  const Answer answer_;
  absl::Mutex mutex_;
  std::map<std::string, int> asked_ ABSL_GUARDED_BY(mutex_);
  int total_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<http::Respond> unanswered_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<http::Server> server_;
};

// {"reward": value}
http::Response Judgement(double value);

// A job of `tasks` tasks x `samples` that the judge at `url` judges. `top` and `reward` are added
// to the top table and to [reward]. The task set is written into `directory`; ids are "task-<row>".
std::string JudgedJob(const std::string& id, const std::string& directory, int tasks, int samples,
                      const std::string& url, const std::string& reward = "",
                      const std::string& top = "", int in_flight = 8);

}  // namespace reprise::rollout
