// A directory with a job's files for tests: the tiny model under its own name, a task set, and the
// job file as text.
#pragma once

#include <filesystem>
#include <string>

#include <gtest/gtest.h>

#include "base/fd.h"
#include "rollout/job.h"

namespace reprise::rollout {

inline const char kTinyModel[] = REPRISE_SOURCE_DIR "/examples/tiny-v4";

// Keys of the top table; tables are added behind it.
inline const char kJobTop[] = R"(id = "j"
model = "model"
tasks = "tasks.jsonl"
seed = 1
thinking = "chat"
)";

inline const char kShTool[] = R"(
[[tools]]
name = "sh"
parameters = '{"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}'
command = ["/bin/sh", "-c", "{command}"]
)";

inline const char kMatchReward[] = "\n[reward]\nkind = \"match\"\nanswer = \"4\"\n";

inline const char kOneTask[] = "{\"id\": \"t\", \"prompt\": \"Compute 2 + 2.\"}\n";

class JobFiles {
 public:
  JobFiles() : scratch_("job") {
    std::filesystem::create_directory_symlink(kTinyModel, path() + "/model");
    Write("tasks.jsonl", kOneTask);
  }
  const std::string& path() const { return scratch_.path(); }
  void Write(const std::string& name, const std::string& text) const {
    ASSERT_TRUE(base::WriteFileAtomic(path() + "/" + name, text).ok());
  }
  absl::StatusOr<std::unique_ptr<JobSpec>> Load(const std::string& toml,
                                                const std::string& job_id = "") const {
    return LoadJob(toml, path(), "job.toml", job_id);
  }

 private:
  base::ScratchDir scratch_;
};

}  // namespace reprise::rollout
