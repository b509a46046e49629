// A text with {name} placeholders, as the argv and stdin of a tool are written in a job file. "{{"
// and "}}" stand for the braces themselves. A value replaces its placeholder as it is, inside the
// one text that holds it: nothing is quoted, split or expanded again.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace reprise::rollout {

class Template {
 public:
  // INVALID_ARGUMENT for a lone brace or an empty name.
  static absl::StatusOr<Template> Parse(std::string_view text);

  std::vector<std::string> names() const;
  // A name without a value gives nothing.
  std::string Fill(const std::map<std::string, std::string>& values) const;

 private:
  struct Part {
    std::string text;
    bool is_name = false;
  };
  std::vector<Part> parts_;
};

}  // namespace reprise::rollout
