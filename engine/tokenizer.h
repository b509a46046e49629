// Byte-level BPE from a Hugging Face tokenizer.json (spec: the DeepSeek-V4 tokenizer: three
// isolated splitting passes, GPT-2 byte alphabet, added tokens matched leftmost-longest, no
// normalisation). Immutable, thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace reprise::engine {

// A piece of a prompt. Added tokens are matched in markup only, so that a user's text can never
// forge one; text on both sides of a border is still split and merged as one text.
struct PromptPiece {
  std::string text;
  bool markup = false;
};

class Tokenizer {
 public:
  // Errors: NOT_FOUND, INVALID_ARGUMENT naming the file and the key that is missing or malformed.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);
  virtual ~Tokenizer() = default;

  // `match_added`: whether added tokens in `text` become their ids.
  virtual std::vector<int32_t> Encode(std::string_view text, bool match_added = true) const = 0;
  virtual std::vector<int32_t> Encode(absl::Span<const PromptPiece> pieces) const = 0;
  // Bytes of the tokens joined; may end inside a UTF-8 sequence. Ids outside the vocabulary give
  // nothing.
  virtual std::string Decode(absl::Span<const int32_t> ids) const = 0;
  // Bytes of one token.
  virtual std::string TokenBytes(int32_t id) const = 0;
  // Id of an added token by its text.
  virtual std::optional<int32_t> AddedTokenId(std::string_view text) const = 0;
  virtual bool IsAddedToken(int32_t id) const = 0;
  virtual int32_t vocab_size() const = 0;         // highest id + 1
  virtual const std::string& digest() const = 0;  // SHA-256 of the file, hexadecimal
};

// Gives out decoded text as it becomes complete: holds back bytes of an unfinished UTF-8 sequence.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {}
  std::string Push(int32_t id);
  std::string Finish();  // what is left, with U+FFFD for an incomplete sequence

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;
};

}  // namespace reprise::engine
