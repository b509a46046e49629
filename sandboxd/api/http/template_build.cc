#include "sandboxd/api/http/template_build.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "replay/sha256.h"
#include "sandboxd/api/http/box_files.h"
#include "sandboxd/api/http/e2b_box.h"

namespace reprise::sandboxd::http {
namespace {

constexpr size_t kBuildThreads = 4, kBuildsMax = 256;  // at one time; that are known
constexpr size_t kStepsMax = 1000;
constexpr size_t kStepOutputMax = 1u << 20;  // that goes to the log, of each stream
constexpr size_t kLogLinesMax = 100'000;     // of one build; the rest is left out
constexpr size_t kReadBytes = 64u << 10;
constexpr uint64_t kStepTimeoutMs = 3600'000;
constexpr int64_t kBuildSeconds = 6 * 3600;  // after which a build that was forgotten goes
constexpr char kRootUser[] = "root";
constexpr char kImagePrefix[] = "templates/";
constexpr char kCopyDir[] = "/tmp/.reprise-copy";

// With bash as E2B's builds have it, where there is one. Arguments: command.
constexpr char kRunScript[] =
    "if command -v bash >/dev/null; then exec bash -l -c \"$1\"; fi; exec sh -l -c \"$1\"";
// Arguments: archive, source, target, owner, mode (of files). A directory's content goes into the
// target; so do the files of a pattern, and a file when the target ends with a slash.
constexpr char kCopyScript[] = R"sh(
set -e
from=$(dirname "$1")/files
rm -rf "$from" && mkdir -p "$from"
tar -xof "$1" -C "$from" 2>/dev/null || tar -xozf "$1" -C "$from"
[ -z "$4" ] || chown -R "$4" "$from"
[ -z "$5" ] || find "$from" -type f -exec chmod "$5" {} +
cd "$from"
if [ -d "$2" ] && [ ! -L "$2" ]; then
  mkdir -p "$3" && cp -a "$2/." "$3/"
elif [ -e "$2" ] || [ -L "$2" ]; then
  case $3 in
    */) mkdir -p "$3" ;;
    *) mkdir -p "$(dirname "$3")" ;;
  esac
  cp -a "$2" "$3"
else
  mkdir -p "$3"
  for each in $2; do cp -a "$each" "$3/"; done
fi
rm -rf "$(dirname "$1")"
)sh";

// In the form of a UUID, as which SDKs read it.
std::string NewBuildId() {
  const std::string hex = base::RandomHex(16);
  const std::string_view digits = hex;
  return fmt::format("{}-{}-{}-{}-{}", digits.substr(0, 8), digits.substr(8, 4),
                     digits.substr(12, 4), digits.substr(16, 4), digits.substr(20));
}

