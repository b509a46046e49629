#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/status_macros.h"
#include "clients/cli/model_verbs.h"
#include "clients/cli/output.h"
#include "engine/chat.h"

namespace reprise::cli {
namespace {

constexpr uint64_t kInputBytesMax = 256ull << 20;

}  // namespace

absl::StatusOr<std::string> ReadInput(const std::string& path) {
  if (path != "-") return base::ReadFile(path, kInputBytesMax);
  std::string text, piece(64 << 10, '\0');
  while (true) {
    ssize_t got = ::read(STDIN_FILENO, piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return base::ErrnoStatus(errno, "cannot read standard input");
    if (got == 0) return text;
    text.append(piece.data(), static_cast<size_t>(got));
    if (text.size() > kInputBytesMax)
      return absl::ResourceExhaustedError("standard input is longer than 256 MiB");
  }
}

absl::StatusOr<int> EncodeMessages(const Context& context, const ModelOptions& options) {
  engine::ChatOptions chat;
  ASSIGN_OR_RETURN(chat.mode, engine::ParseThinkingMode(options.thinking));
  ASSIGN_OR_RETURN(chat.effort, engine::ParseEffort(options.effort));
  ASSIGN_OR_RETURN(std::string json, ReadInput(options.file));
  ASSIGN_OR_RETURN(std::vector<engine::PromptPiece> pieces, engine::EncodeChat(json, chat));
  std::string prompt = engine::JoinPieces(pieces);
  if (context.json) {
    PrintJson({{"prompt", prompt}});
  } else {
    Print(prompt);
  }
  return kExitDone;
}

absl::StatusOr<int> ParseAssistant(const Context& context, const ModelOptions& options) {
  ASSIGN_OR_RETURN(engine::ThinkingMode mode, engine::ParseThinkingMode(options.thinking));
  ASSIGN_OR_RETURN(std::string text, ReadInput(options.file));
  engine::ParsedTurn turn = engine::ParseTurn(text, mode);
  Json calls = Json::array();
  for (const engine::ToolCall& call : turn.tool_calls) {
    Json arguments = Json::parse(call.arguments_json, nullptr, /*allow_exceptions=*/false);
    calls.push_back(
        {{"name", call.name},
         {"arguments", arguments.is_discarded() ? Json(call.arguments_json) : arguments}});
  }
  PrintJson({{"reasoning", turn.reasoning},
             {"content", turn.content},
             {"tool_calls", calls},
             {"error", turn.error.empty() ? Json() : Json(turn.error)}});
  return kExitDone;
}

}  // namespace reprise::cli
