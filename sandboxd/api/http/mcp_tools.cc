#include "sandboxd/api/http/mcp_tools.h"

#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "absl/strings/escaping.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/api/http/box_files.h"
#include "sandboxd/limits.h"

namespace reprise::sandboxd::http {
namespace {

using Json = nlohmann::json;
using Done = std::function<void(Json)>;

constexpr size_t kOutputMax = 256u << 10;  // of one stream of a command, in an answer
constexpr uint64_t kReadDefault = 256u << 10, kReadMax = 16u << 20;  // of a file, in an answer
constexpr int kEntriesMax = 10'000;                                  // of a directory, the same
constexpr double kTimeoutSecondsDefault = 120;

// What a model reads, and the same as fields.
Json Told(std::string text, Json fields) {
  return {{"content", {{{"type", "text"}, {"text", std::move(text)}}}},
          {"structuredContent", std::move(fields)},
          {"isError", false}};
}
Json Failed(std::string_view message) {
  return {{"content", {{{"type", "text"}, {"text", message}}}}, {"isError", true}};
}
Json Failed(const absl::Status& status) { return Failed(std::string(status.message())); }

// The arguments of one call; anything that a tool does not know is an error, not ignored.
class Arguments {
 public:
  explicit Arguments(const Json& json) : json_(json) {}

  absl::Status Only(std::initializer_list<std::string_view> known) const {
    if (!json_.is_object()) return absl::InvalidArgumentError("arguments must be an object");
    for (const auto& [name, value] : json_.items()) {
      if (std::find(known.begin(), known.end(), name) == known.end())
        return absl::InvalidArgumentError(fmt::format("there is no argument \"{}\"", name));
    }
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Text(const char* name) const {
    const auto found = json_.find(name);
    if (found == json_.end() || !found->is_string() || found->get_ref<const std::string&>().empty())
      return absl::InvalidArgumentError(fmt::format("{} must be a text that is not empty", name));
    return found->get<std::string>();
  }
  absl::StatusOr<std::string> TextOr(const char* name, std::string otherwise) const {
    const auto found = json_.find(name);
    if (found == json_.end()) return otherwise;
    if (!found->is_string())
      return absl::InvalidArgumentError(fmt::format("{} must be a text", name));
    return found->get<std::string>();
  }
  absl::StatusOr<double> NumberOr(const char* name, double otherwise, double max) const {
    const auto found = json_.find(name);
    if (found == json_.end()) return otherwise;
    if (!found->is_number() || !(found->get<double>() > 0) || found->get<double>() > max) {
      return absl::InvalidArgumentError(
          fmt::format("{} must be a number above 0 and at most {}", name, max));
    }
    return found->get<double>();
  }
  absl::Status Env(google::protobuf::RepeatedPtrField<sandbox::EnvVar>* env) const {
    const auto found = json_.find("env");
    if (found == json_.end()) return absl::OkStatus();
    if (!found->is_object()) return absl::InvalidArgumentError("env must map names to texts");
    for (const auto& [name, value] : found->items()) {
      if (!value.is_string()) return absl::InvalidArgumentError("env must map names to texts");
      sandbox::EnvVar* variable = env->Add();
      variable->set_name(name);
      variable->set_value(value.get<std::string>());
    }
    return absl::OkStatus();
  }

 private:
  const Json& json_;
};

// ---- sandboxes

absl::StatusOr<Json> CreateSandbox(const Surface& surface, const McpCaller& caller,
                                   const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Only({"tier", "image", "env"}));
  ASSIGN_OR_RETURN(const std::string name, arguments.Text("tier"));
  std::string full = fmt::format("TIER_{}", name);
  std::transform(full.begin(), full.end(), full.begin(), ::toupper);
  sandbox::Tier tier = sandbox::TIER_UNSPECIFIED;
  if (!sandbox::Tier_Parse(full, &tier) || tier == sandbox::TIER_UNSPECIFIED)
    return absl::InvalidArgumentError("tier must be one of function, container, microvm, vm");
  sandbox::CreateRequest request;
  request.set_sandbox_id(caller.sandbox_id);
  request.mutable_spec()->set_tier(tier);
  ASSIGN_OR_RETURN(std::string image, arguments.TextOr("image", ""));
  request.mutable_spec()->set_image(std::move(image));
  RETURN_IF_ERROR(arguments.Env(request.mutable_spec()->mutable_env()));
  ASSIGN_OR_RETURN(const sandbox::CreateResponse made, surface.sandboxes->Create(request));
  return Told(fmt::format("made sandbox {}", made.sandbox().id()),
              {{"sandbox", made.sandbox().id()}});
}

std::string LastWord(std::string name) {
  name.erase(0, name.rfind('_') + 1);
  std::transform(name.begin(), name.end(), name.begin(), ::tolower);
  return name;
}

absl::StatusOr<Json> ListSandboxes(const Surface& surface, const McpCaller&,
                                   const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Only({}));
  ASSIGN_OR_RETURN(const sandbox::ListResponse list, surface.sandboxes->List());
  Json boxes = Json::array();
  std::string text;
  for (const sandbox::Sandbox& box : list.sandboxes()) {
    const std::string tier = LastWord(sandbox::Tier_Name(box.spec().tier()));
    const std::string state = LastWord(sandbox::SandboxState_Name(box.state()));
    boxes.push_back({{"sandbox", box.id()}, {"tier", tier}, {"state", state}});
    text += fmt::format("{} {} {}\n", box.id(), tier, state);
  }
  return Told(text.empty() ? "there are none" : text, {{"sandboxes", std::move(boxes)}});
}

absl::StatusOr<Json> StopSandbox(const Surface& surface, const McpCaller&,
                                 const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Only({"sandbox"}));
  ASSIGN_OR_RETURN(const std::string id, arguments.Text("sandbox"));
  RETURN_IF_ERROR(base::CheckId(id, "sandbox", /*allow_slash=*/true));
  ASSIGN_OR_RETURN(const bool was_running, surface.calls->Stop(id));
  return Told(fmt::format("{} {}", was_running ? "stopped" : "had been stopped:", id),
              {{"was_running", was_running}});
}

