#include "tests/unit/sandboxd/scripted_substrate.h"

#include <sys/eventfd.h>

#include <gtest/gtest.h>

#include <csignal>
#include <deque>
#include <filesystem>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "base/fd.h"
#include "base/status_macros.h"

namespace reprise::sandboxd {

class ScriptedSubstrate::Handle final : public RunningCall {
 public:
  Handle(ScriptedSubstrate* substrate, std::shared_ptr<Job> job)
      : substrate_(substrate), job_(std::move(job)) {}
  ~Handle() override {
    std::shared_ptr<CallSink> sink;
    absl::MutexLock lock(&substrate_->mutex_);
    sink = std::move(job_->sink);
  }
  absl::Status WriteStdin(std::string_view data, bool eof) override {
    absl::MutexLock lock(&substrate_->mutex_);
    job_->stdin.append(data);
    if (eof) job_->stdin.append("<eof>");
    return absl::OkStatus();
  }
  absl::Status Resize(uint32_t, uint32_t) override {
    return absl::InvalidArgumentError("the call has no terminal");
  }
  absl::Status Signal(int signal) override {
    absl::MutexLock lock(&substrate_->mutex_);
    job_->signals.push_back(signal);
    return absl::OkStatus();
  }
  absl::Status Cancel() override {
    substrate_->End(job_->request.call_id(), sandbox::OUTCOME_CANCELLED);
    return absl::OkStatus();
  }
  void Acknowledge(sandbox::Stream stream, uint64_t upto) override {
    absl::MutexLock lock(&substrate_->mutex_);
    job_->acknowledged[stream] = upto;
  }
  void Release() override {
    absl::MutexLock lock(&substrate_->mutex_);
    job_->released = true;
  }

 private:
  ScriptedSubstrate* const substrate_;
  const std::shared_ptr<Job> job_;
};

void ScriptedSubstrate::WaitStarted(const std::string& call_id) {
  absl::MutexLock lock(&mutex_);
  auto started = [&]() { return jobs_.count(call_id) != 0; };
  mutex_.Await(absl::Condition(&started));
}

void ScriptedSubstrate::WaitReleased(const std::string& call_id) {
  absl::MutexLock lock(&mutex_);
  auto released = [&]() { return jobs_.count(call_id) != 0 && jobs_.at(call_id)->released; };
  mutex_.Await(absl::Condition(&released));
}

void ScriptedSubstrate::WaitAcknowledged(const std::string& call_id, sandbox::Stream stream,
                                         uint64_t upto) {
  absl::MutexLock lock(&mutex_);
  auto acknowledged = [&]() { return jobs_.at(call_id)->acknowledged[stream] >= upto; };
  mutex_.Await(absl::Condition(&acknowledged));
}

void ScriptedSubstrate::Emit(const std::string& call_id, sandbox::Stream stream,
                             const std::string& data) {
  std::shared_ptr<CallSink> sink;
  uint64_t offset;
  {
    absl::MutexLock lock(&mutex_);
    Job& job = *jobs_.at(call_id);
    offset = job.output[stream].size();
    job.output[stream] += data;
    sink = job.sink;
  }
  if (sink != nullptr) sink->OnOutput(stream, offset, data);
}

void ScriptedSubstrate::End(const std::string& call_id, sandbox::Outcome outcome, int exit_code) {
  std::shared_ptr<CallSink> sink;
  sandbox::Result result;
  {
    absl::MutexLock lock(&mutex_);
    Job& job = *jobs_.at(call_id);
    if (job.ended) return;
    job.ended = true;
    job.result.set_outcome(outcome);
    job.result.set_exit_code(exit_code);
    result = job.result;
    sink = job.sink;
  }
  if (sink != nullptr) sink->OnEnd(result);
}

void ScriptedSubstrate::Forget(const std::string& call_id) {
  absl::MutexLock lock(&mutex_);
  jobs_.erase(call_id);
}
void ScriptedSubstrate::LoseStarts(bool lose) {
  absl::MutexLock lock(&mutex_);
  lose_starts_ = lose;
}

int ScriptedSubstrate::starts(const std::string& call_id) const {
  absl::MutexLock lock(&mutex_);
  auto found = starts_.find(call_id);
  return found == starts_.end() ? 0 : found->second;
}
int ScriptedSubstrate::reserved() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(reserved_.size());
}
int ScriptedSubstrate::creates() const {
  absl::MutexLock lock(&mutex_);
  return creates_;
}
int ScriptedSubstrate::stops() const {
  absl::MutexLock lock(&mutex_);
  return stops_;
}
int ScriptedSubstrate::thaws() const {
  absl::MutexLock lock(&mutex_);
  return thaws_;
}
int ScriptedSubstrate::snapshots() const {
  absl::MutexLock lock(&mutex_);
  return snapshots_;
}
void ScriptedSubstrate::SetFiles(const std::string& id, std::string files) {
  absl::MutexLock lock(&mutex_);
  files_[id] = std::move(files);
}
void ScriptedSubstrate::KeepIn(const std::string& directory) {
  absl::MutexLock lock(&mutex_);
  directory_ = directory;
  ASSERT_EQ(base::MakeDirs(directory), absl::OkStatus());
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    const std::string text = *base::ReadFile(file.path());
    const size_t line = text.find('\n');
    images_[text.substr(0, line)] = text.substr(line + 1);
  }
}
std::string ScriptedSubstrate::FileOf(const std::string& image) const {
  return fmt::format("{}/{:x}", directory_, std::hash<std::string>()(image));
}
std::string ScriptedSubstrate::files_of(const std::string& id) const {
  absl::MutexLock lock(&mutex_);
  auto found = files_.find(id);
  return found == files_.end() ? "" : found->second;
}
std::vector<std::string> ScriptedSubstrate::images() const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::string> names;
  for (const auto& [name, files] : images_) names.push_back(name);
  return names;
}
uint64_t ScriptedSubstrate::acknowledged(const std::string& call_id, sandbox::Stream stream) const {
  absl::MutexLock lock(&mutex_);
  return jobs_.at(call_id)->acknowledged[stream];
}
bool ScriptedSubstrate::released(const std::string& call_id) const {
  absl::MutexLock lock(&mutex_);
  return jobs_.at(call_id)->released;
}
std::string ScriptedSubstrate::stdin_of(const std::string& call_id) const {
  absl::MutexLock lock(&mutex_);
  return jobs_.at(call_id)->stdin;
}
sandbox::ExecuteRequest ScriptedSubstrate::request_of(const std::string& call_id) const {
  absl::MutexLock lock(&mutex_);
  return jobs_.at(call_id)->request;
}
std::vector<int> ScriptedSubstrate::signals_of(const std::string& call_id) const {
  absl::MutexLock lock(&mutex_);
  return jobs_.at(call_id)->signals;
}

