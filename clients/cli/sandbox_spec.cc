// Texts of the command line to the fields of a sandbox spec, and tiers to tables.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/format.h"
#include "base/status_macros.h"
#include "clients/cli/output.h"
#include "clients/cli/sandbox_verbs.h"
#include "clients/cli/wire_json.h"

namespace reprise::cli {
namespace {

// A limit as people read it; "-" for none.
std::string Milliseconds(uint64_t ms) {
  return ms == 0 ? "-" : HumanSeconds(static_cast<double>(ms) / 1000);
}
std::string Bytes(uint64_t bytes) { return bytes == 0 ? "-" : HumanBytes(bytes); }
std::string Number(uint64_t number) { return number == 0 ? "-" : Count(number); }

}  // namespace

absl::StatusOr<sandbox_wire::Tier> ParseTier(const std::string& name) {
  for (int i = sandbox_wire::TIER_FUNCTION; i <= sandbox_wire::Tier_MAX; ++i) {
    auto tier = static_cast<sandbox_wire::Tier>(i);
    if (TierName(tier) == name) return tier;
  }
  return UsageError(
      fmt::format("no tier \"{}\": function, container, microvm and vm are tiers", name));
}

absl::Status AddEnv(const std::vector<std::string>& texts, bool secret,
                    google::protobuf::RepeatedPtrField<sandbox_wire::EnvVar>* env) {
  for (const std::string& text : texts) {
    size_t equals = text.find('=');
    if (equals == 0 || equals == text.npos)
      return UsageError(fmt::format("\"{}\" is no NAME=VALUE", text));
    sandbox_wire::EnvVar* variable = env->Add();
    variable->set_name(text.substr(0, equals));
    variable->set_value(text.substr(equals + 1));
    variable->set_secret(secret);
  }
  return absl::OkStatus();
}

absl::Status AddBinds(const std::vector<std::string>& texts,
                      google::protobuf::RepeatedPtrField<sandbox_wire::Bind>* binds) {
  for (std::string text : texts) {
    bool writable = text.ends_with(":rw");
    if (writable) text.resize(text.size() - 3);
    size_t colon = text.find(':');
    if (colon == 0 || colon == text.npos || colon + 1 == text.size())
      return UsageError(fmt::format("\"{}\" is no HOST:INSIDE or HOST:INSIDE:rw", text));
    std::error_code ignored;
    sandbox_wire::Bind* bind = binds->Add();
    bind->set_host_path(
        std::filesystem::absolute(text.substr(0, colon), ignored).lexically_normal().string());
    bind->set_sandbox_path(text.substr(colon + 1));
    bind->set_writable(writable);
  }
  return absl::OkStatus();
}

std::string TierTables(const std::vector<sandbox_wire::TierInfo>& tiers) {
  Table usable({"TIER", "USABLE", "WITH, OR WHY NOT"});
  std::vector<std::string> verb_header = {"VERB"}, limit_header = {"DEFAULT LIMIT OF A CALL"};
  std::map<std::string, std::vector<std::string>> verbs;
  std::map<std::string, std::vector<std::string>> notes;  // why not -> "tier: verb"
  for (size_t i = 0; i < tiers.size(); ++i) {
    std::string name = TierName(tiers[i].tier());
    usable.Add({name, tiers[i].usable() ? "yes" : "no", tiers[i].reason()});
    verb_header.push_back(name);
    limit_header.push_back(name);
    for (const auto& [verb, answer] : tiers[i].verbs()) {
      std::vector<std::string>& row = verbs[verb];
      row.resize(tiers.size(), "no");
      row[i] = answer == "yes" ? "yes" : "no";
      if (answer != "yes") notes[fmt::format("{}: {}", name, answer)].push_back(verb);
    }
  }
  Table verb_table(verb_header);
  for (auto& [verb, row] : verbs) {
    row.insert(row.begin(), verb);
    verb_table.Add(row);
  }
  Table limits(limit_header);
  auto add = [&](const std::string& name, auto value) {
    std::vector<std::string> row = {name};
    for (const auto& tier : tiers) row.push_back(value(tier.default_limits()));
    limits.Add(row);
  };
  add("wall time", [](const auto& limit) { return Milliseconds(limit.timeout_ms()); });
  add("CPU time", [](const auto& limit) { return Milliseconds(limit.cpu_ms()); });
  add("memory", [](const auto& limit) { return Bytes(limit.memory_bytes()); });
  add("processes", [](const auto& limit) { return Number(limit.pids()); });
  add("disk", [](const auto& limit) { return Bytes(limit.disk_bytes()); });
  add("one file", [](const auto& limit) { return Bytes(limit.file_bytes()); });
  add("open files", [](const auto& limit) { return Number(limit.open_files()); });
  add("output kept", [](const auto& limit) { return Bytes(limit.output_bytes_kept()); });
  add("output at most", [](const auto& limit) { return Bytes(limit.output_bytes_max()); });
  std::string text = usable.Render() + "\n" + verb_table.Render();
  for (auto& [why, which] : notes) {
    std::sort(which.begin(), which.end());
    std::string list;
    for (const std::string& verb : which) list += (list.empty() ? "" : ", ") + verb;
    text += fmt::format("no {} in {}\n", list, why);
  }
  return text + "\n" + limits.Render();
}

}  // namespace reprise::cli
