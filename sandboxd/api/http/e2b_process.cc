// envd's process service: every start is one durable call, and a process's number leads to its call
// (SANDBOX/e2b/PID, or TRAJECTORY/http/PID), so that it is found again by a late Connect, from byte
// 0, and after a restart of the daemon.
#include <algorithm>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/numbers.h"
#include "absl/synchronization/mutex.h"
#include "base/status_macros.h"
#include "replay/sha256.h"
#include "reprise/envd/v1/process.pb.h"
#include "sandboxd/api/http/connect_codec.h"
#include "sandboxd/api/http/e2b.h"
#include "sandboxd/api/http/process_stream.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd::http {
namespace {

namespace envd = ::reprise::envd::v1;

constexpr size_t kBodyMax = 8u << 20;
// Numbers from here on are made of a request's idempotency key, smaller ones are counted.
constexpr uint32_t kKeyedPid = 1u << 30;

// The numbers of the processes of every sandbox that was asked for since this daemon began.
class ProcessTable {
 public:
  ProcessTable(CallManager* calls, LeaseTable* leases) : calls_(calls), leases_(leases) {}

  std::string CallId(const std::string& sandbox_id, uint32_t pid) const {
    return fmt::format("{}{}", Prefix(sandbox_id), pid);
  }
  // The number in a call's id; 0 when it is no process of this sandbox.
  uint32_t PidOf(const std::string& sandbox_id, std::string_view call_id) const {
    const std::string prefix = Prefix(sandbox_id);
    uint32_t pid = 0;
    if (call_id.substr(0, prefix.size()) != prefix) return 0;
    const std::string_view number = call_id.substr(prefix.size());
    return absl::SimpleAtoi(absl::string_view(number.data(), number.size()), &pid) ? pid : 0;
  }
  static uint32_t PidOfKey(std::string_view key) {
    const std::string digest = replay::Sha256Of(key);
    uint32_t number = 0;
    for (size_t i = 0; i < 4; ++i) number = number << 8 | static_cast<uint8_t>(digest[i]);
    return kKeyedPid | (number & (kKeyedPid - 1));
  }

  // The next counted number; reads the sandbox's log when it is asked for the first time.
  absl::StatusOr<uint32_t> NextPid(const std::string& sandbox_id) {
    ASSIGN_OR_RETURN(const uint32_t counted, leases_->CountStart(sandbox_id));
    if (counted != 0) return counted;
    absl::MutexLock lock(&mutex_);
    auto found = last_pids_.find(sandbox_id);
    if (found == last_pids_.end()) {
      ASSIGN_OR_RETURN(const sandbox::ListCallsResponse calls, calls_->ListCalls(sandbox_id));
      uint32_t last = 0;
      for (const sandbox::CallSummary& call : calls.calls()) {
        const uint32_t pid = PidOf(sandbox_id, call.call_id());
        if (pid < kKeyedPid) last = std::max(last, pid);
      }
      found = last_pids_.emplace(sandbox_id, last).first;
    }
    return ++found->second;
  }
  void SetTag(const std::string& sandbox_id, const std::string& tag, uint32_t pid) {
    absl::MutexLock lock(&mutex_);
    tags_[{sandbox_id, tag}] = pid;
  }
  absl::StatusOr<uint32_t> Find(const std::string& sandbox_id,
                                const envd::ProcessSelector& selector) {
    if (selector.has_pid()) return selector.pid();
    if (!selector.has_tag()) return absl::InvalidArgumentError("process names neither pid nor tag");
    absl::MutexLock lock(&mutex_);
    const auto found = tags_.find({sandbox_id, selector.tag()});
    if (found != tags_.end()) return found->second;
    return absl::NotFoundError(fmt::format("no process has the tag {}", selector.tag()));
  }
  // "" when it has none.
  std::string TagOf(const std::string& sandbox_id, uint32_t pid) {
    absl::MutexLock lock(&mutex_);
    for (const auto& [name, tagged] : tags_) {
      if (name.first == sandbox_id && tagged == pid) return name.second;
    }
    return "";
  }

 private:
  std::string Prefix(const std::string& sandbox_id) const {
    const std::string trajectory =
        leases_->Get(sandbox_id).value_or(LeaseTable::Lease()).trajectory();
    return trajectory.empty() ? fmt::format("{}/e2b/", sandbox_id)
                              : fmt::format("{}/http/", trajectory);
  }

  CallManager* const calls_;
  LeaseTable* const leases_;
  absl::Mutex mutex_;
  absl::flat_hash_map<std::string, uint32_t> last_pids_ ABSL_GUARDED_BY(mutex_);  // by sandbox
  // By sandbox and tag; not kept over a restart, as the numbers are.
  std::map<std::pair<std::string, std::string>, uint32_t> tags_ ABSL_GUARDED_BY(mutex_);
};

class Processes {
 public:
  Processes(Surface surface, LeaseTable* leases)
      : surface_(surface), leases_(leases), table_(surface.calls, leases) {}

