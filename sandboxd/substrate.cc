// What a tier answers for verbs that it does not have: UNIMPLEMENTED with the tier's name.
#include "sandboxd/substrate.h"

#include <fmt/format.h>

namespace reprise::sandboxd {
namespace {

absl::Status NoVerb(Substrate* substrate, const std::string& verb) {
  const sandbox::TierInfo info = substrate->Describe();
  const auto reason = info.verbs().find(verb);
  if (reason != info.verbs().end() && reason->second != "yes") {
    return absl::UnimplementedError(fmt::format("{} is not a verb of {}: {}", verb,
                                                sandbox::Tier_Name(info.tier()), reason->second));
  }
  return absl::UnimplementedError(fmt::format("{} is not a verb of {}: see ListTiers for what each tier can do", verb,
                                              sandbox::Tier_Name(info.tier())));
}

}  // namespace

void Substrate::RecoveryDone() {}

absl::Status Substrate::SetNetwork(const SandboxRef&) { return NoVerb(this, "network"); }
absl::StatusOr<sandbox::NetworkCounters> Substrate::CountNetwork(const SandboxRef&) {
  return sandbox::NetworkCounters();
}

absl::StatusOr<SnapshotImage> Substrate::SnapshotSandbox(const SandboxRef&, const std::string&) {
  return NoVerb(this, "snapshot");
}

absl::Status Substrate::ReadFile(const SandboxRef&, const std::string&,
                                 const std::function<absl::Status(std::string_view)>&) {
  return NoVerb(this, "read_file");
}
absl::Status Substrate::WriteFile(const SandboxRef&, const std::string&, uint32_t,
                                  const std::function<absl::StatusOr<std::string>()>&) {
  return NoVerb(this, "write_file");
}
absl::StatusOr<std::vector<sandbox::FileInfo>> Substrate::ListDir(const SandboxRef&, const std::string&) {
  return NoVerb(this, "list_dir");
}
absl::Status Substrate::MakeDir(const SandboxRef&, const std::string&) { return NoVerb(this, "make_dir"); }
absl::Status Substrate::Move(const SandboxRef&, const std::string&, const std::string&) {
  return NoVerb(this, "move");
}
absl::Status Substrate::Remove(const SandboxRef&, const std::string&) { return NoVerb(this, "remove"); }
absl::StatusOr<std::unique_ptr<FileWatch>> Substrate::Watch(const SandboxRef&, const std::string&, bool) {
  return NoVerb(this, "watch");
}

absl::StatusOr<sandbox::ConsoleResponse> Substrate::Console(const SandboxRef&,
                                                            const sandbox::ConsoleRequest&) {
  return NoVerb(this, "console");
}
absl::StatusOr<sandbox::ScreenshotResponse> Substrate::Screenshot(const SandboxRef&) {
  return NoVerb(this, "screenshot");
}
absl::Status Substrate::SendInput(const SandboxRef&, const sandbox::SendInputRequest&) {
  return NoVerb(this, "input");
}

absl::StatusOr<sandbox::Image> Substrate::ImportImage(const std::string&, const std::string&) {
  return NoVerb(this, "import_image");
}
absl::StatusOr<std::vector<sandbox::Image>> Substrate::ListImages() { return NoVerb(this, "list_images"); }
absl::Status Substrate::RemoveImage(const std::string&) { return NoVerb(this, "remove_image"); }

}  // namespace reprise::sandboxd
