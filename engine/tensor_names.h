// The names that a stored tensor may have. Inside the engine every tensor has its official name;
// checkpoints that were saved by transformers use that library's names and stack the experts of a
// layer into one tensor, which is cut apart here without copying.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/safetensors.h"

namespace reprise::engine {

// Appends the official names and views of the stored tensor `name` to `out`: one, one for each part
// of a stack, or none for a copy of the embedding or the head that some files carry for an MTP
// block. An unknown name stays as it is. INVALID_ARGUMENT when a stack cannot be cut; it names the
// tensor, what was expected and what was found.
absl::Status OfficialTensors(const std::string& name, const TensorView& view,
                             std::vector<std::pair<std::string, TensorView>>* out);

}  // namespace reprise::engine