sandbox::Limits ScriptedSubstrate::default_limits() const {
  sandbox::Limits limits;
  limits.set_timeout_ms(10000);
  limits.set_memory_bytes(1 << 28);
  limits.set_pids(32);
  limits.set_cpu_ms(10000);
  limits.set_file_bytes(1 << 24);
  limits.set_disk_bytes(1 << 26);
  limits.set_open_files(64);
  return limits;
}

sandbox::TierInfo ScriptedSubstrate::Describe() {
  sandbox::TierInfo info;
  info.set_tier(tier());
  info.set_usable(true);
  *info.mutable_default_limits() = default_limits();
  (*info.mutable_verbs())["snapshot"] = "yes";
  return info;
}
absl::StatusOr<std::string> ScriptedSubstrate::CreateSandbox(
    const std::string& id, const sandbox::SandboxSpec& spec,
    std::vector<sandbox::StepTime>* steps) {
  absl::MutexLock lock(&mutex_);
  if (!create_.ok()) return create_;
  if (!spec.image().empty() && images_.count(spec.image()) == 0)
    return absl::NotFoundError("no image " + spec.image());
  ++creates_;
  files_[id] = spec.image().empty() ? "" : images_.at(spec.image());
  sandbox::StepTime step;
  step.set_step("script");
  steps->push_back(step);
  return fmt::format("box/{}", id);
}
absl::Status ScriptedSubstrate::RecoverSandbox(const SandboxRef&) {
  absl::MutexLock lock(&mutex_);
  return recover_;
}
absl::Status ScriptedSubstrate::StopSandbox(const SandboxRef&) {
  absl::MutexLock lock(&mutex_);
  ++stops_;
  return absl::OkStatus();
}
absl::Status ScriptedSubstrate::PauseSandbox(const SandboxRef&) { return absl::OkStatus(); }
absl::Status ScriptedSubstrate::ResumeSandbox(const SandboxRef&) {
  absl::MutexLock lock(&mutex_);
  ++thaws_;
  return absl::OkStatus();
}
absl::StatusOr<SnapshotImage> ScriptedSubstrate::SnapshotSandbox(const SandboxRef& sandbox,
                                                                 const std::string& name) {
  absl::MutexLock lock(&mutex_);
  if (!snapshot_.ok()) return snapshot_;
  ++snapshots_;
  images_[name] = files_[sandbox.id];
  if (!directory_.empty())
    RETURN_IF_ERROR(base::WriteFileAtomic(FileOf(name), name + "\n" + images_[name]));
  SnapshotImage made;
  made.image.set_name(name);
  made.image.set_digest("digest of " + images_[name]);
  return made;
}
absl::StatusOr<std::vector<sandbox::Image>> ScriptedSubstrate::ListImages() {
  absl::MutexLock lock(&mutex_);
  std::vector<sandbox::Image> images;
  for (const auto& [name, files] : images_) images.emplace_back().set_name(name);
  return images;
}
absl::Status ScriptedSubstrate::RemoveImage(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  if (!directory_.empty()) std::filesystem::remove(FileOf(name));
  return images_.erase(name) != 0 ? absl::OkStatus() : absl::NotFoundError("no image " + name);
}
absl::StatusOr<std::string> ScriptedSubstrate::Reserve(const SandboxRef&) {
  absl::MutexLock lock(&mutex_);
  if (!reserve_.ok()) return reserve_;
  return *reserved_.insert(fmt::format("p{}", next_++)).first;
}
void ScriptedSubstrate::Unreserve(const std::string& placement) {
  absl::MutexLock lock(&mutex_);
  reserved_.erase(placement);
}

