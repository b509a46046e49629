#include "tests/integration/weights_support.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

namespace reprise::rollout {

namespace fs = std::filesystem;

void WriteCheckpoint(const std::string& directory, int variant) {
  fs::create_directories(directory);
  for (const char* name : {"config.json", "tokenizer.json", "model.safetensors"}) {
    fs::copy_file(fs::path(kTinyModel) / name, fs::path(directory) / name);
  }
  std::string path = directory + "/model.safetensors";
  std::string bytes = *base::ReadFile(path);
  uint64_t header = 0;
  std::copy_n(bytes.data(), sizeof(header), reinterpret_cast<char*>(&header));
  const Json tensor = Json::parse(bytes.substr(sizeof(header), header)).at("head.weight");
  ASSERT_EQ(tensor.at("dtype"), "BF16");
  const size_t data = sizeof(header) + header;
  for (size_t at = tensor["data_offsets"][0]; at < tensor["data_offsets"][1]; at += 2) {
    // The low byte of a BF16 value is the end of its mantissa.
    bytes[data + at] = static_cast<char>(bytes[data + at] ^ (variant & 0x0f));
  }
  std::ofstream(path, std::ios::binary) << bytes;
}

Rolloutd::Rolloutd(const std::string& state, const std::string& fail_point) {
  const std::string address = "unix:" + state + "/rolloutd.sock";
  std::vector<std::string> words = {std::string(REPRISE_BIN_DIR) + "/rolloutd",
                                    "--state",
                                    state,
                                    "--durability",
                                    "os",
                                    "--threads",
                                    "1"};
  if (!fail_point.empty()) words.insert(words.end(), {"--fail-point", fail_point});
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const std::string log = state + "/log";
  pid_ = ::fork();
  if (pid_ == 0) {
    int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    ::dup2(out, STDOUT_FILENO);
    ::dup2(out, STDERR_FILENO);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A restarted daemon goes on with its jobs at once: the test must be there before they end.
  for (const char* backoff :
       {GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, GRPC_ARG_MIN_RECONNECT_BACKOFF_MS,
        GRPC_ARG_MAX_RECONNECT_BACKOFF_MS}) {
    arguments.SetInt(backoff, 10);
  }
  stub_ = wire::RolloutService::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(120));
  wire::ListJobsResponse jobs;
  grpc::Status status = stub_->List(&context, wire::ListJobsRequest(), &jobs);
  EXPECT_TRUE(status.ok()) << status.error_message() << *base::ReadFile(log);
}

Rolloutd::~Rolloutd() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void Rolloutd::WaitKilled() {
  int status = 0;
  ASSERT_EQ(::waitpid(pid_, &status, 0), pid_);
  pid_ = -1;
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
}

wire::Job Rolloutd::Submit(const std::string& toml) {
  wire::SubmitRequest request;
  request.set_spec_toml(toml);
  request.set_spec_dir("/");
  wire::Job job;
  grpc::ClientContext context;
  grpc::Status status = stub_->Submit(&context, request, &job);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return job;
}

wire::Job Rolloutd::Get(const std::string& job_id) {
  wire::GetJobRequest request;
  request.set_job_id(job_id);
  wire::Job job;
  grpc::ClientContext context;
  grpc::Status status = stub_->Get(&context, request, &job);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return job;
}

void Rolloutd::Pause(const std::string& job_id) {
  wire::PauseJobRequest request;
  request.set_job_id(job_id);
  wire::Job job;
  grpc::ClientContext context;
  grpc::Status status = stub_->Pause(&context, request, &job);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

void Rolloutd::Resume(const std::string& job_id) {
  wire::ResumeJobRequest request;
  request.set_job_id(job_id);
  wire::Job job;
  grpc::ClientContext context;
  grpc::Status status = stub_->Resume(&context, request, &job);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

void Rolloutd::WaitTokens(const std::string& job_id, uint64_t tokens) {
  wire::Job job = Get(job_id);
  for (; job.sampled_tokens() < tokens && job.state() == "running"; job = Get(job_id)) {
  }
  EXPECT_GE(job.sampled_tokens(), tokens) << "job is " << job.state() << ": " << job.message();
}

grpc::Status Rolloutd::Load(const std::string& directory, wire::LoadWeightsAnswer* answer,
                            const std::string& running, const std::string& kv, uint64_t version) {
  wire::LoadWeightsRequest request;
  request.set_directory(directory);
  request.set_running(running);
  request.set_kv(kv);
  request.set_version(version);
  grpc::ClientContext context;
  return stub_->LoadWeights(&context, request, answer);
}

std::vector<Json> Rolloutd::Finish(const std::string& job_id) {
  wire::ExportRequest request;
  request.set_job_id(job_id);
  request.set_follow(true);
  grpc::ClientContext context;
  auto reader = stub_->Export(&context, request);
  std::vector<Json> records;
  for (wire::ExportedTrajectory one; reader->Read(&one);) {
    records.push_back(Json::parse(one.json()));
  }
  grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  // The job's state follows its last record.
  wire::GetJobRequest watched;
  watched.set_job_id(job_id);
  grpc::ClientContext watching;
  auto states = stub_->Watch(&watching, watched);
  for (wire::Job job; states->Read(&job) && job.state() == "running";) {
  }
  watching.TryCancel();
  return records;
}

std::string HotJob(const std::string& id, const std::string& directory, int tasks, int in_flight,
                   const std::string& more) {
  std::ofstream file(directory + "/tasks.jsonl");
  for (int i = 0; i < tasks; ++i) {
    file << Json{{"id", fmt::format("task-{}", i)},
                 {"prompt", fmt::format("What is {} + {}?", 17 * i + 3, 5 * i + 40)},
                 {"reward", {{"kind", "match"}, {"answer", "x"}}}}
         << "\n";
  }
  return fmt::format(
      "id = \"{}\"\nmodel = \"{}\"\ntasks = \"{}/tasks.jsonl\"\ngroup_size = 2\nseed = 5\n"
      "thinking = \"chat\"\n[sampling]\ntemperature = 10.0\n[limits]\nmax_tokens = 120\n"
      "max_turns = 1\nmax_in_flight = {}\n{}",
      id, kTinyModel, directory, in_flight, more);
}

void CheckAgainstWeights(
    const Json& record, engine::Engine* engine,
    const std::map<uint64_t, std::shared_ptr<const engine::Weights>>& weights) {
  SCOPED_TRACE(record["rollout_id"].get<std::string>());
  const auto ids = record["token_ids"].get<std::vector<int32_t>>();
  const Json& switches = record["weight_switches"];
  engine::SamplingParams sampling;
  sampling.temperature = record["temperature"];
  sampling.top_p = record["top_p"];
  sampling.seed = record["seed"];
  auto sequence = engine->NewSequence();
  auto feed = [&](uint64_t version, size_t end, bool sample) {
    engine::StepItem item;
    item.sequence = sequence.get();
    item.tokens = absl::MakeConstSpan(ids).subspan(static_cast<size_t>(sequence->length()),
                                                   end - static_cast<size_t>(sequence->length()));
    item.weights = weights.at(version).get();
    item.sampling = sample ? &sampling : nullptr;
    if (item.tokens.empty()) return item;
    absl::Status status = engine->Step(absl::MakeSpan(&item, 1));
    EXPECT_TRUE(status.ok()) << status;
    return item;
  };
  uint64_t version = switches.empty() ? record["version_spans"][0][0].get<uint64_t>() : 0;
  size_t next = 0;
  for (size_t i = record["prompt_len"]; i < ids.size(); ++i) {
    for (; next < switches.size() && switches[next]["at_token"] <= i; ++next) {
      const size_t kept = switches[next]["kv_kept"];
      if (kept == 0) {
        sequence = engine->NewSequence();
      } else {
        ASSERT_LE(sequence->length(), static_cast<int64_t>(kept));
        feed(version, kept, false);
      }
      version = switches[next]["version"];
    }
    if (record["loss_mask"][i] == 0) continue;
    const engine::StepItem item = feed(version, i, true);
    ASSERT_EQ(record["weight_versions"][i], version) << "token " << i;
    ASSERT_EQ(item.sampled_id, ids[i]) << "token " << i;
    ASSERT_EQ(item.logprob, record["logprobs"][i].get<float>()) << "token " << i;
  }
}

}  // namespace reprise::rollout
