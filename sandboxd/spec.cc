#include "sandboxd/spec.h"

#include <algorithm>

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/message_differencer.h>

namespace reprise::sandboxd {
namespace {

constexpr size_t kShownBytesMax = 120;

// `spec` with one field only, as text.
std::string OneField(const sandbox::SandboxSpec& spec,
                     const google::protobuf::FieldDescriptor* field) {
  sandbox::SandboxSpec only = spec;
  for (int i = 0; i < spec.GetDescriptor()->field_count(); ++i) {
    const google::protobuf::FieldDescriptor* other = spec.GetDescriptor()->field(i);
    if (other != field) only.GetReflection()->ClearField(&only, other);
  }
  std::string text = only.ShortDebugString();
  if (text.empty()) return "unset";
  if (text.size() > kShownBytesMax) text = text.substr(0, kShownBytesMax) + "...";
  return text;
}

}  // namespace

sandbox::SandboxSpec RedactSpec(const sandbox::SandboxSpec& spec) {
  sandbox::ExecuteRequest carrier;  // the journal's own rule, so that both always agree
  *carrier.mutable_env() = spec.env();
  sandbox::SandboxSpec redacted = spec;
  *redacted.mutable_env() = replay::RedactSecrets(carrier).env();
  return redacted;
}

std::string FirstDifference(const sandbox::SandboxSpec& was, const sandbox::SandboxSpec& is) {
  const google::protobuf::Descriptor* descriptor = was.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const google::protobuf::FieldDescriptor* field = descriptor->field(i);
    google::protobuf::util::MessageDifferencer differencer;
    if (!differencer.CompareWithFields(was, is, {field}, {field})) {
      return fmt::format("{} differs: was {}, is {}", field->name(), OneField(was, field),
                         OneField(is, field));
    }
  }
  return "";
}

sandbox::SandboxSpec CurrentSpec(const replay::journal::SandboxRecord& record) {
  sandbox::SandboxSpec spec = record.spec();
  if (record.has_network()) *spec.mutable_network() = record.network();
  return spec;
}

sandbox::Sandbox ToSandbox(const replay::journal::SandboxRecord& record) {
  sandbox::Sandbox out;
  out.set_id(record.id());
  *out.mutable_spec() = record.spec();
  for (sandbox::EnvVar& variable : *out.mutable_spec()->mutable_env()) {
    if (variable.secret()) variable.clear_value();
  }
  out.set_state(record.state());
  out.set_created_us(record.created_us());
  out.set_calls(record.calls());
  out.set_message(record.message());
  if (record.has_network()) {
    *out.mutable_network() = record.network();
  } else if (record.spec().has_network()) {
    *out.mutable_network() = record.spec().network();
  }
  return out;
}

void Merge(const sandbox::ForkRequest& request, sandbox::SandboxSpec* spec) {
  for (const sandbox::EnvVar& variable : request.env()) {
    auto same = std::find_if(spec->mutable_env()->begin(), spec->mutable_env()->end(),
                             [&](const auto& other) { return other.name() == variable.name(); });
    *(same == spec->mutable_env()->end() ? spec->add_env() : &*same) = variable;
  }
  // Zeros are not set in proto3: what merging takes are the others.
  spec->mutable_limits()->MergeFrom(request.limits());
}

}  // namespace reprise::sandboxd
