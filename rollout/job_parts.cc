#include "rollout/job_parts.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/status_macros.h"
#include "http/url.h"
#include "rollout/text.h"

namespace reprise::rollout {
namespace {

const std::vector<std::string> kTiers = {"function", "container", "microvm", "vm"};

// A table of variables, checked for what an environment can hold.
std::vector<std::pair<std::string, std::string>> ReadEnv(Fields& fields) {
  auto env = fields.StringMap("env");
  for (const auto& [name, value] : env) {
    if (name.empty() || name.find('=') != name.npos || name.find('\0') != name.npos ||
        value.find('\0') != value.npos) {
      fields.Fail("env", fmt::format("has the variable \"{}\", allowed: a name without '=', no NUL "
                                     "bytes",
                                     name));
    }
  }
  return env;
}

}  // namespace

std::string FromDirectory(const std::string& directory, const std::string& path) {
  return (std::filesystem::path(directory) / path).lexically_normal().string();
}

absl::StatusOr<sandbox::Limits> ReadLimits(Fields& fields, sandbox::Limits base) {
  const auto* descriptor = sandbox::Limits::descriptor();
  const auto* reflection = sandbox::Limits::GetReflection();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const auto* field = descriptor->field(i);
    if (!fields.Has(field->name())) {
      fields.Raw(field->name());
      continue;
    }
    if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_BOOL) {
      reflection->SetBool(&base, field, fields.Bool(field->name(), false));
      continue;
    }
    bool narrow = field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_UINT32;
    int64_t value = fields.Int(field->name(), 0, narrow ? INT32_MAX : INT64_MAX, 0);
    if (narrow) {
      reflection->SetUInt32(&base, field, static_cast<uint32_t>(value));
    } else {
      reflection->SetUInt64(&base, field, static_cast<uint64_t>(value));
    }
  }
  RETURN_IF_ERROR(fields.Finish());
  return base;
}

absl::StatusOr<sandbox::SandboxSpec> ReadSandbox(Fields& fields, sandbox::SandboxSpec base,
                                                 const std::string& directory) {
  if (fields.Has("tier") || base.tier() == sandbox::TIER_UNSPECIFIED) {
    std::string tier = fields.OneOf("tier", kTiers, "function");
    for (size_t i = 0; i < kTiers.size(); ++i) {
      if (kTiers[i] == tier) base.set_tier(static_cast<sandbox::Tier>(i + 1));
    }
  } else {
    fields.Raw("tier");
  }
  base.set_image(fields.String("image", base.image()));
  base.set_working_dir(fields.String("working_dir", base.working_dir()));
  base.set_runtime(fields.String("runtime", base.runtime()));
  base.set_user(fields.String("user", base.user()));
  if (!base.working_dir().empty() && base.working_dir()[0] != '/') {
    fields.Fail("working_dir", "is not absolute, allowed: a path that begins with /");
  }
  for (const auto& [name, value] : ReadEnv(fields)) {
    auto* variable = base.add_env();
    variable->set_name(name);
    variable->set_value(value);
  }
  for (Fields& bind : fields.Tables("binds")) {
    auto* out = base.add_binds();
    out->set_host_path(FromDirectory(directory, bind.String("host_path")));
    out->set_sandbox_path(bind.String("sandbox_path"));
    out->set_writable(bind.Bool("writable", false));
    if (out->sandbox_path().empty() || out->sandbox_path()[0] != '/') {
      bind.Fail("sandbox_path", "is not absolute, allowed: a path that begins with /");
    }
    RETURN_IF_ERROR(bind.Finish());
  }
  if (auto limits = fields.Table("limits")) {
    ASSIGN_OR_RETURN(*base.mutable_limits(), ReadLimits(*limits, base.limits()));
  }
  RETURN_IF_ERROR(fields.Finish());
  return base;
}

namespace {

HttpJudge ReadHttpJudge(Fields& fields, const std::string& directory) {
  HttpJudge judge;
  judge.url = fields.String("url");
  auto url = http::ParseUrl(judge.url);
  if (!url.ok()) fields.Fail("url", fmt::format("is {}", Message(url.status())));
  judge.timeout_ms = fields.Int("timeout_ms", 1, 3'600'000, 60'000);
  judge.attempts = fields.Int("attempts", 1, 100, 5);
  for (auto [key, path] : {std::pair("token_file", &judge.token_file),
                           std::pair("ca_file", &judge.ca_file)}) {
    if (!fields.Has(key)) {
      fields.Raw(key);
      continue;
    }
    *path = FromDirectory(directory, fields.String(key));
    if (auto content = base::ReadFile(*path); !content.ok())
      fields.Fail(key, fmt::format("cannot be used: {}", Message(content.status())));
  }
  return judge;
}

}  // namespace

absl::StatusOr<RewardSpec> ReadReward(Fields& fields, const std::string& directory) {
  RewardSpec out;
  const std::string kind = fields.OneOf("kind", {"match", "command", "http"});
  if (kind == "match") {
    out.kind = RewardSpec::Kind::kMatch;
    out.answer = fields.String("answer");
  } else if (kind == "http") {
    out.kind = RewardSpec::Kind::kHttp;
    out.http = ReadHttpJudge(fields, directory);
  } else {
    out.kind = RewardSpec::Kind::kCommand;
    out.argv = fields.Strings("command", 1, true);
    out.env = ReadEnv(fields);
    if (auto limits = fields.Table("limits")) {
      ASSIGN_OR_RETURN(out.limits, ReadLimits(*limits, {}));
    }
    if (auto box = fields.Table("sandbox")) {
      ASSIGN_OR_RETURN(out.sandbox, ReadSandbox(*box, {}, directory));
    }
  }
  RETURN_IF_ERROR(fields.Finish());
  return out;
}

}  // namespace reprise::rollout