// ---- files

absl::StatusOr<BoxFiles> FilesOf(const Surface& surface, const Arguments& arguments,
                                 std::string* path) {
  ASSIGN_OR_RETURN(const std::string id, arguments.Text("sandbox"));
  RETURN_IF_ERROR(base::CheckId(id, "sandbox", /*allow_slash=*/true));
  ASSIGN_OR_RETURN(const std::string asked, arguments.Text("path"));
  ASSIGN_OR_RETURN(BoxFiles files, BoxFiles::Open(surface.sandboxes, id));
  ASSIGN_OR_RETURN(*path, files.Path(asked));
  return files;
}

// Whether JSON can carry it as it is.
bool IsUtf8(const std::string& text) {
  try {
    (void)Json(text).dump();
    return true;
  } catch (const Json::exception&) {
    return false;
  }
}

absl::StatusOr<Json> ReadFile(const Surface& surface, const McpCaller&,
                              const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Only({"sandbox", "path", "max_bytes"}));
  ASSIGN_OR_RETURN(const double max, arguments.NumberOr("max_bytes", kReadDefault, kReadMax));
  std::string path, content;
  ASSIGN_OR_RETURN(const BoxFiles files, FilesOf(surface, arguments, &path));
  RETURN_IF_ERROR(files.Read(path, [&](std::string_view data) -> absl::Status {
    content += data;
    if (content.size() <= static_cast<size_t>(max)) return absl::OkStatus();
    return absl::ResourceExhaustedError(fmt::format(
        "{} is longer than {} bytes: give max_bytes, or read a part with a command", path, max));
  }));
  const bool text = IsUtf8(content);
  if (text) return Told(content, {{"content", content}, {"encoding", "utf-8"}});
  const std::string encoded = absl::Base64Escape(content);
  return Told(fmt::format("{} bytes that are no text, in base64:\n{}", content.size(), encoded),
              {{"content", encoded}, {"encoding", "base64"}});
}

absl::StatusOr<Json> WriteFile(const Surface& surface, const McpCaller&,
                               const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Only({"sandbox", "path", "content", "encoding"}));
  ASSIGN_OR_RETURN(const std::string encoding, arguments.TextOr("encoding", "utf-8"));
  ASSIGN_OR_RETURN(std::string content, arguments.TextOr("content", ""));
  if (encoding != "utf-8" && encoding != "base64")
    return absl::InvalidArgumentError("encoding must be utf-8 or base64");
  std::string decoded;
  if (encoding == "base64" && !absl::Base64Unescape(content, &decoded))
    return absl::InvalidArgumentError("content is not base64");
  if (encoding == "base64") content = std::move(decoded);
  std::string path;
  ASSIGN_OR_RETURN(const BoxFiles files, FilesOf(surface, arguments, &path));
  const size_t bytes = content.size();
  RETURN_IF_ERROR(files.Write(
      path, [&]() -> absl::StatusOr<std::string> { return std::exchange(content, ""); }));
  return Told(fmt::format("wrote {} bytes to {}", bytes, path), {{"path", path}, {"bytes", bytes}});
}

