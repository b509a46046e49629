// `reprise sandbox console`, `screenshot` and `input`: what a person at a virtual machine sees and
// does.
#include "clients/cli/sandbox_machine.h"

#include <fmt/format.h>

#include <charconv>
#include <chrono>
#include <nlohmann/json.hpp>
#include <string_view>
#include <thread>

#include "base/fd.h"
#include "base/status_macros.h"
#include "clients/cli/output.h"

namespace reprise::cli {
namespace {

constexpr auto kFollowPause = std::chrono::milliseconds(200);

absl::Status BadAction(const std::string& word) {
  return UsageError(fmt::format(
      "\"{}\" is no action: key:NAME-NAME, type:TEXT, move:X,Y, press:BUTTON, release:BUTTON, "
      "click:BUTTON and power are",
      word));
}

bool ParseNumber(std::string_view text, uint32_t* number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *number);
  return error == std::errc() && end == text.data() + text.size();
}

absl::Status AddAction(const std::string& word, sandbox_wire::SendInputRequest* request) {
  const size_t colon = std::min(word.find(':'), word.size());
  const std::string name = word.substr(0, colon);
  const std::string value = colon == word.size() ? "" : word.substr(colon + 1);
  auto button = [&](bool down) {
    sandbox_wire::PointerButton* event = request->add_events()->mutable_button();
    event->set_name(value);
    event->set_down(down);
  };
  if (name == "power" && value.empty()) {
    request->add_events()->mutable_power();
  } else if (value.empty()) {
    return BadAction(word);
  } else if (name == "key") {
    request->add_events()->set_keys(value);
  } else if (name == "type") {
    request->add_events()->set_text(value);
  } else if (name == "move") {
    const size_t comma = value.find(',');
    uint32_t x = 0, y = 0;
    if (comma == value.npos || !ParseNumber(std::string_view(value).substr(0, comma), &x) ||
        !ParseNumber(std::string_view(value).substr(comma + 1), &y)) {
      return BadAction(word);
    }
    sandbox_wire::PointerMove* event = request->add_events()->mutable_move();
    event->set_x(x);
    event->set_y(y);
  } else if (name == "press" || name == "release") {
    button(name == "press");
  } else if (name == "click") {
    button(true);
    button(false);
  } else {
    return BadAction(word);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int> ShowConsole(const Context& context, const SandboxOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  sandbox_wire::ConsoleRequest request;
  request.set_sandbox_id(options.id);
  request.set_typed(options.typed);
  std::string all;
  uint64_t begin = 0;
  while (true) {
    ASSIGN_OR_RETURN(const sandbox_wire::ConsoleResponse answer, api->Console(request));
    if (all.empty()) begin = answer.offset();
    if (context.json && !options.follow) {
      all += answer.data();
    } else {
      Print(answer.data());
    }
    request.clear_typed();
    request.set_offset(answer.offset() + answer.data().size());
    if (request.offset() < answer.end()) continue;
    if (!options.follow) break;
    std::this_thread::sleep_for(kFollowPause);
  }
  if (context.json) PrintJson({{"offset", begin}, {"data", all}});
  return kExitDone;
}

absl::StatusOr<int> TakeScreenshot(const Context& context, const SandboxOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  ASSIGN_OR_RETURN(const sandbox_wire::ScreenshotResponse answer, api->Screenshot(options.id));
  RETURN_IF_ERROR(base::WriteFileAtomic(options.to, answer.png()));
  if (context.json) {
    PrintJson({{"path", options.to}, {"width", answer.width()}, {"height", answer.height()}});
  } else {
    Print(fmt::format("{}: {} x {} pixels\n", options.to, answer.width(), answer.height()));
  }
  return kExitDone;
}

absl::StatusOr<int> SendInput(const Context& context, const SandboxOptions& options) {
  sandbox_wire::SendInputRequest request;
  request.set_sandbox_id(options.id);
  for (const std::string& word : options.words) RETURN_IF_ERROR(AddAction(word, &request));
  ASSIGN_OR_RETURN(std::unique_ptr<SandboxApi> api, SandboxApi::Connect(options.target));
  RETURN_IF_ERROR(api->SendInput(request));
  if (context.json) PrintJson({{"events", request.events_size()}});
  return kExitDone;
}

}  // namespace reprise::cli
