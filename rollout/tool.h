// A tool of a job: what the model is told about it, which arguments it takes, and the command that
// a call becomes.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "reprise/sandbox/v1/sandbox.pb.h"
#include "rollout/template.h"

namespace reprise::rollout {

namespace sandbox = ::reprise::sandbox::v1;

// Longest single argument that Linux passes to a program (MAX_ARG_STRLEN less its end).
inline constexpr size_t kMaxArgBytes = 128 * 1024 - 1;

struct ToolParameter {
  std::string name;
  std::vector<std::string> types;  // JSON schema type names; empty: any
  bool required = false;
  bool has_default = false;
  std::string default_text;  // as it would be filled in
};

class Tool {
 public:
  // `definition`: one tool in OpenAI form, or its function object alone; kept byte for byte for the
  // prompt. INVALID_ARGUMENT says what is wrong with it, or which placeholder is not a parameter.
  static absl::StatusOr<Tool> Make(std::string_view definition,
                                   const std::vector<std::string>& command,
                                   std::string_view stdin_template, const sandbox::Limits& limits);

  const std::string& name() const { return name_; }
  const std::string& definition() const { return definition_; }
  const sandbox::Limits& limits() const { return limits_; }

  // What a call runs. INVALID_ARGUMENT, in words for the model, when the arguments are not a JSON
  // object, one is unknown, missing, of another type, or cannot be passed to a program.
  struct Command {
    std::vector<std::string> argv;
    std::string stdin_text;
  };
  absl::StatusOr<Command> Bind(std::string_view arguments_json) const;

 private:
  std::string name_;
  std::string definition_;
  std::vector<ToolParameter> parameters_;
  bool other_arguments_ = false;  // additionalProperties: true
  std::vector<Template> command_;
  Template stdin_;
  sandbox::Limits limits_;
};

}  // namespace reprise::rollout
