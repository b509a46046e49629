#include "sandboxd/api/http/mcp.h"

#include <algorithm>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/ids.h"
#include "sandboxd/api/auth.h"
#include "sandboxd/api/http/mcp_tools.h"

namespace reprise::sandboxd::http {
namespace {

using Json = nlohmann::json;

constexpr char kPath[] = "/mcp";
constexpr size_t kBodyMax = 64u << 20;
// Newest first; a client that asks for another gets the first, and may go.
constexpr std::string_view kVersions[] = {"2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"};
constexpr char kSessionHeader[] = "mcp-session-id";
constexpr char kVersionHeader[] = "mcp-protocol-version";

constexpr int kParseError = -32700, kInvalidRequest = -32600, kMethodNotFound = -32601,
              kInvalidParams = -32602;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Response Result(const Json& id, Json result) {
  return JsonResponse(200, Dump({{"jsonrpc", "2.0"}, {"id", id}, {"result", std::move(result)}}));
}
Response Error(int status, const Json& id, int code, std::string_view message) {
  return JsonResponse(
      status,
      Dump({{"jsonrpc", "2.0"}, {"id", id}, {"error", {{"code", code}, {"message", message}}}}));
}

bool IsKnown(std::string_view version) {
  return std::find(std::begin(kVersions), std::end(kVersions), version) != std::end(kVersions);
}

// A number and a string never name the same call.
std::optional<std::string> IdText(const Json& id) {
  if (id.is_number_integer()) return fmt::format("n{}", id.dump());
  if (id.is_string()) return fmt::format("s{}", IdPart(id.get<std::string>()));
  return std::nullopt;
}

class Mcp {
 public:
  explicit Mcp(Surface surface) : surface_(surface) {}

  // Refuses clients without the daemon's token, and pages of other sites.
  Guard MakeGuard() const {
    return [access = surface_.access](const Request& request) -> std::optional<Response> {
      if (!access->IsOwner(request)) {
        Response response =
            ErrorResponse(401, "show the daemon's token: Authorization: Bearer TOKEN");
        response.headers.push_back({"WWW-Authenticate", "Bearer"});
        return response;
      }
      const std::string_view origin = request.header("origin");
      const size_t scheme = origin.find("://");
      if (!origin.empty() && (scheme == std::string_view::npos ||
                              !EqualsIgnoreCase(origin.substr(scheme + 3), request.header("host"))))
        return ErrorResponse(403, "requests from pages of other sites are refused");
      const std::string_view version = request.header(kVersionHeader);
      if (!version.empty() && !IsKnown(version) && request.method != "POST")
        return ErrorResponse(400, "this version of the protocol is not known");
      return std::nullopt;
    };
  }

  void Post(const RequestPtr& request, const Respond& respond) {
    const Json message = Json::parse(request->body, nullptr, /*allow_exceptions=*/false);
    if (message.is_discarded())
      return respond(Error(400, nullptr, kParseError, "the body is not JSON"));
    const bool is_request = message.is_object() && message.value("jsonrpc", Json()) == "2.0";
    if (!is_request) {
      return respond(Error(400, nullptr, kInvalidRequest,
                           "send one JSON-RPC 2.0 message; batches are not taken"));
    }
    const Json id = message.value("id", Json());
    const Json method = message.value("method", Json());
    const Json params = message.value("params", Json::object());
    if (!method.is_string()) return respond(Accepted());  // an answer, and nobody asked
    if (message.contains("id") && !IdText(id).has_value())
      return respond(Error(400, nullptr, kInvalidRequest, "id must be a string or an integer"));
    if (method == "initialize" && message.contains("id")) return respond(Initialize(id, params));
    if (!IsMethod(method) && message.contains("id"))
      return respond(Error(404, id, kMethodNotFound, fmt::format("no method {}", Dump(method))));
    const std::string session = SessionOf(*request);
    if (session.empty()) {
      const bool named = !request->header(kSessionHeader).empty();
      return respond(Error(named ? 404 : 400, id, kInvalidRequest,
                           named ? "this session does not exist: initialize another"
                                 : "Mcp-Session-Id is missing: initialize a session first"));
    }
    if (const std::string_view version = request->header(kVersionHeader);
        !version.empty() && !IsKnown(version)) {
      return respond(Error(400, id, kInvalidRequest,
                           fmt::format("version {} of the protocol is not known", version)));
    }
    if (!message.contains("id")) return respond(Notified(session, method, params));
    if (method == "ping") return respond(Result(id, Json::object()));
    if (method == "tools/list") return respond(Result(id, {{"tools", McpTools()}}));
    CallTool(session, id, params, respond);
  }

