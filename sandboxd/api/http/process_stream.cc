#include "sandboxd/api/http/process_stream.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "absl/strings/numbers.h"
#include "reprise/envd/v1/process.pb.h"

namespace reprise::sandboxd::http {
namespace {

namespace envd = ::reprise::envd::v1;

constexpr absl::Duration kKeepAliveDefault = absl::Seconds(50);
constexpr absl::Duration kKeepAliveMin = absl::Seconds(1), kKeepAliveMax = absl::Hours(1);

class ProcessSource final : public BodySource, public std::enable_shared_from_this<ProcessSource> {
 public:
  ProcessSource(std::shared_ptr<CallStream> stream, const Codec& codec, const ShownProcess& process,
                absl::Duration keepalive)
      : stream_(std::move(stream)), codec_(codec), process_(process), keepalive_(keepalive) {}

  // What came before the response could begin.
  void PutFirst(CallStream::Event event) { first_ = std::move(event); }

  void Next(std::function<void(Piece)> deliver) override {
    if (first_.has_value()) {
      CallStream::Event event = *std::exchange(first_, std::nullopt);
      return deliver(Frames(std::move(event)));
    }
    if (ended_) return deliver(std::optional<std::string>());
    stream_->Next([self = shared_from_this(), deliver = std::move(deliver)](
                      CallStream::Event event) { deliver(self->Frames(std::move(event))); });
  }
  void Cancel() override { stream_->Fail(absl::CancelledError("the client went away")); }
  std::string KeepAlive() override {
    if (!started_) return "";  // the first event must be the start
    envd::ProcessEvent event;
    event.mutable_keepalive();
    return Frame(event);
  }
  absl::Duration keepalive_every() const override { return keepalive_; }

 private:
  std::string Frame(const envd::ProcessEvent& event) const {
    envd::StartResponse response;  // ConnectResponse has the same form
    *response.mutable_event() = event;
    return Envelope(0, Encode(codec_, response));
  }
  Piece End(const absl::Status& status) {
    ended_ = true;
    return std::optional<std::string>(EndFrame(status));
  }

  Piece Frames(CallStream::Event event) {
    if (!event.ok()) return End(event.status());
    if (!event->has_value()) return End(absl::OkStatus());
    sandbox::ExecuteEvent& call = **event;
    envd::ProcessEvent process;
    if (call.has_started()) {
      started_ = true;
      process.mutable_start()->set_pid(process_.pid);
    } else if (call.has_output()) {
      std::string* data = call.mutable_output()->mutable_data();
      if (process_.on_terminal) {
        process.mutable_data()->set_pty(std::move(*data));
      } else if (call.output().stream() == sandbox::STREAM_STDOUT) {
        process.mutable_data()->set_stdout(std::move(*data));
      } else {
        process.mutable_data()->set_stderr(std::move(*data));
      }
    } else {
      if (absl::Status error = Error(call.result()); !error.ok()) return End(error);
      *process.mutable_end() = EndOf(call.result());
      ended_ = true;
      return std::optional<std::string>(Frame(process) + EndFrame(absl::OkStatus()));
    }
    return std::optional<std::string>(Frame(process));
  }

  // Ends that are not the program's own.
  static absl::Status Error(const sandbox::Result& result) {
    const std::string message(result.message());
    switch (result.outcome()) {
      case sandbox::OUTCOME_TIMED_OUT:
        return absl::DeadlineExceededError(message.empty() ? "the time limit fired" : message);
      case sandbox::OUTCOME_SETUP_FAILED:
        return absl::InvalidArgumentError(message);
      case sandbox::OUTCOME_SANDBOX_LOST:
        return absl::UnavailableError(message);
      case sandbox::OUTCOME_INTERRUPTED:
        return absl::AbortedError(fmt::format("interrupted: {}", message));
      default:
        return absl::OkStatus();
    }
  }

  static envd::ProcessEvent::EndEvent EndOf(const sandbox::Result& result) {
    envd::ProcessEvent::EndEvent end;
    if (result.outcome() == sandbox::OUTCOME_EXITED) {
      end.set_exit_code(result.exit_code());
      end.set_exited(true);
      end.set_status(fmt::format("exit status {}", result.exit_code()));
      return end;
    }
    end.set_exit_code(-1);
    const int signal = result.signal() > 0 ? result.signal() : SIGKILL;
    const char* name = ::sigabbrev_np(signal);
    end.set_status(fmt::format("signal: {}", name == nullptr ? "unknown" : name));
    end.set_error(result.message().empty() ? end.status() : result.message());
    return end;
  }

  const std::shared_ptr<CallStream> stream_;
  const Codec codec_;
  const ShownProcess process_;
  const absl::Duration keepalive_;
  std::optional<CallStream::Event> first_;
  bool started_ = false, ended_ = false;
};

}  // namespace

absl::Duration KeepAliveOf(const Request& request) {
  int64_t seconds = 0;
  const std::string_view asked = request.header("keepalive-ping-interval");
  if (!absl::SimpleAtoi(absl::string_view(asked.data(), asked.size()), &seconds) || seconds <= 0)
    return kKeepAliveDefault;
  return std::max(kKeepAliveMin, std::min(absl::Seconds(seconds), kKeepAliveMax));
}

Response StreamError(const Codec& codec, const absl::Status& status) {
  Response response;
  response.content_type = codec.content_type();
  response.body = EndFrame(status);
  return response;
}

Response NoStream() {
  return ErrorResponse(415, "send application/connect+json or application/connect+proto");
}

void RespondWithProcess(std::shared_ptr<CallStream> stream, const Codec& codec,
                        const ShownProcess& process, absl::Duration keepalive,
                        const Respond& respond) {
  stream->Next([stream, codec, process, keepalive, respond](CallStream::Event event) {
    if (!event.ok()) return respond(StreamError(codec, event.status()));
    Response response;
    response.content_type = codec.content_type();
    if (event->has_value() && (*event)->has_started() && (*event)->started().replayed())
      response.headers.push_back({"X-Reprise-Replayed", "true"});
    auto source = std::make_shared<ProcessSource>(stream, codec, process, keepalive);
    source->PutFirst(std::move(event));
    response.stream = std::move(source);
    respond(std::move(response));
  });
}

}  // namespace reprise::sandboxd::http