  void Start(const RequestPtr& request, const Respond& respond) {
    Stream(*request, respond,
           [&](const Codec& codec, const std::string& id,
               std::string_view text) -> absl::StatusOr<Opened> {
             envd::StartRequest start;
             RETURN_IF_ERROR(Decode(codec, text, &start));
             sandbox::ExecuteRequest call = CallOf(*request, id, start);
             const std::string_view key = RetryKey(*request);
             uint32_t pid = 0;
             if (key.empty()) {
               ASSIGN_OR_RETURN(pid, table_.NextPid(id));
             } else {
               pid = ProcessTable::PidOfKey(key);
             }
             if (start.has_tag() && !start.tag().empty()) table_.SetTag(id, start.tag(), pid);
             call.set_call_id(table_.CallId(id, pid));
             return Opened{{pid, start.has_pty()}, surface_.calls->Execute(std::move(call))};
           });
  }

  void Connect(const RequestPtr& request, const Respond& respond) {
    Stream(*request, respond,
           [&](const Codec& codec, const std::string& id,
               std::string_view text) -> absl::StatusOr<Opened> {
             envd::ConnectRequest connect;
             RETURN_IF_ERROR(Decode(codec, text, &connect));
             ASSIGN_OR_RETURN(const uint32_t pid, table_.Find(id, connect.process()));
             const std::string call_id = table_.CallId(id, pid);
             ASSIGN_OR_RETURN(const sandbox::ExecuteRequest call,
                              surface_.calls->RequestOf(call_id));
             return Opened{{pid, call.has_pty()}, surface_.calls->Attach(call_id)};
           });
  }

  absl::Status SendInput(const std::string& id, const envd::SendInputRequest& request,
                         envd::SendInputResponse*) {
    sandbox::WriteStdinRequest write;
    ASSIGN_OR_RETURN(const uint32_t pid, table_.Find(id, request.process()));
    write.set_call_id(table_.CallId(id, pid));
    write.set_data(request.input().has_pty() ? request.input().pty() : request.input().stdin());
    return Known(surface_.calls->WriteStdin(write));
  }
  absl::Status Update(const std::string& id, const envd::UpdateRequest& request,
                      envd::UpdateResponse*) {
    if (!request.pty().has_size()) return absl::OkStatus();
    sandbox::ResizeRequest resize;
    ASSIGN_OR_RETURN(const uint32_t pid, table_.Find(id, request.process()));
    resize.set_call_id(table_.CallId(id, pid));
    resize.set_rows(request.pty().size().rows());
    resize.set_columns(request.pty().size().cols());
    return Known(surface_.calls->Resize(resize));
  }
  absl::Status CloseStdin(const std::string& id, const envd::CloseStdinRequest& request,
                          envd::CloseStdinResponse*) {
    sandbox::WriteStdinRequest write;
    ASSIGN_OR_RETURN(const uint32_t pid, table_.Find(id, request.process()));
    write.set_call_id(table_.CallId(id, pid));
    write.set_eof(true);
    return Known(surface_.calls->WriteStdin(write));
  }
  absl::Status SendSignal(const std::string& id, const envd::SendSignalRequest& request,
                          envd::SendSignalResponse*) {
    sandbox::SignalRequest signal;
    ASSIGN_OR_RETURN(const uint32_t pid, table_.Find(id, request.process()));
    signal.set_call_id(table_.CallId(id, pid));
    signal.set_signal(request.signal());
    return Known(surface_.calls->Signal(signal));
  }
  absl::Status List(const std::string& id, const envd::ListRequest&, envd::ListResponse* response) {
    ASSIGN_OR_RETURN(const sandbox::ListCallsResponse calls, surface_.calls->ListCalls(id));
    for (const sandbox::CallSummary& call : calls.calls()) {
      const uint32_t pid = table_.PidOf(id, call.call_id());
      if (pid == 0 || call.state() != sandbox::CALL_STATE_RUNNING) continue;
      envd::ProcessInfo* process = response->add_processes();
      process->set_pid(pid);
      if (std::string tag = table_.TagOf(id, pid); !tag.empty()) process->set_tag(std::move(tag));
      process->mutable_config()->set_cmd(call.argv(0));
      for (int i = 1; i < call.argv_size(); ++i) process->mutable_config()->add_args(call.argv(i));
    }
    return absl::OkStatus();
  }

 private:
  struct Opened {
    ShownProcess process;
    std::shared_ptr<CallStream> stream;
  };

