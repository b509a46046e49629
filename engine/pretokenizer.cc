#include "engine/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

namespace reprise::engine {

struct PreTokenizer::Pattern {
  pcre2_code* code = nullptr;
  ~Pattern() { pcre2_code_free(code); }
};

PreTokenizer::PreTokenizer() = default;
PreTokenizer::~PreTokenizer() = default;

absl::StatusOr<std::unique_ptr<PreTokenizer>> PreTokenizer::Create(
    const std::vector<std::string>& patterns) {
  std::unique_ptr<PreTokenizer> made(new PreTokenizer);
  for (const std::string& text : patterns) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    auto pattern = std::make_unique<Pattern>();
    pattern->code =
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                      PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &error, &offset, nullptr);
    if (pattern->code == nullptr) {
      PCRE2_UCHAR message[256];
      pcre2_get_error_message(error, message, sizeof(message));
      return absl::InvalidArgumentError(
          fmt::format("split pattern \"{}\" does not compile at {}: {}", text, offset,
                      reinterpret_cast<const char*>(message)));
    }
    // Without JIT (a host that forbids it) matching is slower and the same.
    pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE);
    made->patterns_.push_back(std::move(pattern));
  }
  return made;
}

std::vector<std::string_view> PreTokenizer::Split(std::string_view text) const {
  std::vector<std::string_view> fragments;
  if (!text.empty()) fragments.push_back(text);
  for (const auto& pattern : patterns_) {
    std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
        pcre2_match_data_create_from_pattern(pattern->code, nullptr), &pcre2_match_data_free);
    std::vector<std::string_view> next;
    for (std::string_view fragment : fragments) {
      size_t done = 0;
      size_t from = 0;
      while (from < fragment.size()) {
        const int found = pcre2_match(pattern->code, reinterpret_cast<PCRE2_SPTR>(fragment.data()),
                                      fragment.size(), from, 0, match.get(), nullptr);
        if (found < 0) break;  // no match, or a limit: the rest stays one fragment
        const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
        if (range[1] <= range[0]) {  // an empty match cuts nothing
          from = range[1] + 1;
          continue;
        }
        if (range[0] > done) next.push_back(fragment.substr(done, range[0] - done));
        next.push_back(fragment.substr(range[0], range[1] - range[0]));
        done = from = range[1];
      }
      if (done < fragment.size()) next.push_back(fragment.substr(done));
    }
    fragments = std::move(next);
  }
  return fragments;
}

}  // namespace reprise::engine
