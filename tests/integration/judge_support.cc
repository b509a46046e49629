#include "tests/integration/judge_support.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <utility>

#include "tests/integration/weights_support.h"

namespace reprise::rollout {

JudgeServer::JudgeServer(Answer answer) : answer_(std::move(answer)) {
  http::Router router;
  http::Route route;
  route.method = "POST";
  route.pattern = "/judge";
  route.body_max = 16u << 20;
  route.handler = [this](http::RequestPtr request, http::Respond respond) {
    Question question;
    question.body = Json::parse(request->body);
    question.key = request->header("idempotency-key");
    question.authorization = request->header("authorization");
    {
      absl::MutexLock lock(&mutex_);
      question.attempt = ++asked_[question.key];
      ++total_;
    }
    std::optional<http::Response> response = answer_(question);
    if (response) return respond(*std::move(response));
    absl::MutexLock lock(&mutex_);
    unanswered_.push_back(std::move(respond));
  };
  router.Add(std::move(route));
  http::ServerOptions options;
  options.listen = "127.0.0.1:0";
  auto server = http::Server::Start(options, std::move(router));
  EXPECT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
}

JudgeServer::~JudgeServer() {
  std::vector<http::Respond> unanswered;
  {
    absl::MutexLock lock(&mutex_);
    unanswered.swap(unanswered_);
  }
  for (http::Respond& respond : unanswered) respond(http::ErrorResponse(503, "the test is over"));
  server_->Shutdown();
}

std::map<std::string, int> JudgeServer::asked() {
  absl::MutexLock lock(&mutex_);
  return asked_;
}

void JudgeServer::WaitAsked(int count) {
  absl::MutexLock lock(&mutex_);
  auto enough = [this, count] {
    mutex_.AssertReaderHeld();
    return total_ >= count;
  };
  EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&enough), absl::Seconds(60)));
}

http::Response Judgement(double value) {
  return http::JsonResponse(200, fmt::format("{{\"reward\": {}}}", value));
}

std::string JudgedJob(const std::string& id, const std::string& directory, int tasks, int samples,
                      const std::string& url, const std::string& reward, const std::string& top,
                      int in_flight) {
  std::ofstream file(directory + "/tasks.jsonl");
  for (int i = 0; i < tasks; ++i) {
    file << nlohmann::json{{"id", fmt::format("task-{}", i)},
                           {"prompt", fmt::format("What is {} + {}?", 3 * i, i + 4)},
                           {"metadata", {{"row", i}}}}
         << "\n";
  }
  return fmt::format(
      "id = \"{}\"\nmodel = \"{}\"\ntasks = \"{}/tasks.jsonl\"\ngroup_size = {}\nseed = 3\n"
      "thinking = \"chat\"\n{}[sampling]\ntemperature = 2.0\ntop_k = 40\n[limits]\nmax_tokens = "
      "12\n"
      "max_turns = 1\nmax_in_flight = {}\n[reward]\nkind = \"http\"\nurl = \"{}\"\n{}",
      id, kTinyModel, directory, samples, top, in_flight, url, reward);
}

}  // namespace reprise::rollout
