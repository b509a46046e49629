// Reading of a task set: one JSON object a line.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "base/status_macros.h"
#include "rollout/identity.h"
#include "rollout/job_parts.h"
#include "rollout/text.h"

namespace reprise::rollout {
namespace {

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void ReadMessages(Fields& fields, Task* task) {
  const Json* messages = fields.Raw("messages");
  bool has_prompt = fields.Has("prompt");
  std::string prompt = fields.String("prompt", "");
  if ((messages != nullptr) == has_prompt) {
    fields.Fail("messages", "and prompt: exactly one of the two is needed");
  } else if (has_prompt) {
    task->messages_json = Dump(Json::array({{{"role", "user"}, {"content", prompt}}}));
  } else if (!messages->is_array() || messages->empty()) {
    fields.Fail("messages", "is not an array of messages, or is empty");
  } else {
    task->messages_json = Dump(*messages);
  }
}

// The tools of the job that the task names; all of them when it names none.
void ReadTools(Fields& fields, const JobSpec& job, Task* task) {
  bool some = fields.Has("tools");
  std::vector<std::string> names = fields.Strings("tools", 0, false);
  for (const std::string& name : names) {
    bool known = std::any_of(job.tools.begin(), job.tools.end(),
                             [&](const Tool& tool) { return tool.name() == name; });
    if (!known) {
      fields.Fail("tools", fmt::format("names \"{}\", which is no tool of the job file", name));
    }
  }
  for (const Tool& tool : job.tools) {
    if (!some || std::find(names.begin(), names.end(), tool.name()) != names.end()) {
      task->tools.push_back(&tool);
      task->tools_json += (task->tools_json.empty() ? "[" : ",") + tool.definition();
    }
  }
  if (!task->tools_json.empty()) task->tools_json += "]";
}

absl::Status ReadTask(const Json& json, const std::string& where, const std::string& directory,
                      const sandbox::SandboxSpec& sandbox, const std::optional<RewardSpec>& reward,
                      const JobSpec& job, Task* task) {
  Fields fields(json, where, "");
  task->id = fields.String("id");
  if (task->id.empty() || task->id.size() > 1024) {
    fields.Fail("id", "is empty or too long, allowed: 1..1024 bytes");
  }
  ReadMessages(fields, task);
  ReadTools(fields, job, task);
  if (const Json* metadata = fields.Raw("metadata")) {
    task->metadata_json = Dump(*metadata);
    if (!metadata->is_object()) fields.Fail("metadata", "is not a table, allowed: a table");
  }
  task->task_json = Dump(json);
  engine::ChatOptions options;
  options.mode = job.mode;
  options.effort = job.effort;
  options.tools_json = task->tools_json;
  if (auto prompt = engine::EncodeChat(task->messages_json, options); !prompt.ok()) {
    fields.Fail("messages", fmt::format("do not encode: {}", Message(prompt.status())));
  }
  task->sandbox = sandbox;
  if (auto table = fields.Table("sandbox")) {
    ASSIGN_OR_RETURN(task->sandbox, ReadSandbox(*table, sandbox, directory));
  }
  if (auto table = fields.Table("reward")) {
    ASSIGN_OR_RETURN(task->reward, ReadReward(*table, directory));
  } else if (reward) {
    task->reward = *reward;
  } else {
    fields.Fail("reward",
                "is missing here and in the job file, allowed: kind \"match\", \"command\" or \"http\"");
  }
  return fields.Finish();
}

// The grammars of a task's turns. Tasks with the same tools share them.
class Grammars {
 public:
  explicit Grammars(const JobSpec& job) : job_(job) {}

  absl::Status Set(const std::string& where, Task* task) {
    if (!job_.structured) return absl::OkStatus();
    const bool automatic = job_.tool_choice == "auto";
    if (task->tools.empty()) {
      if (automatic) return absl::OkStatus();
      return absl::InvalidArgumentError(fmt::format(
          "{}: sampling.tool_choice is \"{}\" in the job file, and the task has no tools", where,
          job_.tool_choice));
    }
    auto& [first, later] = known_[task->tools_json];
    if (later == nullptr) {
      engine::GrammarSpec spec;
      spec.mode = job_.mode;
      spec.tools_json = task->tools_json;
      RETURN_IF_ERROR(Compile(where, spec, &later));
      first = later;
      if (!automatic) {
        const bool named = job_.tool_choice != "required";
        spec.choice = named ? engine::CallChoice::kNamed : engine::CallChoice::kRequired;
        if (named) spec.tool = job_.tool_choice;
        RETURN_IF_ERROR(Compile(where, spec, &first));
      }
    }
    task->first_turn = first;
    task->later_turns = later;
    return absl::OkStatus();
  }

 private:
  using Grammar = std::shared_ptr<const engine::AnswerGrammar>;
  static absl::Status Compile(const std::string& where, const engine::GrammarSpec& spec,
                              Grammar* out) {
    auto grammar = engine::AnswerGrammar::Compile(spec);
    if (!grammar.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("{}: sampling.structured: {}", where, Message(grammar.status())));
    }
    *out = *std::move(grammar);
    return absl::OkStatus();
  }

  const JobSpec& job_;
  std::map<std::string, std::pair<Grammar, Grammar>> known_;  // by tools: first turn, later turns
};

}  // namespace

absl::Status ReadTasks(std::string_view text, const std::string& file, const std::string& directory,
                       const sandbox::SandboxSpec& sandbox, const std::optional<RewardSpec>& reward,
                       JobSpec* job) {
  std::set<std::string> ids;
  Grammars grammars(*job);
  int64_t ordinal = 0;
  for (int64_t line = 1; !text.empty(); ++line) {
    size_t end = std::min(text.find('\n'), text.size());
    std::string_view content = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (Strip(content).empty()) continue;
    int64_t index = ordinal++;
    if (index < job->first || (job->limit > 0 && index >= job->first + job->limit)) continue;
    std::string where = fmt::format("{}:{}", file, line);
    if (index >= kMaxGroups) {
      return absl::InvalidArgumentError(
          fmt::format("{}: more than {} tasks, split the task set", where, kMaxGroups));
    }
    auto json = ParseJson(content);
    if (!json.ok()) {
      return absl::InvalidArgumentError(fmt::format("{}: {}", where, Message(json.status())));
    }
    Task task;
    task.group = static_cast<uint32_t>(index);
    task.hash = Hex(Sha256(content));
    RETURN_IF_ERROR(ReadTask(*json, where, directory, sandbox, reward, *job, &task));
    RETURN_IF_ERROR(grammars.Set(where, &task));
    if (!ids.insert(task.id).second) {
      return absl::InvalidArgumentError(
          fmt::format("{}: id \"{}\" was used by an earlier task", where, task.id));
    }
    job->tasks.push_back(std::move(task));
  }
  if (job->tasks.empty()) {
    return absl::InvalidArgumentError(fmt::format(
        "{}: has {} tasks, and first = {} leaves none of them", file, ordinal, job->first));
  }
  return absl::OkStatus();
}

}  // namespace reprise::rollout
