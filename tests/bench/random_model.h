// A DeepSeek-V4 of about 100 M parameters with random weights, as large a model as every engine of
// a comparison can run on a small machine.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace reprise::engine {

// Writes config.json, tokenizer.json and model.safetensors (BF16) to the new directory, under
// transformers' names, which both sides of a comparison load. The weights are those of a fixed
// seed.
absl::Status WriteRandomModel(const std::string& directory);

}  // namespace reprise::engine
