#include "sandboxd/fullvm/input.h"

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "base/status_macros.h"

namespace reprise::sandboxd {
namespace {

using microvm::Input;
using microvm::InputKind;

constexpr size_t kActionsMax = 1024;
constexpr size_t kKeysAtOnceMax = 8;
constexpr size_t kKeyNameBytesMax = 32;

Input Make(InputKind kind) {
  Input input;
  input.kind = static_cast<uint8_t>(kind);
  return input;
}

// Keys of a US keyboard that print: the key's name, what it prints, and what it prints with shift.
struct PrintingKey {
  char plain, shifted;
  const char* name;
};
constexpr PrintingKey kPrintingKeys[] = {{'1', '!', "1"},
                                         {'2', '@', "2"},
                                         {'3', '#', "3"},
                                         {'4', '$', "4"},
                                         {'5', '%', "5"},
                                         {'6', '^', "6"},
                                         {'7', '&', "7"},
                                         {'8', '*', "8"},
                                         {'9', '(', "9"},
                                         {'0', ')', "0"},
                                         {'-', '_', "minus"},
                                         {'=', '+', "equal"},
                                         {'[', '{', "bracket_left"},
                                         {']', '}', "bracket_right"},
                                         {'\\', '|', "backslash"},
                                         {';', ':', "semicolon"},
                                         {'\'', '"', "apostrophe"},
                                         {'`', '~', "grave_accent"},
                                         {',', '<', "comma"},
                                         {'.', '>', "dot"},
                                         {'/', '?', "slash"},
                                         {' ', ' ', "spc"},
                                         {'\n', '\n', "ret"},
                                         {'\t', '\t', "tab"}};

// The keys that type `c`; none when there is no such key.
std::vector<std::string> KeysOf(char c) {
  if (c >= 'a' && c <= 'z') return {std::string(1, c)};
  if (c >= 'A' && c <= 'Z') return {"shift", std::string(1, static_cast<char>(c - 'A' + 'a'))};
  for (const PrintingKey& key : kPrintingKeys) {
    if (c == key.plain) return {key.name};
    if (c == key.shifted) return {"shift", key.name};
  }
  return {};
}

absl::StatusOr<Input> Keys(std::string_view text) {
  Input input = Make(InputKind::kKeys);
  while (true) {
    const size_t end = std::min(text.find('-'), text.size());
    const std::string name(text.substr(0, end));
    if (name.empty() || name.size() > kKeyNameBytesMax ||
        name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") != std::string::npos ||
        input.names.size() == kKeysAtOnceMax) {
      return absl::InvalidArgumentError(fmt::format(
          "keys: names of at most {} keys joined by '-', as in ctrl-alt-delete, ret or f1",
          kKeysAtOnceMax));
    }
    input.names.push_back(name);
    if (end == text.size()) return input;
    text.remove_prefix(end + 1);
  }
}

absl::Status Add(const sandbox::InputEvent& event, std::vector<Input>* inputs) {
  switch (event.event_case()) {
    case sandbox::InputEvent::kKeys: {
      ASSIGN_OR_RETURN(Input input, Keys(event.keys()));
      inputs->push_back(std::move(input));
      return absl::OkStatus();
    }
    case sandbox::InputEvent::kText:
      for (const char c : event.text()) {
        Input input = Make(InputKind::kKeys);
        input.names = KeysOf(c);
        if (input.names.empty()) {
          return absl::InvalidArgumentError(
              fmt::format("text: no key types the byte {:#04x}; a US keyboard's printable "
                          "characters, newline and tab can be typed",
                          static_cast<unsigned char>(c)));
        }
        inputs->push_back(std::move(input));
      }
      return absl::OkStatus();
    case sandbox::InputEvent::kMove: {
      if (event.move().x() > microvm::kPointerMax || event.move().y() > microvm::kPointerMax) {
        return absl::InvalidArgumentError(
            fmt::format("move: x and y are 0 to {}", microvm::kPointerMax));
      }
      Input input = Make(InputKind::kMove);
      input.x = event.move().x();
      input.y = event.move().y();
      inputs->push_back(std::move(input));
      return absl::OkStatus();
    }
    case sandbox::InputEvent::kButton: {
      const std::string& name = event.button().name();
      if (name != "left" && name != "middle" && name != "right" && name != "wheel-up" &&
          name != "wheel-down") {
        return absl::InvalidArgumentError(
            "button: left, middle, right, wheel-up and wheel-down are buttons");
      }
      Input input = Make(InputKind::kButton);
      input.names = {name};
      input.down = event.button().down() ? 1 : 0;
      inputs->push_back(std::move(input));
      return absl::OkStatus();
    }
    case sandbox::InputEvent::kPower:
      inputs->push_back(Make(InputKind::kPower));
      return absl::OkStatus();
    case sandbox::InputEvent::EVENT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("an event without keys, text, move, button or power");
}

}  // namespace

absl::StatusOr<std::vector<Input>> ToInputs(const sandbox::SendInputRequest& request) {
  std::vector<Input> inputs;
  for (const sandbox::InputEvent& event : request.events()) {
    RETURN_IF_ERROR(Add(event, &inputs));
    if (inputs.size() > kActionsMax)
      return absl::InvalidArgumentError(
          fmt::format("events: more than {} keys and moves; send them in parts", kActionsMax));
  }
  if (inputs.empty()) return absl::InvalidArgumentError("events: nothing to send");
  return inputs;
}

}  // namespace reprise::sandboxd