absl::StatusOr<Json> ListDir(const Surface& surface, const McpCaller&, const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Only({"sandbox", "path"}));
  std::string path, text;
  ASSIGN_OR_RETURN(const BoxFiles files, FilesOf(surface, arguments, &path));
  ASSIGN_OR_RETURN(const std::vector<sandbox::FileInfo> list, files.List(path));
  Json entries = Json::array();
  for (const sandbox::FileInfo& info : list) {
    if (entries.size() >= kEntriesMax) {
      text += fmt::format("and {} more\n", list.size() - entries.size());
      break;
    }
    const char* type = S_ISDIR(info.mode()) ? "directory" : S_ISLNK(info.mode()) ? "link" : "file";
    entries.push_back({{"name", info.name()}, {"type", type}, {"size", info.size()}});
    text += fmt::format("{} {} {}\n", type, info.size(), info.name());
  }
  return Told(text.empty() ? "it is empty" : text, {{"entries", std::move(entries)}});
}

absl::StatusOr<Json> MakeDir(const Surface& surface, const McpCaller&, const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Only({"sandbox", "path"}));
  std::string path;
  ASSIGN_OR_RETURN(const BoxFiles files, FilesOf(surface, arguments, &path));
  RETURN_IF_ERROR(files.MakeDir(path));
  return Told(fmt::format("made {}", path), {{"path", path}});
}

absl::StatusOr<Json> RemovePath(const Surface& surface, const McpCaller&,
                                const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Only({"sandbox", "path"}));
  std::string path;
  ASSIGN_OR_RETURN(const BoxFiles files, FilesOf(surface, arguments, &path));
  RETURN_IF_ERROR(files.Remove(path));
  return Told(fmt::format("removed {}", path), {{"path", path}});
}

// ---- commands

Json Ran(const Collected& done) {
  const sandbox::Result& result = done.result;
  const bool exited = result.outcome() == sandbox::OUTCOME_EXITED;
  std::string text = done.out;
  auto line = [&text](const std::string& words) {
    if (!text.empty() && text.back() != '\n') text += '\n';
    text += words;
  };
  if (!done.err.empty()) line(fmt::format("[stderr]\n{}", done.err));
  if (done.cut) line("[the output was longer; this is a part of it]\n");
  line(exited
           ? fmt::format("[exit code {}]", result.exit_code())
           : fmt::format("[{}]", result.message().empty() ? sandbox::Outcome_Name(result.outcome())
                                                          : result.message()));
  Json fields = {{"stdout", done.out},
                 {"stderr", done.err},
                 {"truncated", done.cut},
                 {"outcome", sandbox::Outcome_Name(result.outcome())},
                 {"replayed", done.started.replayed()}};
  if (exited) fields["exit_code"] = result.exit_code();
  Json told = Told(std::move(text), std::move(fields));
  told["isError"] = !exited;
  return told;
}

absl::StatusOr<sandbox::ExecuteRequest> CommandOf(const McpCaller& caller,
                                                  const Arguments& arguments) {
  RETURN_IF_ERROR(arguments.Only(
      {"sandbox", "command", "timeout_seconds", "working_dir", "env", "stdin", "user"}));
  sandbox::ExecuteRequest call;
  ASSIGN_OR_RETURN(*call.mutable_sandbox_id(), arguments.Text("sandbox"));
  ASSIGN_OR_RETURN(const std::string command, arguments.Text("command"));
  for (const std::string& word : {std::string("/bin/sh"), std::string("-c"), command})
    call.add_argv(word);
  ASSIGN_OR_RETURN(const double seconds,
                   arguments.NumberOr("timeout_seconds", kTimeoutSecondsDefault,
                                      static_cast<double>(kTimeoutMsMax) / 1000));
  call.mutable_limits()->set_timeout_ms(static_cast<uint64_t>(std::ceil(seconds * 1000)));
  ASSIGN_OR_RETURN(*call.mutable_working_dir(), arguments.TextOr("working_dir", ""));
  ASSIGN_OR_RETURN(*call.mutable_stdin(), arguments.TextOr("stdin", ""));
  ASSIGN_OR_RETURN(*call.mutable_user(), arguments.TextOr("user", ""));
  RETURN_IF_ERROR(arguments.Env(call.mutable_env()));
  call.set_call_id(caller.call_id);
  return call;
}

void RunCommand(const Surface& surface, const McpCaller& caller, const Arguments& arguments,
                Done done) {
  absl::StatusOr<sandbox::ExecuteRequest> call = CommandOf(caller, arguments);
  if (!call.ok()) return done(Failed(call.status()));
  Collect(surface.calls->Execute(*std::move(call)), kOutputMax,
          [done = std::move(done)](absl::StatusOr<Collected> collected) {
            done(collected.ok() ? Ran(*collected) : Failed(collected.status()));
          });
}

// ---- all of them

