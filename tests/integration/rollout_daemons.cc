#include "tests/integration/rollout_daemons.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <sstream>

#include "rollout/run_job.h"

namespace reprise::rollout {

std::string JobTop(const std::string& id, uint64_t seed, int first, int limit, int group_size) {
  return fmt::format(
      "id = \"{}\"\nmodel = \"{}\"\ntasks = \"{}/tasks/test.jsonl\"\nfirst = {}\nlimit = {}\n"
      "group_size = {}\nseed = {}\nthinking = \"chat\"\n",
      id, kTinyModel, kTinyModel, first, limit, group_size, seed);
}

std::string ShTool(const std::string& command, const std::string& limits) {
  return fmt::format(
      "[[tools]]\ndefinition = \"{}/tool_sh.json\"\ncommand = {}\nlimits = {{ {} }}\n", kTinyModel,
      command, limits);
}

Daemons::Daemons(const std::string& state, int threads, const std::string& helper_dir,
                 const RetentionOptions& retention)
    : files_("job") {
  EmbeddedOptions options;
  options.state_dir = state;
  options.durability = storage::Durability::kOs;
  options.threads = threads;
  options.helper_dir = helper_dir;
  options.retention = retention;
  auto embedded = Embedded::Start(options);
  EXPECT_TRUE(embedded.ok()) << embedded.status();
  embedded_ = *std::move(embedded);
  stub_ = wire::RolloutService::NewStub(
      grpc::CreateChannel(address(), grpc::InsecureChannelCredentials()));
}

wire::Job Daemons::Submit(const std::string& toml) {
  wire::SubmitRequest request;
  request.set_spec_toml(toml);
  request.set_spec_dir(files_.path());
  wire::Job job;
  grpc::ClientContext context;
  grpc::Status status = stub_->Submit(&context, request, &job);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return job;
}

wire::Job Daemons::Get(const std::string& job_id) {
  wire::GetJobRequest request;
  request.set_job_id(job_id);
  wire::Job job;
  grpc::ClientContext context;
  grpc::Status status = stub_->Get(&context, request, &job);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return job;
}

void Daemons::WaitTokens(const std::string& job_id, uint64_t tokens) {
  wire::Job job = Get(job_id);
  for (; job.sampled_tokens() < tokens && job.state() == "running"; job = Get(job_id)) {
  }
  EXPECT_GE(job.sampled_tokens(), tokens) << "job is " << job.state() << ": " << job.message();
}

Daemons::Ended Daemons::Run(const std::string& toml, bool without_timing) {
  return Finish(Submit(toml).job_id(), without_timing);
}

Daemons::Ended Daemons::Finish(const std::string& job_id, bool without_timing) {
  RunJobOptions options;
  options.job_id = job_id;
  options.out_dir = files_.path() + "/out-" + job_id;
  options.without_timing = without_timing;
  auto client = RolloutClient::Connect(address());
  auto summary = FinishJob(client.get(), options);
  EXPECT_TRUE(summary.ok()) << summary.status();
  return summary.ok() ? Read(*summary) : Ended();
}

Daemons::Ended Daemons::Read(const RunJobSummary& summary) {
  Ended ended;
  ended.job = summary.job;
  ended.bytes = *base::ReadFile(summary.output_path);
  std::istringstream lines(ended.bytes);
  for (std::string line; std::getline(lines, line);) ended.records.push_back(Json::parse(line));
  return ended;
}

}  // namespace reprise::rollout
