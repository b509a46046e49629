// The tools of the MCP server: what each takes, and what it does.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include <nlohmann/json.hpp>

#include "sandboxd/api/http/surface.h"

namespace reprise::sandboxd::http {

// As `tools/list` shows them: name, title, description, inputSchema, annotations.
nlohmann::json McpTools();

// Who asks: the id of the call that this request is, and of the sandbox that it makes.
struct McpCaller {
  std::string call_id, sandbox_id;
};

// Runs a tool; `done` gets the result of `tools/call` (content, structuredContent, isError), once,
// from any thread. False when there is no such tool, and nothing was done.
// REQUIRES: a thread that may block.
bool CallMcpTool(const Surface& surface, const McpCaller& caller, const std::string& name,
                 const nlohmann::json& arguments, std::function<void(nlohmann::json)> done);

}  // namespace reprise::sandboxd::http