absl::Status CheckSteps(const std::vector<BuildStep>& steps) {
  if (steps.size() > kStepsMax)
    return absl::InvalidArgumentError(fmt::format("a build has at most {} steps", kStepsMax));
  for (size_t i = 0; i < steps.size(); ++i) {
    const BuildStep& step = steps[i];
    auto needs = [&](bool fits, std::string_view what) {
      return fits ? absl::OkStatus()
                  : absl::InvalidArgumentError(
                        fmt::format("step {}: {} needs {}", i + 1, step.type, what));
    };
    absl::Status status;
    if (step.type == "RUN") {
      status = needs(!step.args.empty(), "a command");
    } else if (step.type == "COPY") {
      status = needs(step.args.size() >= 2 && !step.files_hash.empty(), "source, target and files");
    } else if (step.type == "ENV") {
      status = needs(!step.args.empty() && step.args.size() % 2 == 0, "names with their values");
    } else if (step.type == "WORKDIR" || step.type == "USER") {
      status = needs(step.args.size() == 1, "one argument");
    } else {
      status = absl::UnimplementedError(
          fmt::format("step {}: {} is not offered: use RUN, COPY, ENV, WORKDIR and USER", i + 1,
                      step.type.substr(0, 64)));
    }
    RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

}  // namespace

// One build, on one thread.
class TemplateBuilds::Run {
 public:
  Run(TemplateBuilds* builds, std::string id, BuildOrder order)
      : builds_(builds), surface_(builds->surface_), id_(std::move(id)), order_(std::move(order)) {}

  absl::Status Do() {
    const absl::Status status = Steps();
    if (!box_.empty()) {
      (void)surface_.calls->Stop(box_);
      (void)builds_->leases_->Remove(box_);
    }
    return status;
  }
  // The number of the step that Do ended in.
  std::string step() const { return fmt::format("{}", at_); }

 private:
  absl::Status Steps() {
    RETURN_IF_ERROR(Base());
    std::string digest = replay::Hex(replay::Sha256Of(template_.SerializeAsString()));
    // What every step leaves in the template, and how far the images of earlier builds reach.
    std::vector<std::string> digests;
    size_t known = 0;
    bool forced = order_.force;
    for (const BuildStep& step : order_.steps) {
      digest = Digest(digest, step);
      digests.push_back(digest);
      forced = forced || step.force;
      if (forced || known + 1 != digests.size()) continue;
      if (!Makes(step)) {
        ++known;
      } else {
        ASSIGN_OR_RETURN(const std::string image, builds_->store_->StepImage(digest));
        if (image.empty() || !Exists(image)) continue;
        template_.set_image(image);
        ++known;
      }
    }
    for (at_ = 1; at_ <= order_.steps.size(); ++at_) {
      const BuildStep& step = order_.steps[at_ - 1];
      const bool cached = at_ <= known;
      Say("info", fmt::format("[{}{}/{}] {} {}", cached ? "CACHED " : "", at_, order_.steps.size(),
                              step.type, fmt::join(step.args, " ")));
      Note(step);
      if (cached) continue;
      if (step.type == "WORKDIR") RETURN_IF_ERROR(Shell({"mkdir", "-p", template_.working_dir()}));
      if (step.type == "RUN") RETURN_IF_ERROR(RunStep(step));
      if (step.type == "COPY") RETURN_IF_ERROR(CopyStep(step));
      if (Makes(step)) RETURN_IF_ERROR(Keep(digests[at_ - 1]));
    }
    template_.set_name(order_.name);
    template_.set_build_id(id_);
    if (!order_.start_command.empty()) template_.set_start_command(order_.start_command);
    if (!order_.ready_command.empty()) template_.set_ready_command(order_.ready_command);
    template_.set_built_us(base::WallMicros());
    return builds_->store_->Put(template_);
  }

  // What the build begins with.
  absl::Status Base() {
    if (!order_.from_template.empty()) {
      const absl::StatusOr<TemplateStore::Template> found =
          builds_->store_->Find(order_.from_template);
      if (found.ok()) {
        template_ = *found;
        template_.clear_name();  // what is left is what the steps depend on
        template_.clear_build_id();
        template_.clear_built_us();
        return absl::OkStatus();
      }
      if (!absl::IsNotFound(found.status())) return found.status();
    }
    const std::string image =
        order_.from_template.empty() ? order_.from_image : order_.from_template;
    template_.set_image(image);
    if (Exists(image)) return absl::OkStatus();
    return absl::NotFoundError(fmt::format(
        "image {} is not known here: reprise image import {} SOURCE makes it known", image, image));
  }

  bool Exists(const std::string& image) const {
    const auto tier = surface_.sandboxes->tiers().find(sandbox::TIER_CONTAINER);
    if (tier == surface_.sandboxes->tiers().end()) return false;
    const absl::StatusOr<std::vector<sandbox::Image>> images = tier->second->ListImages();
    if (!images.ok()) return false;
    return std::any_of(images->begin(), images->end(),
                       [&](const sandbox::Image& each) { return each.name() == image; });
  }

  // Whether a step changes files; the others change how the next ones run.
  static bool Makes(const BuildStep& step) {
    return step.type == "RUN" || step.type == "COPY" || step.type == "WORKDIR";
  }

  static std::string Digest(const std::string& before, const BuildStep& step) {
    replay::Sha256 hash;
    auto add = [&](std::string_view text) { hash.Add(fmt::format("{}:{}", text.size(), text)); };
    add(before);
    add(step.type);
    for (const std::string& argument : step.args) add(argument);
    add(step.files_hash);
    return replay::Hex(hash.Finish());
  }

  // What a step means for those after it, and for the template's sandboxes.
  void Note(const BuildStep& step) {
    if (step.type == "USER") template_.set_user(step.args[0]);
    if (step.type == "WORKDIR") template_.set_working_dir(CleanPath(step.args[0], Directory()));
    if (step.type != "ENV") return;
    for (size_t i = 0; i + 1 < step.args.size(); i += 2) {
      auto* env = template_.mutable_env();
      auto same = std::find_if(env->begin(), env->end(),
                               [&](const auto& each) { return each.name() == step.args[i]; });
      auto* variable = same == env->end() ? env->Add() : &*same;
      variable->set_name(step.args[i]);
      variable->set_value(step.args[i + 1]);
    }
  }

  std::string Directory() const {
    return template_.working_dir().empty() ? "/" : template_.working_dir();
  }

  // The container, made when a step first needs it.
  absl::Status NeedBox() {
    if (!box_.empty()) return absl::OkStatus();
    sandbox::CreateRequest create;
    create.set_sandbox_id(fmt::format("build-{}", id_));
    create.mutable_spec()->set_tier(sandbox::TIER_CONTAINER);
    create.mutable_spec()->set_image(template_.image());
    RETURN_IF_ERROR(surface_.sandboxes->Create(create).status());
    box_ = create.sandbox_id();
    return Prolong(builds_->leases_, box_, LeaseTable::Lease(), kBuildSeconds);
  }

  // A command of the build; what it wrote goes to the log.
  absl::Status Shell(const std::vector<std::string>& argv, const std::string& user = kRootUser) {
    RETURN_IF_ERROR(NeedBox());
    sandbox::ExecuteRequest call;
    call.set_sandbox_id(box_);
    call.set_call_id(fmt::format("{}/{}", box_, ++calls_));
    for (const std::string& word : argv) call.add_argv(word);
    for (const auto& variable : template_.env()) {
      sandbox::EnvVar* env = call.add_env();
      env->set_name(variable.name());
      env->set_value(variable.value());
    }
    call.set_user(user);
    call.set_working_dir(argv.front() == "mkdir" ? "/" : Directory());
    call.mutable_limits()->set_timeout_ms(kStepTimeoutMs);
    ASSIGN_OR_RETURN(const Collected said,
                     CollectNow(surface_.calls->Execute(std::move(call)), kStepOutputMax));
    for (const auto& [text, level] : {std::pair(&said.out, "info"), {&said.err, "warn"}}) {
      for (absl::string_view line :
           absl::StrSplit(absl::string_view(*text), '\n', absl::SkipEmpty()))
        Say(level, std::string(line));
    }
    if (said.result.outcome() == sandbox::OUTCOME_EXITED && said.result.exit_code() == 0)
      return absl::OkStatus();
    std::string why = sandbox::Outcome_Name(said.result.outcome());
    if (said.result.outcome() == sandbox::OUTCOME_EXITED)
      why = fmt::format("exit status {}", said.result.exit_code());
    if (!said.result.message().empty()) why += fmt::format(": {}", said.result.message());
    return absl::AbortedError(fmt::format("step {} failed: {}", at_, why));
  }

  absl::Status RunStep(const BuildStep& step) {
    const std::string user = step.args.size() > 1 ? step.args[1] : template_.user();
    return Shell({"/bin/sh", "-c", kRunScript, "sh", step.args[0]}, UserOf(user));
  }

  absl::Status CopyStep(const BuildStep& step) {
    ASSIGN_OR_RETURN(const std::string archive, builds_->store_->UploadPath(step.files_hash));
    std::ifstream file(archive, std::ios::binary);
    if (!file)
      return absl::NotFoundError(
          fmt::format("step {}: the files of {} were not uploaded", at_, step.args[0]));
    RETURN_IF_ERROR(NeedBox());
    ASSIGN_OR_RETURN(const BoxFiles files, BoxFiles::Open(surface_.sandboxes, box_));
    const std::string inside = fmt::format("{}/archive", kCopyDir);
    RETURN_IF_ERROR(files.Write(inside, [&]() -> absl::StatusOr<std::string> {
      std::string piece(kReadBytes, '\0');
      file.read(piece.data(), static_cast<std::streamsize>(piece.size()));
      piece.resize(static_cast<size_t>(file.gcount()));
      return piece;
    }));
    std::string target = CleanPath(step.args[1], Directory());
    if (absl::EndsWith(step.args[1], "/") && target != "/") target += "/";
    const auto argument = [&](size_t i) { return step.args.size() > i ? step.args[i] : ""; };
    const std::string owner = argument(2).empty() ? UserOf(template_.user()) : argument(2);
    return Shell({"/bin/sh", "-c", kCopyScript, "sh", inside, step.args[0], target,
                  owner == kRootUser ? "" : owner, argument(3)});
  }

  // E2B's user is called "user", which images do not have.
  static std::string UserOf(const std::string& user) {
    return user.empty() || user == "user" ? kRootUser : user;
  }

  // The files after this step, for the builds to come.
  absl::Status Keep(const std::string& digest) {
    sandbox::SnapshotRequest snapshot;
    snapshot.set_sandbox_id(box_);
    // Another build may be at the same step.
    snapshot.set_name(fmt::format("{}{}:{}", kImagePrefix, digest.substr(0, 32), id_));
    ASSIGN_OR_RETURN(const sandbox::SnapshotInfo taken, surface_.calls->Snapshot(snapshot));
    template_.set_image(taken.image().name());
    return builds_->store_->PutStepImage(digest, template_.image());
  }

  void Say(std::string level, std::string message) {
    builds_->Log(id_, std::move(level), std::move(message), step());
  }

  TemplateBuilds* const builds_;
  const Surface surface_;
  const std::string id_;
  const BuildOrder order_;
  TemplateStore::Template template_;
  std::string box_;
  size_t at_ = 0, calls_ = 0;
};

TemplateBuilds::TemplateBuilds(const Surface& surface, LeaseTable* leases, TemplateStore* store)
    : surface_(surface), leases_(leases), store_(store), pool_(kBuildThreads, kBuildsMax) {}

TemplateBuilds::~TemplateBuilds() { Shutdown(); }

void TemplateBuilds::Shutdown() { pool_.Close(); }

std::string TemplateBuilds::Announce(const std::string& name) {
  const std::string id = NewBuildId();
  absl::MutexLock lock(&mutex_);
  // Those that have ended make room.
  for (auto build = builds_.begin(); builds_.size() >= kBuildsMax && build != builds_.end();) {
    const BuildState::Phase phase = build->second.state.phase;
    const bool ended = phase == BuildState::Phase::kReady || phase == BuildState::Phase::kError ||
                       !build->second.ordered;
    build = ended ? builds_.erase(build) : std::next(build);
  }
  builds_[id].name = name;
  return id;
}

absl::StatusOr<std::string> TemplateBuilds::NameOf(const std::string& build_id) {
  absl::MutexLock lock(&mutex_);
  const auto found = builds_.find(build_id);
  if (found != builds_.end()) return found->second.name;
  return absl::NotFoundError(fmt::format(
      "no build {} is known: it was never asked for, or the daemon was restarted", build_id));
}

absl::Status TemplateBuilds::Order(const std::string& build_id, BuildOrder order) {
  ASSIGN_OR_RETURN(order.name, NameOf(build_id));
  if (order.from_image.empty() == order.from_template.empty())
    return absl::InvalidArgumentError("give one of fromImage and fromTemplate");
  RETURN_IF_ERROR(CheckSteps(order.steps));
  std::shared_ptr<absl::Mutex> one_at_a_time;
  {
    absl::MutexLock lock(&mutex_);
    Build& build = builds_[build_id];
    if (build.ordered) return absl::OkStatus();
    build.ordered = true;
    std::shared_ptr<absl::Mutex>& mine = names_[order.name];
    if (mine == nullptr) mine = std::make_shared<absl::Mutex>();
    one_at_a_time = mine;
  }
  const bool posted = pool_.TryPost([this, build_id, one_at_a_time, order = std::move(order)] {
    absl::MutexLock turn(one_at_a_time.get());
    {
      absl::MutexLock lock(&mutex_);
      builds_[build_id].state.phase = BuildState::Phase::kBuilding;
    }
    Run run(this, build_id, order);
    const absl::Status status = run.Do();
    Finish(build_id, status, run.step());
  });
  if (posted) return absl::OkStatus();
  const absl::Status busy = absl::UnavailableError("too many builds wait: try again");
  Finish(build_id, busy, "");
  return busy;
}

absl::StatusOr<BuildState> TemplateBuilds::State(const std::string& build_id) {
  RETURN_IF_ERROR(NameOf(build_id).status());
  absl::MutexLock lock(&mutex_);
  return builds_[build_id].state;
}

void TemplateBuilds::Log(const std::string& build_id, std::string level, std::string message,
                         std::string step) {
  absl::MutexLock lock(&mutex_);
  std::vector<BuildLog>& log = builds_[build_id].state.log;
  if (log.size() >= kLogLinesMax) return;
  log.push_back({base::WallMicros(), std::move(level), std::move(message), std::move(step)});
}

void TemplateBuilds::Finish(const std::string& build_id, const absl::Status& status,
                            const std::string& step) {
  absl::MutexLock lock(&mutex_);
  BuildState& state = builds_[build_id].state;
  state.phase = status.ok() ? BuildState::Phase::kReady : BuildState::Phase::kError;
  state.reason = std::string(status.message());
  state.failed_step = status.ok() ? "" : step;
  state.log.push_back({base::WallMicros(), status.ok() ? "info" : "error",
                       status.ok() ? "the template is built" : state.reason, state.failed_step});
}

}  // namespace reprise::sandboxd::http