absl::StatusOr<std::unique_ptr<RunningCall>> ScriptedSubstrate::Start(
    const SandboxRef& sandbox, const std::string& placement,
    const sandbox::ExecuteRequest& request, std::unique_ptr<CallSink> sink) {
  absl::MutexLock lock(&mutex_);
  if (!start_.ok()) return start_;
  if (reserved_.count(placement) == 0)
    return absl::InternalError("not a reservation: " + placement);
  auto job = std::make_shared<Job>();
  job->placement = placement;
  job->request = request;
  job->sink = std::move(sink);
  if (!lose_starts_) {
    reserved_.erase(placement);
    ++starts_[request.call_id()];
    files_[sandbox.id] += request.call_id() + ";";
    jobs_[request.call_id()] = job;
  }
  return std::make_unique<Handle>(this, job);
}

Attachment ScriptedSubstrate::Reattach(const SandboxRef&, const std::string& placement,
                                       const std::string& call_id, OutputPosition from,
                                       std::unique_ptr<CallSink>& sink) {
  Attachment attachment;
  std::shared_ptr<Job> job;
  std::shared_ptr<CallSink> target;
  {
    absl::MutexLock lock(&mutex_);
    auto found = jobs_.find(call_id);
    if (found == jobs_.end() || found->second->placement != placement) {
      attachment.state =
          reserved_.count(placement) != 0 ? AttachState::kNeverStarted : AttachState::kLost;
      attachment.reason = "its supervisor is gone";
      return attachment;
    }
    job = found->second;
    job->sink = target = std::move(sink);
  }
  attachment.state = AttachState::kAttached;
  attachment.call = std::make_unique<Handle>(this, job);
  for (auto [stream, offset] : {std::pair{sandbox::STREAM_STDOUT, from.stdout_offset},
                                std::pair{sandbox::STREAM_STDERR, from.stderr_offset}}) {
    if (offset < job->output[stream].size())
      target->OnOutput(stream, offset, job->output[stream].substr(offset));
  }
  if (job->ended) target->OnEnd(job->result);
  return attachment;
}

// ---- watches

class ScriptedSubstrate::ScriptedWatch final : public FileWatch {
 public:
  explicit ScriptedWatch(ScriptedSubstrate* tier)
      : tier_(tier), ready_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    absl::MutexLock lock(&tier_->mutex_);
    tier_->watches_.insert(this);
  }
  ~ScriptedWatch() override {
    absl::MutexLock lock(&tier_->mutex_);
    tier_->watches_.erase(this);
  }
  // The lock of the tier is held.
  void Put(const absl::StatusOr<sandbox::WatchEvent>& event) {
    events_.push_back(event);
    ::eventfd_write(ready_.get(), 1);
  }

  int fd() const override { return ready_.get(); }
  absl::StatusOr<std::optional<sandbox::WatchEvent>> TryNext() override {
    absl::MutexLock lock(&tier_->mutex_);
    eventfd_t count = 0;
    ::eventfd_read(ready_.get(), &count);
    if (events_.empty()) return std::nullopt;
    absl::StatusOr<sandbox::WatchEvent> event = std::move(events_.front());
    events_.pop_front();
    if (!event.ok()) return event.status();
    return *std::move(event);
  }

 private:
  ScriptedSubstrate* const tier_;
  const base::UniqueFd ready_;
  std::deque<absl::StatusOr<sandbox::WatchEvent>> events_;
};

absl::StatusOr<std::unique_ptr<FileWatch>> ScriptedSubstrate::Watch(const SandboxRef&,
                                                                    const std::string& path, bool) {
  if (path == "/none") return absl::NotFoundError("watch /none");
  return std::make_unique<ScriptedWatch>(this);
}

void ScriptedSubstrate::Happen(const absl::StatusOr<sandbox::WatchEvent>& event) {
  absl::MutexLock lock(&mutex_);
  for (ScriptedWatch* watch : watches_) watch->Put(event);
}

int ScriptedSubstrate::watches() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(watches_.size());
}

}  // namespace reprise::sandboxd
