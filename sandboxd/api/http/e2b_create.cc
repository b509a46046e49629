#include "sandboxd/api/http/e2b_create.h"

#include <algorithm>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/api/http/e2b.h"

namespace reprise::sandboxd::http {
namespace {

using Json = nlohmann::json;

constexpr char kImageKey[] = "reprise.image";
constexpr char kAllTraffic[] = "0.0.0.0/0";

struct TierName {
  std::string_view name;
  sandbox::Tier tier;
};
constexpr TierName kTiers[] = {{"function", sandbox::TIER_FUNCTION},
                               {"container", sandbox::TIER_CONTAINER},
                               {"microvm", sandbox::TIER_MICROVM},
                               {"vm", sandbox::TIER_VM}};

absl::Status Bad(std::string_view field, std::string_view what) {
  return absl::InvalidArgumentError(fmt::format("{} {}", field, what));
}

std::optional<sandbox::Tier> TierNamed(std::string_view name) {
  for (const TierName& tier : kTiers) {
    if (tier.name == name) return tier.tier;
  }
  return std::nullopt;
}

// Whether a field asks for anything at all.
bool Asks(const Json& json, const char* field) {
  if (!json.contains(field)) return false;
  const Json& value = json[field];
  return !(value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
           ((value.is_object() || value.is_array() || value.is_string()) && value.empty()));
}

absl::StatusOr<Json> ParseObject(std::string_view body) {
  if (body.empty()) return Json::object();
  Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("the body is not a JSON object");
  return json;
}

absl::StatusOr<int64_t> TimeoutOf(const Json& json, int64_t default_timeout_s) {
  if (!json.contains("timeout") || json["timeout"].is_null()) return default_timeout_s;
  const Json& value = json["timeout"];
  if (!value.is_number() || value.get<double>() < 0 ||
      value.get<double>() > static_cast<double>(kTimeoutSecondsMax)) {
    return Bad("timeout", fmt::format("must be 0 to {} seconds", kTimeoutSecondsMax));
  }
  return static_cast<int64_t>(value.get<double>());
}

absl::Status AddRules(const Json& network, const char* field,
                      google::protobuf::RepeatedPtrField<std::string>* rules) {
  if (!Asks(network, field)) return absl::OkStatus();
  if (!network[field].is_array()) return Bad(fmt::format("network.{}", field), "must be an array");
  for (const Json& rule : network[field]) {
    if (!rule.is_string()) return Bad(fmt::format("network.{}", field), "must hold strings");
    rules->Add(rule.get<std::string>());
  }
  return absl::OkStatus();
}

// E2B's `network` and `allow_internet_access` of one request. Empty: nothing is reachable.
absl::StatusOr<sandbox::NetworkPolicy> ParseNetwork(const Json& network, const Json& access,
                                                    bool internet) {
  sandbox::NetworkPolicy policy;
  policy.set_open(internet && (access.is_null() || access == true));
  if (network.is_null()) return policy;
  if (!network.is_object()) return Bad("network", "must be an object");
  for (const char* field : {"egressProxy", "rules", "maskRequestHost"}) {
    if (Asks(network, field))
      return absl::UnimplementedError(
          fmt::format("network.{}: not offered here; leave it out", field));
  }
  RETURN_IF_ERROR(AddRules(network, "allowOut", policy.mutable_allow()));
  RETURN_IF_ERROR(AddRules(network, "denyOut", policy.mutable_deny()));
  auto* deny = policy.mutable_deny();
  // Sandboxes have no IPv6.
  deny->erase(std::remove_if(deny->begin(), deny->end(),
                             [](const std::string& rule) { return rule.find("::") != rule.npos; }),
              deny->end());
  // All traffic: nothing but what is allowed, and of names no others either.
  if (std::find(deny->begin(), deny->end(), kAllTraffic) != deny->end()) policy.set_open(false);
  if (!policy.open()) deny->Clear();
  return policy;
}

bool IsEmpty(const sandbox::NetworkPolicy& policy) {
  return !policy.open() && policy.allow().empty();
}

Json Field(const Json& json, const char* name) { return json.contains(name) ? json[name] : Json(); }

}  // namespace

absl::StatusOr<int64_t> ParseTimeout(std::string_view body, int64_t default_timeout_s) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  return TimeoutOf(json, default_timeout_s);
}

absl::StatusOr<sandbox::NetworkPolicy> ParseNetworkUpdate(std::string_view body, bool internet) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  return ParseNetwork(json, Field(json, "allow_internet_access"), internet);
}

absl::StatusOr<CreateOrder> ParseCreate(std::string_view body, int64_t default_timeout_s,
                                        bool internet) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  if (!json.contains("templateID") || !json["templateID"].is_string())
    return Bad("templateID", "must be a string");
  CreateOrder order;
  order.template_id = json["templateID"];
  ASSIGN_OR_RETURN(order.timeout_s, TimeoutOf(json, default_timeout_s));
  order.pause_at_end = Asks(json, "autoPause");
  for (const char* field : {"volumeMounts", "mcp", "iam"}) {
    if (Asks(json, field)) {
      return absl::UnimplementedError(fmt::format("{}: not offered here; leave it out", field));
    }
  }
  ASSIGN_OR_RETURN(
      sandbox::NetworkPolicy policy,
      ParseNetwork(Field(json, "network"), Field(json, "allow_internet_access"), internet));
  if (!IsEmpty(policy)) *order.spec.mutable_network() = std::move(policy);

  auto* labels = order.spec.mutable_labels();
  if (Asks(json, "metadata")) {
    if (!json["metadata"].is_object()) return Bad("metadata", "must be an object");
    for (const auto& [key, value] : json["metadata"].items()) {
      if (!value.is_string()) return Bad("metadata", "must have strings as values");
      (*labels)[key] = value.get<std::string>();
    }
  }
  if (Asks(json, "envVars")) {
    if (!json["envVars"].is_object()) return Bad("envVars", "must be an object");
    for (const auto& [name, value] : json["envVars"].items()) {
      if (!value.is_string()) return Bad("envVars", "must have strings as values");
      sandbox::EnvVar* variable = order.spec.add_env();
      variable->set_name(name);
      variable->set_value(value.get<std::string>());
    }
  }

  std::string image = order.template_id;
  sandbox::Tier tier = sandbox::TIER_CONTAINER;
  const size_t at = image.rfind('@');  // also in image@sha256:...: only a tier's name counts
  if (at != std::string::npos) {
    if (const auto named = TierNamed(std::string_view(image).substr(at + 1)); named.has_value()) {
      tier = *named;
      image.resize(at);
    }
  }
  if (const auto label = labels->find(kTierLabel); label != labels->end()) {
    const std::optional<sandbox::Tier> named = TierNamed(label->second);
    if (!named.has_value()) {
      return Bad(fmt::format("metadata[\"{}\"]", kTierLabel),
                 "must be function, container, microvm or vm");
    }
    tier = *named;
  }
  if (const auto label = labels->find(kTrajectoryLabel); label != labels->end()) {
    order.trajectory = label->second;
    RETURN_IF_ERROR(base::CheckId(order.trajectory, "metadata[\"reprise.trajectory\"]",
                                  /*allow_slash=*/true));
  }
  if (const auto label = labels->find(kImageKey); label != labels->end()) image = label->second;
  order.spec.set_tier(tier);
  if (tier != sandbox::TIER_FUNCTION) order.spec.set_image(image);  // it has the host's programs
  (*labels)[kTemplateLabel] = order.template_id;
  return order;
}

}  // namespace reprise::sandboxd::http
