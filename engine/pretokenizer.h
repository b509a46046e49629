// The splitting passes of a tokenizer.json: each cuts every fragment at the matches of its pattern;
// matches and what lies between them become fragments. Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace reprise::engine {

class PreTokenizer {
 public:
  // Patterns in order. INVALID_ARGUMENT with the pattern and PCRE2's message when one does not
  // compile.
  static absl::StatusOr<std::unique_ptr<PreTokenizer>> Create(
      const std::vector<std::string>& patterns);
  ~PreTokenizer();
  PreTokenizer(const PreTokenizer&) = delete;
  PreTokenizer& operator=(const PreTokenizer&) = delete;

  // Fragments of `text` in order; their concatenation is `text`. Bytes that are not UTF-8 match
  // nothing.
  std::vector<std::string_view> Split(std::string_view text) const;

 private:
  struct Pattern;
  PreTokenizer();
  std::vector<std::unique_ptr<Pattern>> patterns_;
};

}  // namespace reprise::engine
