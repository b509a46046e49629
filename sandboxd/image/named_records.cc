#include "sandboxd/image/named_records.h"

#include <errno.h>
#include <unistd.h>

#include <filesystem>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/status_macros.h"
#include "sandboxd/image/blob.h"
#include "sandboxd/image/image_name.h"

namespace reprise::sandboxd {

std::string NamedRecord::Text(const std::string& key) const {
  const auto found = texts.find(key);
  return found == texts.end() ? "" : found->second;
}

// A name has slashes and a colon; its digest is a file name.
std::string NamedRecords::Path(const std::string& name) const {
  const std::string digest = Sha256Digest(name);
  return fmt::format("{}/{}.json", dir_, digest.substr(digest.find(':') + 1));
}

std::vector<std::string> NamedRecords::Paths() const {
  std::vector<std::string> paths;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(dir_, ignored))
    paths.push_back(entry.path());
  return paths;
}

absl::StatusOr<NamedRecord> NamedRecords::Read(const std::string& path) const {
  ASSIGN_OR_RETURN(const std::string text, base::ReadFile(path, bytes_max_));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  NamedRecord record;
  if (json.is_object()) {
    for (const auto& [key, value] : json.items()) {
      if (value.is_string()) record.texts[key] = value.get<std::string>();
      if (value.is_number_unsigned()) record.numbers[key] = value.get<uint64_t>();
    }
  }
  record.image.set_name(record.Text("name"));
  record.image.set_digest(record.Text("digest"));
  if (record.image.name().empty() || !CheckDigest(record.image.digest(), path).ok())
    return Malformed(path);
  record.image.set_size_bytes(record.numbers.contains("size") ? record.numbers["size"] : 0);
  record.image.set_layers(
      record.numbers.contains("layers") ? static_cast<uint32_t>(record.numbers["layers"]) : 1);
  return record;
}

absl::Status NamedRecords::Malformed(const std::string& path) const {
  return absl::DataLossError(fmt::format("{} is malformed: {}", path, remedy_));
}

absl::Status NamedRecords::Remove(const std::string& name) const {
  RETURN_IF_ERROR(CheckImageName(name));
  if (unlink(Path(name).c_str()) == 0) return absl::OkStatus();
  if (errno == ENOENT) return absl::NotFoundError(fmt::format("there is no {} '{}'", kind_, name));
  return base::ErrnoStatus(errno, fmt::format("remove {} {}", kind_, name));
}

}  // namespace reprise::sandboxd