struct Tool {
  const char* name;
  const char* title;
  const char* description;
  bool read_only;
  std::vector<std::string> required;
  Json properties;
  absl::StatusOr<Json> (*work)(const Surface&, const McpCaller&, const Arguments&);  // or a command
};

Json Text(const char* description) { return {{"type", "string"}, {"description", description}}; }

const std::vector<Tool>& Tools() {
  static const auto* const kTools = [] {
    const Json box = Text("id of a sandbox, as create_sandbox gave it");
    const Json path = Text("absolute, or relative to the working directory (/work)");
    const Json env = {{"type", "object"},
                      {"additionalProperties", {{"type", "string"}}},
                      {"description", "environment variables"}};
    return new std::vector<Tool>{
        {"create_sandbox",
         "Create a sandbox",
         "Makes an isolated sandbox and answers with its id. It lives until stop_sandbox.",
         false,
         {"tier"},
         {{"tier",
           {{"type", "string"},
            {"enum", {"function", "container", "microvm", "vm"}},
            {"description",
             "function: nothing is kept between commands; container, microvm: files are kept"}}},
          {"image", Text("image to start from; container and microvm need one")},
          {"env", env}},
         CreateSandbox},
        {"list_sandboxes",
         "List sandboxes",
         "Lists the sandboxes with their tier and state.",
         true,
         {},
         Json::object(),
         ListSandboxes},
        {"stop_sandbox",
         "Stop a sandbox",
         "Ends what runs in a sandbox and removes what it holds.",
         false,
         {"sandbox"},
         {{"sandbox", box}},
         StopSandbox},
        {"run_command",
         "Run a command",
         "Runs a shell command to its end and answers with its output and exit code.",
         false,
         {"sandbox", "command"},
         {{"sandbox", box},
          {"command", Text("for /bin/sh -c")},
          {"timeout_seconds",
           {{"type", "number"}, {"exclusiveMinimum", 0}, {"description", "default 120"}}},
          {"working_dir", Text("default /work")},
          {"env", env},
          {"stdin", Text("its whole standard input")},
          {"user", Text("user to run as; default: the sandbox's")}},
         nullptr},
        {"read_file",
         "Read a file",
         "Answers with the content of a file; base64 where it is no text.",
         true,
         {"sandbox", "path"},
         {{"sandbox", box},
          {"path", path},
          {"max_bytes",
           {{"type", "integer"},
            {"minimum", 1},
            {"maximum", kReadMax},
            {"description", "longer files are an error; default 262144"}}}},
         ReadFile},
        {"write_file",
         "Write a file",
         "Makes or replaces a file, with its directories.",
         false,
         {"sandbox", "path", "content"},
         {{"sandbox", box},
          {"path", path},
          {"content", Text("what the file will hold")},
          {"encoding",
           {{"type", "string"},
            {"enum", {"utf-8", "base64"}},
            {"description", "of content; default utf-8"}}}},
         WriteFile},
        {"list_dir",
         "List a directory",
         "Lists the entries of a directory with their type and size.",
         true,
         {"sandbox", "path"},
         {{"sandbox", box}, {"path", path}},
         ListDir},
        {"make_dir",
         "Make a directory",
         "Makes a directory with its parents.",
         false,
         {"sandbox", "path"},
         {{"sandbox", box}, {"path", path}},
         MakeDir},
        {"remove_path",
         "Remove a file or directory",
         "Removes a file, or a directory with all below it.",
         false,
         {"sandbox", "path"},
         {{"sandbox", box}, {"path", path}},
         RemovePath}};
  }();
  return *kTools;
}

}  // namespace

Json McpTools() {
  Json list = Json::array();
  for (const Tool& tool : Tools()) {
    list.push_back({{"name", tool.name},
                    {"title", tool.title},
                    {"description", tool.description},
                    {"inputSchema",
                     {{"type", "object"},
                      {"properties", tool.properties},
                      {"required", tool.required},
                      {"additionalProperties", false}}},
                    {"annotations", {{"readOnlyHint", tool.read_only}}}});
  }
  return list;
}

bool CallMcpTool(const Surface& surface, const McpCaller& caller, const std::string& name,
                 const Json& json, Done done) {
  const auto tool = std::find_if(Tools().begin(), Tools().end(),
                                 [&](const Tool& each) { return each.name == name; });
  if (tool == Tools().end()) return false;
  const Arguments arguments(json);
  if (tool->work == nullptr) {
    RunCommand(surface, caller, arguments, std::move(done));
    return true;
  }
  absl::StatusOr<Json> result = tool->work(surface, caller, arguments);
  done(result.ok() ? *std::move(result) : Failed(result.status()));
  return true;
}

}  // namespace reprise::sandboxd::http
