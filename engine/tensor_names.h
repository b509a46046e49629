// The names that a stored tensor may have. Inside the engine every tensor has its official name;
// checkpoints that were saved by transformers use that library's names and stack the experts of a
// layer into one tensor, which is cut apart here without copying.
#pragma once

#include <string>
#include <string_view>
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

// The name under which transformers keeps the official tensor `name`; of a routed expert's matrix or
// scale that of its stack, whose parts are the experts in order, of w1 and w3 by turns or of w2.
// "" for an MTP block's, which transformers drops.
std::string TransformersName(std::string_view name);

}  // namespace reprise::engine
