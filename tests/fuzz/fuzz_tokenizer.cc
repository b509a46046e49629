// tokenizer.json, and a text through whatever tokenizer it makes.
#include <memory>

#include "engine/tokenizer.h"
#include "tests/fuzz/target.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using reprise::fuzz::Require;
  const reprise::fuzz::MemoryFile file(data, size);
  const auto tokenizer = reprise::engine::Tokenizer::Load(file.path());
  if (!tokenizer.ok()) {
    Require(!tokenizer.status().message().empty(), "a refusal says why");
    return 0;
  }
  const int32_t vocab = (*tokenizer)->vocab_size();
  for (const char* text : {"", "Hello, world 123\n\n  x",
                           "\xF0\x9F\x98\x80 caf\xC3\xA9 \xE4\xBD\xA0", "\xFF\xFE broken"}) {
    for (const int32_t id : (*tokenizer)->Encode(text))
      Require(id >= 0 && id < vocab, "ids are in the vocabulary");
  }
  (*tokenizer)->Decode({-1, 0, 1, vocab - 1, vocab, 1 << 30});
  return 0;
}