  // A server stream: its errors are in its last frame, but that of a sandbox that is gone. What a
  // trajectory did is replayed even then.
  template <typename Open>
  void Stream(const Request& request, const Respond& respond, Open open) {
    const absl::StatusOr<Codec> codec = CodecOf(request.header("content-type"));
    if (!codec.ok() || !codec->streaming) return respond(NoStream());
    const std::string id = SandboxIdOf(request);
    std::optional<Response> gone = CheckUsable(surface_, id);
    if (gone.has_value() && leases_->Get(id).value_or(LeaseTable::Lease()).trajectory().empty())
      return respond(*std::move(gone));
    absl::StatusOr<Opened> opened;
    if (const absl::StatusOr<std::string_view> text = OnlyEnvelope(request.body); text.ok()) {
      opened = open(*codec, id, *text);
    } else {
      opened = text.status();
    }
    if (!opened.ok()) return respond(StreamError(*codec, opened.status()));
    RespondWithProcess(std::move(opened->stream), *codec, opened->process, KeepAliveOf(request),
                       [respond, gone](Response response) {
                         respond(response.stream == nullptr && gone.has_value() ? *gone : response);
                       });
  }

  // Other values than a whole number of milliseconds were refused by the client's own library.
  static uint64_t TimeoutMs(const Request& request) {
    const std::string_view text = request.header("connect-timeout-ms");
    uint64_t ms = 0;
    if (!absl::SimpleAtoi(absl::string_view(text.data(), text.size()), &ms) || ms == 0)
      return kTimeoutMsMax;
    return std::min(ms, kTimeoutMsMax);
  }

  static sandbox::ExecuteRequest CallOf(const Request& request, const std::string& id,
                                        const envd::StartRequest& start) {
    sandbox::ExecuteRequest call;
    call.set_sandbox_id(id);
    call.add_argv(start.process().cmd());
    for (const std::string& argument : start.process().args()) call.add_argv(argument);
    // In a fixed order, so that the same request has the same digest.
    const std::map<std::string, std::string> envs(start.process().envs().begin(),
                                                  start.process().envs().end());
    for (const auto& [name, value] : envs) {
      sandbox::EnvVar* variable = call.add_env();
      variable->set_name(name);
      variable->set_value(value);
    }
    call.set_working_dir(start.process().cwd());
    if (start.has_pty()) {
      call.mutable_pty()->set_rows(start.pty().size().rows());
      call.mutable_pty()->set_columns(start.pty().size().cols());
    }
    call.set_stdin_open(start.has_pty() || !start.has_stdin() || start.stdin());
    // A program that waits for input costs no time of the processor; the limit is on the clock.
    call.mutable_limits()->set_timeout_ms(TimeoutMs(request));
    call.set_user(UserOf(request));
    return call;
  }

  // A process that has ended is one that is not there, to these verbs.
  static absl::Status Known(const absl::Status& status) {
    if (!absl::IsFailedPrecondition(status)) return status;
    return absl::NotFoundError(std::string(status.message()));
  }

  const Surface surface_;
  LeaseTable* const leases_;
  ProcessTable table_;
};

}  // namespace

void AddProcessRoutes(const Surface& surface, LeaseTable* leases, Router* router) {
  auto processes = std::make_shared<Processes>(surface, leases);
  const ErrorForm form = [](const absl::Status& status) { return ConnectError(status); };
  auto add = [&](const char* verb, Handler handler) {
    Route route;
    route.method = "POST";
    route.pattern = fmt::format("/process.Process/{}", verb);
    route.guard = EnvdGuard(surface);
    route.body_max = kBodyMax;
    route.handler = std::move(handler);
    router->Add(std::move(route));
  };
  using Open = void (Processes::*)(const RequestPtr&, const Respond&);
  auto stream = [&](const char* verb, Open open) {
    add(verb, [surface, processes, form, open](RequestPtr request, Respond respond) {
      PostVerb(surface, form, respond, [=] { (processes.get()->*open)(request, respond); });
    });
  };
  stream("Start", &Processes::Start);
  stream("Connect", &Processes::Connect);
  add("List",
      UnaryVerb<envd::ListRequest, envd::ListResponse>(surface, processes, &Processes::List));
  add("SendInput", UnaryVerb<envd::SendInputRequest, envd::SendInputResponse>(
                       surface, processes, &Processes::SendInput));
  add("CloseStdin", UnaryVerb<envd::CloseStdinRequest, envd::CloseStdinResponse>(
                        surface, processes, &Processes::CloseStdin));
  add("SendSignal", UnaryVerb<envd::SendSignalRequest, envd::SendSignalResponse>(
                        surface, processes, &Processes::SendSignal));
  add("Update",
      UnaryVerb<envd::UpdateRequest, envd::UpdateResponse>(surface, processes, &Processes::Update));
}

}  // namespace reprise::sandboxd::http
