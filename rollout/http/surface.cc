#include "rollout/http/surface.h"

#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "rollout/http/harness.h"
#include "rollout/http/http_metrics.h"
#include "rollout/http/request_fields.h"

namespace reprise::rollout::http {

absl::StatusOr<uint64_t> Admission::Enter() {
  absl::MutexLock lock(&mutex_);
  if (closed_) return absl::UnavailableError("rolloutd is stopping: try again");
  if (places_.size() >= most_) {
    return absl::ResourceExhaustedError(
        fmt::format("{} requests are under way, more are not taken: try again", most_));
  }
  places_[next_];
  return next_++;
}

void Admission::Hold(uint64_t place, const std::shared_ptr<Reply>& reply) {
  {
    absl::MutexLock lock(&mutex_);
    auto found = places_.find(place);
    if (found != places_.end()) found->second = reply;
    if (!closed_) return;
  }
  reply->Cancel(absl::UnavailableError("rolloutd is stopping: try again"));
}

void Admission::Leave(uint64_t place) {
  absl::MutexLock lock(&mutex_);
  places_.erase(place);
}

void Admission::Close() {
  std::vector<std::shared_ptr<Reply>> replies;
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    for (const auto& [place, weak] : places_) {
      if (auto reply = weak.lock()) replies.push_back(std::move(reply));
    }
  }
  for (const auto& reply : replies)
    reply->Cancel(absl::UnavailableError("rolloutd is stopping: try again"));
}

size_t Admission::taken() const {
  absl::MutexLock lock(&mutex_);
  return places_.size();
}

absl::StatusOr<const ServedModel*> ModelOf(const Surface& surface, const std::string& name) {
  std::vector<std::string> names;
  for (const ServedModel& model : *surface.models) {
    if (name.empty() || model.name == name) return &model;
    names.push_back(model.name);
  }
  return WithField(
      absl::NotFoundError(fmt::format("the model \"{}\" is not served here, these are: {}", name,
                                      fmt::join(names, ", "))),
      "model");
}

web::Route PoolRoute(const Surface& surface, std::string method, std::string pattern,
                     std::function<void(web::RequestPtr, web::Respond)> work) {
  web::Route route;
  route.method = std::move(method);
  route.pattern = std::move(pattern);
  route.guard = surface.guard;
  route.body_max = kBodyBytesMax;
  route.handler = [pool = surface.pool, work = std::move(work)](web::RequestPtr request,
                                                                web::Respond respond) {
    pool->Run([work, request, respond] { work(request, respond); });
  };
  return route;
}

absl::StatusOr<Started> MakeStarted(const Surface& surface, const ServedModel& model,
                                    uint64_t place, std::unique_ptr<Formatter> formatter,
                                    std::vector<GenerationSpec> specs, const HarnessTurn* turn) {
  Started started;
  started.reply = std::make_shared<Reply>(
      std::move(formatter), specs.size(), surface.pool, surface.metrics,
      [admission = surface.admission, place](const absl::Status&) { admission->Leave(place); });
  for (size_t i = 0; i < specs.size(); ++i) {
    started.generations.push_back(std::make_shared<Generation>(
        std::move(specs[i]), &model.tokenizer(), model.engine().eos_id(), i, started.reply,
        turn != nullptr ? turn->recording : nullptr));
  }
  for (const auto& generation : started.generations)
    surface.metrics->prompt_tokens.Add(generation->tokens().size());
  if (turn != nullptr && turn->replayed) surface.metrics->replayed.Add();
  started.reply->SetGenerations(started.generations);
  if (turn != nullptr &&
      started.generations[0]->Replay(turn->recorded, turn->cached_tokens) != turn->done) {
    return absl::DataLossError(
        fmt::format("the recorded answer in trajectory {} does not end as its request says",
                    turn->trajectory_id));
  }
  surface.admission->Hold(place, started.reply);
  return started;
}

void Run(const ServedModel& model, const web::RequestPtr& request, const web::Respond& respond,
         const Started& started, bool stream, std::vector<web::Header> headers) {
  for (const auto& generation : started.generations) {
    if (generation->Wanted()) model.scheduler->AddGuest(generation);
  }
  if (stream) {
    web::Response response;
    response.content_type = "text/event-stream";
    response.headers = std::move(headers);
    response.headers.push_back({"Cache-Control", "no-cache"});
    response.stream = started.reply->AnswerStream();
    return respond(std::move(response));
  }
  if (request->client != nullptr) {
    request->client->OnGone([weak = std::weak_ptr<Reply>(started.reply)] {
      if (auto reply = weak.lock()) reply->Cancel(absl::CancelledError("the client went away"));
    });
  }
  started.reply->AnswerWhole(respond);
}

}  // namespace reprise::rollout::http
