#include "sandboxd/api/http/code_stream.h"

#include <atomic>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sandboxd/api/http/interpreter/program.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd::http {
namespace {

using Json = nlohmann::json;

constexpr char kNoRun[] = "-";  // whose lines belong to no run
constexpr char kReady[] = "ready";
constexpr uint64_t kContextOutputKept = 64u << 20;
constexpr char kTypeField[] = "{\"type\": \"";

std::string DumpLine(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

bool IsOf(std::string_view event, std::string_view type) {
  const std::string_view field = kTypeField;
  return event.substr(0, field.size()) == field &&
         event.substr(field.size(), type.size() + 1) == fmt::format("{}\"", type);
}

// Takes whole lines out of pieces of text, and keeps those of one run.
class LineFilter {
 public:
  explicit LineFilter(std::string_view run) : prefix_(fmt::format("{} ", run)) {}
  void Add(std::string_view data, std::string* lines) {
    held_ += data;
    size_t at = 0;
    for (size_t end; (end = held_.find('\n', at)) != std::string::npos; at = end + 1) {
      const std::string_view line = std::string_view(held_).substr(at, end + 1 - at);
      if (line.substr(0, prefix_.size()) == prefix_) *lines += line.substr(prefix_.size());
    }
    held_.erase(0, at);
  }

 private:
  const std::string prefix_;
  std::string held_;
};

class RunSource final : public BodySource, public std::enable_shared_from_this<RunSource> {
 public:
  RunSource(const Surface& surface, std::shared_ptr<CallStream> stream, CodeRun run)
      : surface_(surface), stream_(std::move(stream)), run_(std::move(run)), filter_(run_.run) {}

  // The context runs, and what is asked of it goes to its standard input. Blocks.
  absl::Status Ask(const std::string& call_id) {
    call_id_ = call_id;
    return run_.line.empty() ? absl::OkStatus() : WriteLine(run_.line);
  }

  // Pulls until there is a line, in a loop wherever the events are there already.
  void Next(std::function<void(Piece)> deliver) override {
    if (ended_) return deliver(std::optional<std::string>());
    deliver_ = std::move(deliver);
    Pull();
  }

  void Cancel() override {
    const bool runs = !ended_;  // what waits is delivered within Fail
    stream_->Fail(absl::CancelledError("the client went away"));
    if (!run_.ends_alone || !runs) return;
    (void)surface_.verbs->TryPost([self = shared_from_this()] {
      (void)self->WriteLine(Json{{"interrupt", self->run_.run}}.dump());
    });
  }

 private:
  enum Step { kAsked, kDelivered, kLeft };

  absl::Status WriteLine(const std::string& line) {
    sandbox::WriteStdinRequest write;
    write.set_call_id(call_id_);
    write.set_data(line + "\n");
    return surface_.calls->WriteStdin(write);
  }

  void Pull() {
    do {
      step_ = kAsked;
      stream_->Next([self = shared_from_this()](CallStream::Event event) {
        self->event_ = std::move(event);
        if (self->step_.exchange(kDelivered) == kLeft && self->Take()) self->Pull();
      });
      if (step_.exchange(kLeft) == kAsked) return;
    } while (Take());
  }

  // False when something was delivered.
  bool Take() {
    std::string lines;
    if (!event_.ok()) {
      ended_ = true;
      Deliver(event_.status());
      return false;
    }
    if (!event_->has_value() || (*event_)->has_result()) {
      lines = Died(event_->has_value() ? (*event_)->result() : sandbox::Result());
      ended_ = true;
    } else if ((*event_)->has_output()) {
      filter_.Add((*event_)->output().data(), &lines);
      if (const size_t last = lines.rfind('\n', lines.size() < 2 ? 0 : lines.size() - 2);
          !lines.empty())
        ended_ = IsOf(std::string_view(lines).substr(last == std::string::npos ? 0 : last + 1),
                      run_.last);
    }
    if (lines.empty()) return true;
    if (ended_) stream_->Fail(absl::CancelledError("the run has ended"));
    Deliver(std::optional<std::string>(std::move(lines)));
    return false;
  }

  void Deliver(Piece piece) { std::exchange(deliver_, nullptr)(std::move(piece)); }

  // The context's end is the end of all that runs in it.
  static std::string Died(const sandbox::Result& result) {
    std::string why = sandbox::Outcome_Name(result.outcome());
    if (result.outcome() == sandbox::OUTCOME_EXITED)
      why += fmt::format(" with status {}", result.exit_code());
    if (!result.message().empty()) why += fmt::format(": {}", result.message());
    return DumpLine({{"type", "error"},
                     {"name", "ContextEnded"},
                     {"value", why},
                     {"traceback", fmt::format("the context ended: {}\n", why)}}) +
           DumpLine({{"type", "end_of_execution"}});
  }

  const Surface surface_;
  const std::shared_ptr<CallStream> stream_;
  const CodeRun run_;
  std::string call_id_;
  LineFilter filter_;
  std::function<void(Piece)> deliver_;
  std::atomic<Step> step_{kAsked};
  CallStream::Event event_ = std::nullopt;
  std::atomic<bool> ended_ = false;
};

// Asks the context when it runs; `ready` gets the run's source, or why there is none.
void Begin(const Surface& surface, std::shared_ptr<CallStream> stream, CodeRun run,
           std::function<void(absl::StatusOr<std::shared_ptr<RunSource>>)> ready) {
  stream->Next([=, run = std::move(run)](CallStream::Event event) {
    if (!event.ok()) return ready(event.status());
    if (!event->has_value() || !(*event)->has_started())
      return ready(absl::InternalError("a context did not begin with its start"));
    auto source = std::make_shared<RunSource>(surface, stream, run);
    auto ask = [source, ready, id = (*event)->started().call_id()] {
      // One that has ended meanwhile says so itself.
      const absl::Status asked = source->Ask(id);
      if (!asked.ok() && !absl::IsFailedPrecondition(asked) && !absl::IsNotFound(asked))
        return ready(asked);
      ready(source);
    };
    if (!surface.verbs->TryPost(std::move(ask)))
      ready(Busy());
  });
}

}  // namespace

sandbox::ExecuteRequest ContextCall(std::string_view language) {
  sandbox::ExecuteRequest call;
  call.add_argv("python3");
  call.add_argv("-c");
  call.add_argv(std::string(kContextProgram, kContextProgramBytes));
  call.add_argv(std::string(language));
  call.mutable_limits()->set_timeout_ms(kTimeoutMsMax);
  call.mutable_limits()->set_cpu_ms(kTimeoutMsMax);
  call.mutable_limits()->set_output_bytes_kept(kContextOutputKept);
  call.mutable_limits()->set_output_bytes_max(kOutputBytesMax);
  return call;
}

std::vector<std::string> LinesOf(std::string_view output, std::string_view run) {
  std::string text;
  LineFilter(run).Add(output, &text);
  std::vector<std::string> lines;
  for (size_t at = 0, end; (end = text.find('\n', at)) != std::string::npos; at = end + 1)
    lines.push_back(text.substr(at, end - at));
  return lines;
}

void RespondWithRun(const Surface& surface, std::shared_ptr<CallStream> stream, CodeRun run,
                    const Respond& respond) {
  Begin(surface, std::move(stream), std::move(run),
        [respond](absl::StatusOr<std::shared_ptr<RunSource>> source) {
          if (!source.ok()) return respond(ErrorResponse(source.status()));
          Response response;
          response.content_type = "application/x-ndjson";
          response.stream = *std::move(source);
          respond(std::move(response));
        });
}

void AwaitContext(const Surface& surface, std::shared_ptr<CallStream> stream,
                  std::function<void(absl::Status)> done) {
  CodeRun ready;
  ready.run = kNoRun;
  ready.last = kReady;
  Begin(surface, std::move(stream), std::move(ready),
        [done](absl::StatusOr<std::shared_ptr<RunSource>> source) {
          if (!source.ok()) return done(source.status());
          (*source)->Next([done](BodySource::Piece piece) {
            if (!piece.ok()) return done(piece.status());
            const std::string said = piece->value_or("");
            if (IsOf(said, kReady)) return done(absl::OkStatus());
            const Json error = Json::parse(said.substr(0, said.find('\n')), nullptr, false);
            done(absl::FailedPreconditionError(
                fmt::format("the context did not begin: {}",
                            error.is_object() ? error.value("value", "") : "it said nothing")));
          });
        });
}

}  // namespace reprise::sandboxd::http
