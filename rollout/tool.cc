#include "rollout/tool.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/status_macros.h"
#include "rollout/fields.h"
#include "rollout/text.h"

namespace reprise::rollout {
namespace {

// The text that stands for a value in a command: a string as it is, anything else as JSON.
std::string ValueText(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

bool HasType(const Json& value, const std::string& type) {
  if (type == "string") return value.is_string();
  if (type == "integer") {
    return value.is_number_integer() ||
           (value.is_number_float() && value.get<double>() == std::floor(value.get<double>()));
  }
  if (type == "number") return value.is_number();
  if (type == "boolean") return value.is_boolean();
  if (type == "array") return value.is_array();
  if (type == "object") return value.is_object();
  return type == "null" && value.is_null();
}

absl::StatusOr<ToolParameter> ReadParameter(const std::string& name, const Json& schema) {
  ToolParameter out{
      .name = name, .types = {}, .required = false, .has_default = false, .default_text = ""};
  if (!schema.is_object()) {
    return absl::InvalidArgumentError(
        fmt::format("parameter \"{}\": its schema is not an object", name));
  }
  if (auto type = schema.find("type"); type != schema.end()) {
    for (const Json& item : type->is_array() ? *type : Json::array({*type})) {
      if (!item.is_string()) {
        return absl::InvalidArgumentError(
            fmt::format("parameter \"{}\": type is neither a name nor an array of names", name));
      }
      out.types.push_back(item.get<std::string>());
    }
    static const std::vector<std::string> kTypes = {"string", "integer", "number", "boolean",
                                                    "array",  "object",  "null"};
    for (const std::string& each : out.types) {
      if (std::find(kTypes.begin(), kTypes.end(), each) == kTypes.end()) {
        return absl::InvalidArgumentError(
            fmt::format("parameter \"{}\": type \"{}\" is unknown, allowed: {}", name, each,
                        fmt::join(kTypes, ", ")));
      }
    }
  }
  if (auto value = schema.find("default"); value != schema.end()) {
    out.has_default = true;
    out.default_text = ValueText(*value);
  }
  return out;
}

absl::Status CheckArg(const std::string& arg) {
  if (arg.find('\0') != arg.npos) {
    return absl::InvalidArgumentError(
        "an argument contains a NUL byte, which no program can be given");
  }
  if (arg.size() > kMaxArgBytes) {
    return absl::InvalidArgumentError(
        fmt::format("an argument is {} bytes long, the most is {}", arg.size(), kMaxArgBytes));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Tool> Tool::Make(std::string_view definition,
                                const std::vector<std::string>& command,
                                std::string_view stdin_template, const sandbox::Limits& limits) {
  Tool tool;
  tool.definition_ = std::string(definition);
  tool.limits_ = limits;
  ASSIGN_OR_RETURN(Json json, ParseJson(definition));
  const Json* function = &json;
  if (json.is_object() && json.contains("function")) function = &json["function"];
  if (!function->is_object() || !function->contains("name") || !(*function)["name"].is_string()) {
    return absl::InvalidArgumentError(
        "tool definition has no \"name\", allowed: "
        "{\"type\":\"function\",\"function\":{\"name\":..}} "
        "or the function object alone");
  }
  tool.name_ = (*function)["name"].get<std::string>();
  if (tool.name_.empty() || tool.name_.find('"') != std::string::npos) {
    return absl::InvalidArgumentError("tool name is empty or contains a quote");
  }
  if (auto schema = function->find("parameters"); schema != function->end()) {
    if (!schema->is_object()) {
      return absl::InvalidArgumentError(
          fmt::format("tool \"{}\": parameters is not an object", tool.name_));
    }
    if (auto other = schema->find("additionalProperties"); other != schema->end()) {
      tool.other_arguments_ = !other->is_boolean() || other->get<bool>();
    }
    if (auto properties = schema->find("properties"); properties != schema->end()) {
      if (!properties->is_object()) {
        return absl::InvalidArgumentError(
            fmt::format("tool \"{}\": properties is not an object", tool.name_));
      }
      for (const auto& [name, value] : properties->items()) {
        auto parameter = ReadParameter(name, value);
        if (!parameter.ok()) {
          return absl::InvalidArgumentError(
              fmt::format("tool \"{}\": {}", tool.name_, Message(parameter.status())));
        }
        tool.parameters_.push_back(*std::move(parameter));
      }
    }
    if (auto required = schema->find("required"); required != schema->end()) {
      if (!required->is_array()) {
        return absl::InvalidArgumentError(
            fmt::format("tool \"{}\": required is not an array", tool.name_));
      }
      for (const Json& name : *required) {
        auto found = std::find_if(tool.parameters_.begin(), tool.parameters_.end(),
                                  [&](const ToolParameter& p) { return name == p.name; });
        if (found == tool.parameters_.end()) {
          return absl::InvalidArgumentError(fmt::format(
              "tool \"{}\": required names {}, which is no property", tool.name_, name.dump()));
        }
        found->required = true;
      }
    }
  }
  if (command.empty()) {
    return absl::InvalidArgumentError(fmt::format("tool \"{}\": command is empty", tool.name_));
  }
  auto parse = [&tool](std::string_view text, const std::string& what) -> absl::StatusOr<Template> {
    auto parsed = Template::Parse(text);
    if (!parsed.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("tool \"{}\": {} {}", tool.name_, what, Message(parsed.status())));
    }
    for (const std::string& name : parsed->names()) {
      bool known = std::any_of(tool.parameters_.begin(), tool.parameters_.end(),
                               [&](const ToolParameter& p) { return p.name == name; });
      if (!known) {
        return absl::InvalidArgumentError(fmt::format(
            "tool \"{}\": {} uses {{{}}}, which is no parameter of it", tool.name_, what, name));
      }
    }
    return parsed;
  };
  for (size_t i = 0; i < command.size(); ++i) {
    ASSIGN_OR_RETURN(Template part, parse(command[i], fmt::format("command[{}]", i)));
    tool.command_.push_back(std::move(part));
  }
  ASSIGN_OR_RETURN(tool.stdin_, parse(stdin_template, "stdin"));
  return tool;
}

absl::StatusOr<Tool::Command> Tool::Bind(std::string_view arguments_json) const {
  auto arguments = ParseJson(arguments_json);
  if (!arguments.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("the arguments are {}", Message(arguments.status())));
  }
  if (!arguments->is_object()) {
    return absl::InvalidArgumentError("the arguments are not a JSON object");
  }
  std::map<std::string, std::string> values;
  for (const ToolParameter& parameter : parameters_) {
    auto found = arguments->find(parameter.name);
    if (found == arguments->end()) {
      if (parameter.required) {
        return absl::InvalidArgumentError(fmt::format("missing argument \"{}\"", parameter.name));
      }
      if (parameter.has_default) values[parameter.name] = parameter.default_text;
      continue;
    }
    bool typed = parameter.types.empty() ||
                 std::any_of(parameter.types.begin(), parameter.types.end(),
                             [&](const std::string& type) { return HasType(*found, type); });
    if (!typed) {
      return absl::InvalidArgumentError(fmt::format(
          "argument \"{}\" is not of type {}", parameter.name, fmt::join(parameter.types, " or ")));
    }
    values[parameter.name] = ValueText(*found);
  }
  if (!other_arguments_) {
    for (const auto& [name, value] : arguments->items()) {
      bool known = std::any_of(parameters_.begin(), parameters_.end(),
                               [&key = name](const ToolParameter& p) { return p.name == key; });
      if (known) continue;
      std::vector<std::string> names;
      for (const ToolParameter& parameter : parameters_) names.push_back(parameter.name);
      return absl::InvalidArgumentError(
          fmt::format("unknown argument \"{}\", allowed: {}", name, fmt::join(names, ", ")));
    }
  }
  Command command;
  for (const Template& part : command_) {
    command.argv.push_back(part.Fill(values));
    RETURN_IF_ERROR(CheckArg(command.argv.back()));
  }
  if (command.argv[0].empty()) return absl::InvalidArgumentError("the program's name is empty");
  command.stdin_text = stdin_.Fill(values);
  return command;
}

}  // namespace reprise::rollout