  Response Delete(const Request& request) const {
    if (SessionOf(request).empty()) return ErrorResponse(404, "this session does not exist");
    Response response;
    response.status = 204;
    return response;
  }

 private:
  static bool IsMethod(const Json& method) {
    return method == "ping" || method == "tools/list" || method == "tools/call";
  }
  static Response Accepted() {
    Response response;
    response.status = 202;
    return response;
  }

  // The name that a client shows, with the proof that this daemon made it; "" without.
  std::string SessionOf(const Request& request) const {
    const std::string_view shown = request.header(kSessionHeader);
    const size_t dot = shown.find('.');
    if (dot == std::string_view::npos) return "";
    const std::string name(shown.substr(0, dot));
    const bool mine = EqualInConstantTime(shown.substr(dot + 1), Proof(name));
    return mine && base::CheckId(name, "session").ok() ? name : "";
  }
  std::string Proof(const std::string& name) const {
    return surface_.access->Proof(fmt::format("mcp-session/{}", name));
  }
  static std::string CallId(const std::string& session, const Json& id) {
    return fmt::format("mcp/{}/{}", session, IdText(id).value_or(""));
  }

  Response Initialize(const Json& id, const Json& params) const {
    const Json asked = params.is_object() ? params.value("protocolVersion", Json()) : Json();
    if (!asked.is_string())
      return Error(400, id, kInvalidParams, "params.protocolVersion is missing");
    const std::string version = asked;
    const std::string session = base::RandomHex(8);
    Response response = Result(
        id, {{"protocolVersion", IsKnown(version) ? version : std::string(kVersions[0])},
             {"capabilities", {{"tools", {{"listChanged", false}}}}},
             {"serverInfo", {{"name", "reprise-sandboxd"}, {"version", REPRISE_VERSION}}},
             {"instructions",
              "Make a sandbox with create_sandbox, run commands in it, and stop it when you are "
              "done. A request that is sent again with the same id is not run again."}});
    response.headers.push_back({"Mcp-Session-Id", fmt::format("{}.{}", session, Proof(session))});
    return response;
  }

  Response Notified(const std::string& session, const Json& method, const Json& params) const {
    if (method == "notifications/cancelled" && params.is_object() && params.contains("requestId") &&
        IdText(params["requestId"]).has_value()) {
      sandbox::SignalRequest cancel;
      cancel.set_call_id(CallId(session, params["requestId"]));
      cancel.set_cancel(true);
      // What is no call, or has ended, has nothing to cancel.
      surface_.calls->Signal(cancel).IgnoreError();
    }
    return Accepted();
  }

  void CallTool(const std::string& session, const Json& id, const Json& params,
                const Respond& respond) const {
    const Json name = params.is_object() ? params.value("name", Json()) : Json();
    if (!name.is_string()) return respond(Error(400, id, kInvalidParams, "params.name is missing"));
    const McpCaller caller{CallId(session, id),
                           fmt::format("mcp-{}-{}", session, IdText(id).value_or(""))};
    const bool known =
        CallMcpTool(surface_, caller, name, params.value("arguments", Json::object()),
                    [respond, id](Json result) { respond(Result(id, std::move(result))); });
    if (!known) respond(Error(400, id, kInvalidParams, fmt::format("no tool {}", Dump(name))));
  }

  const Surface surface_;
};

}  // namespace

void AddMcpRoutes(const Surface& surface, Router* router) {
  auto mcp = std::make_shared<Mcp>(surface);
  auto add = [&](const char* method, Handler handler) {
    Route route;
    route.method = method;
    route.pattern = kPath;
    route.guard = mcp->MakeGuard();
    route.body_max = kBodyMax;
    route.handler = std::move(handler);
    router->Add(std::move(route));
  };
  const ErrorForm form = [](const absl::Status& status) { return ErrorResponse(status); };
  add("POST", [surface, mcp, form](RequestPtr request, Respond respond) {
    PostVerb(surface, form, respond, [=] { mcp->Post(request, respond); });
  });
  add("DELETE", [mcp](RequestPtr request, Respond respond) { respond(mcp->Delete(*request)); });
  // There is nothing that this server would say of its own accord.
  add("GET", [](RequestPtr, Respond respond) {
    Response response = ErrorResponse(405, "this server starts no messages: POST to it");
    response.headers.push_back({"Allow", "POST, DELETE"});
    respond(std::move(response));
  });
}

}  // namespace reprise::sandboxd::http
