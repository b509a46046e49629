// What the surfaces of rolloutd's HTTP port work with: the models that it serves, who may use it,
// how many requests it takes at one time, and the threads that read and write for them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/chat.h"
#include "rollout/http/names.h"
#include "rollout/http/reply.h"
#include "rollout/http/served_model.h"
#include "rollout/tool_pool.h"

namespace reprise::rollout::http {

inline constexpr size_t kBodyBytesMax = 64u << 20;  // of a request

// The replies that are under way. Thread-safe.
class Admission {
 public:
  explicit Admission(size_t most) : most_(most) {}
  // A place for a reply until Leave; RESOURCE_EXHAUSTED when all are taken, UNAVAILABLE once
  // closed.
  absl::StatusOr<uint64_t> Enter();
  // What Close cancels. Cancelled at once when it was closed meanwhile.
  void Hold(uint64_t place, const std::shared_ptr<Reply>& reply);
  void Leave(uint64_t place);
  // Takes nobody any more, and ends every reply with UNAVAILABLE.
  void Close();
  size_t taken() const;

 private:
  const size_t most_;
  mutable absl::Mutex mutex_;
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<uint64_t, std::weak_ptr<Reply>> places_ ABSL_GUARDED_BY(mutex_);
};

class Harness;
struct HarnessTurn;
struct HttpMetrics;

// All outlive the server.
struct Surface {
  const std::vector<ServedModel>* models = nullptr;
  Admission* admission = nullptr;
  ToolPool* pool = nullptr;
  Harness* harness = nullptr;
  std::shared_ptr<HttpMetrics> metrics;
  engine::ThinkingMode default_mode = engine::ThinkingMode::kThinking;
  web::Guard guard;  // refuses who does not show the token
};

// The served model of a request; "" is the first. NOT_FOUND names those that there are.
absl::StatusOr<const ServedModel*> ModelOf(const Surface& surface, const std::string& name);

// A route whose handler runs on the pool, and may block there.
web::Route PoolRoute(const Surface& surface, std::string method, std::string pattern,
                     std::function<void(web::RequestPtr, web::Respond)> work);

// One request on its way to the scheduler: its formatter, and what it decodes. Sends the answer,
// ends the decoding when the client goes, and leaves `place` at the end.
struct Started {
  std::shared_ptr<Reply> reply;
  std::vector<std::shared_ptr<Generation>> generations;
};
// `turn`: of a request of a trajectory, which has one spec; else nullptr. DATA_LOSS when its record
// does not answer the request.
absl::StatusOr<Started> MakeStarted(const Surface& surface, const ServedModel& model,
                                    uint64_t place, std::unique_ptr<Formatter> formatter,
                                    std::vector<GenerationSpec> specs, const HarnessTurn* turn);
void Run(const ServedModel& model, const web::RequestPtr& request, const web::Respond& respond,
         const Started& started, bool stream, std::vector<web::Header> headers);

}  // namespace reprise::rollout::http
