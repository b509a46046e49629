// A model that the HTTP port serves: its name there, and the scheduler that decodes for it.
#pragma once

#include <string>

#include "engine/engine.h"
#include "rollout/scheduler.h"

namespace reprise::rollout::http {

struct ServedModel {
  std::string name;       // as requests say it: the last part of the directory
  std::string directory;  // absolute
  int64_t loaded_s = 0;   // wall clock, seconds
  Scheduler* scheduler = nullptr;
  int32_t think_close_id = -1, dsml_id = -1;  // -1: not in its vocabulary

  const engine::Engine& engine() const { return scheduler->engine(); }
  const engine::Tokenizer& tokenizer() const { return scheduler->tokenizer(); }
};

}  // namespace reprise::rollout::http
