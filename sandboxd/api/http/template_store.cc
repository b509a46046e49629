#include "sandboxd/api/http/template_store.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include <fmt/format.h>

#include "base/ids.h"
#include "base/status_macros.h"
#include "replay/sha256.h"

namespace reprise::sandboxd::http {
namespace {

constexpr size_t kIdDigits = 20;
constexpr size_t kHashDigits = 64;
constexpr char kDefaultTag[] = "default";

absl::Status Absent(std::string_view name) {
  return absl::NotFoundError(fmt::format("no template {} was built here", name));
}
absl::Status Unreadable(std::string_view name) {
  return absl::DataLossError(fmt::format("{}: template {} cannot be read", kTemplateFamily, name));
}

}  // namespace

std::pair<std::string, std::string> TemplateStore::SplitTag(std::string_view name) {
  const size_t colon = std::min(name.find(':'), name.size());
  const std::string_view tag = name.substr(std::min(colon + 1, name.size()));
  return {std::string(name.substr(0, colon)), tag.empty() ? kDefaultTag : std::string(tag)};
}

std::string TemplateStore::IdOf(std::string_view name) {
  const std::string digest = replay::Sha256Of(SplitTag(name).first);
  return fmt::format("tpl{}", replay::Hex(digest).substr(0, kIdDigits));
}

// Keys are ID:TAG and ID:BUILD_ID.
absl::StatusOr<TemplateStore::Template> TemplateStore::Find(std::string_view name_or_id) const {
  const auto [name, tag] = SplitTag(name_or_id);
  Template found;
  for (const std::string& id : {name, IdOf(name)}) {
    const absl::StatusOr<std::string> payload =
        store_->Get(templates_, fmt::format("{}:{}", id, tag));
    if (absl::IsNotFound(payload.status())) continue;
    RETURN_IF_ERROR(payload.status());
    if (found.ParseFromString(*payload)) return found;
    return Unreadable(name_or_id);
  }
  return Absent(name_or_id);
}

absl::Status TemplateStore::Put(const Template& built) {
  const std::string id = IdOf(built.name()), payload = built.SerializeAsString();
  storage::Batch batch;
  batch.Put(templates_, fmt::format("{}:{}", id, SplitTag(built.name()).second), payload);
  batch.Put(templates_, fmt::format("{}:{}", id, built.build_id()), payload);
  return store_->Commit(std::move(batch));
}

absl::StatusOr<std::vector<TemplateStore::Template>> TemplateStore::Tags(
    std::string_view name_or_id) const {
  std::vector<Template> tags;
  const std::string name = SplitTag(name_or_id).first;
  for (const std::string& id : {name, IdOf(name)}) {
    RETURN_IF_ERROR(
        store_->Scan(templates_, fmt::format("{}:", id),
                     [&](std::string_view key, std::string_view payload) -> absl::Status {
                       Template found;
                       if (!found.ParseFromArray(payload.data(), static_cast<int>(payload.size())))
                         return Unreadable(name_or_id);
                       if (key.substr(id.size() + 1) == SplitTag(found.name()).second)
                         tags.push_back(std::move(found));
                       return absl::OkStatus();
                     }));
  }
  if (tags.empty()) return Absent(name_or_id);
  return tags;
}

absl::Status TemplateStore::Remove(std::string_view name_or_id) {
  ASSIGN_OR_RETURN(const std::vector<Template> tags, Tags(name_or_id));
  const std::string id = IdOf(tags.front().name());
  storage::Batch batch;
  RETURN_IF_ERROR(store_->DeleteAll(templates_, fmt::format("{}:", id), &batch));
  return store_->Commit(std::move(batch));
}

absl::StatusOr<std::string> TemplateStore::StepImage(std::string_view digest) const {
  const absl::StatusOr<std::string> payload = store_->Get(steps_, digest);
  if (absl::IsNotFound(payload.status())) return std::string();
  RETURN_IF_ERROR(payload.status());
  ::reprise::envd::v1::BuiltStep step;
  if (step.ParseFromString(*payload)) return step.image();
  return absl::DataLossError(fmt::format("{}: step {} cannot be read", kStepFamily, digest));
}

absl::Status TemplateStore::PutStepImage(std::string_view digest, const std::string& image) {
  ::reprise::envd::v1::BuiltStep step;
  step.set_image(image);
  storage::Batch batch;
  batch.Put(steps_, digest, step.SerializeAsString());
  return store_->Commit(std::move(batch));
}

absl::StatusOr<std::string> TemplateStore::UploadPath(std::string_view hash) const {
  if (hash.size() != kHashDigits ||
      hash.find_first_not_of("0123456789abcdef") != std::string_view::npos)
    return absl::InvalidArgumentError("the hash of files is 64 hexadecimal digits");
  return fmt::format("{}/{}", uploads_dir_, hash);
}

bool TemplateStore::HasUpload(std::string_view hash) const {
  const absl::StatusOr<std::string> path = UploadPath(hash);
  std::error_code error;
  return path.ok() && std::filesystem::exists(*path, error);
}

absl::Status TemplateStore::SaveUpload(
    std::string_view hash, const std::function<absl::StatusOr<std::string>()>& next) const {
  ASSIGN_OR_RETURN(const std::string path, UploadPath(hash));
  const auto failed = [&](const std::string& file) {
    return absl::ResourceExhaustedError(fmt::format("{}: {}", file, std::strerror(errno)));
  };
  std::error_code error;
  std::filesystem::create_directories(uploads_dir_, error);
  const std::string partial = fmt::format("{}.{}", path, base::RandomHex(8));
  const absl::Status saved = [&]() -> absl::Status {
    std::ofstream file(partial, std::ios::binary);
    if (!file) return failed(partial);
    while (true) {
      ASSIGN_OR_RETURN(const std::string piece, next());
      if (piece.empty()) break;
      file.write(piece.data(), static_cast<std::streamsize>(piece.size()));
      if (!file) return failed(partial);
    }
    file.close();
    if (!file) return failed(partial);
    std::filesystem::rename(partial, path, error);
    return error ? failed(path) : absl::OkStatus();
  }();
  if (!saved.ok()) std::filesystem::remove(partial, error);
  return saved;
}

}  // namespace reprise::sandboxd::http
