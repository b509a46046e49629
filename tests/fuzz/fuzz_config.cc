// config.json: what is accepted has sizes that can be computed with.
#include <string_view>

#include "engine/config.h"
#include "engine/kv_state.h"
#include "tests/fuzz/target.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace reprise::engine;
  using reprise::fuzz::Require;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = ParseConfig(text, "config.json");
  if (!config.ok()) {
    Require(!config.status().message().empty(), "a refusal says why");
    return 0;
  }
  const int64_t page = PageTokens(*config);
  Require(page > 0 && page <= kPageTokensMax, "a page has a size");
  for (const bool packed : {false, true}) {
    const KvLayout layout(*config, /*mtp_blocks=*/0, packed);
    Require(layout.block_floats > 0 && layout.page_bytes >= 0, "a sequence has a size");
    Require(layout.Bytes(config->max_context) >= layout.Bytes(1),
            "longer sequences are no smaller");
  }
  return 0;
}
