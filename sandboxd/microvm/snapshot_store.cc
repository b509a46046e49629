#include "sandboxd/microvm/snapshot_store.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "base/fd.h"
#include "base/format.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "sandboxd/image/blob.h"
#include "sandboxd/image/image_name.h"
#include "sandboxd/microvm/memory_image.h"

namespace reprise::sandboxd::microvm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kMachinePart[] = "machine";  // a VmConfig
constexpr uint64_t kRecordBytesMax = 64 << 10, kDevicesBytesMax = 64 << 20;
constexpr size_t kDirBytes = 12;

absl::Status Sync(const std::string& path) {
  const base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid() || fsync(fd.get()) != 0) return base::ErrnoStatus(errno, "sync " + path);
  return absl::OkStatus();
}

absl::Status Rename(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
  return base::ErrnoStatus(errno, fmt::format("rename {} to {}", from, to));
}

// Every file of a directory, and its entries.
absl::Status SyncAll(const std::string& dir) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(dir, error)) RETURN_IF_ERROR(Sync(entry.path()));
  if (error) return base::ErrnoStatus(error.value(), "list " + dir);
  return Sync(dir);
}

uint64_t BytesOf(const std::string& path) {
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  return error ? 0 : size;
}

absl::StatusOr<MemoryImage> LookAt(const std::string& path) {
  const base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return base::ErrnoStatus(errno, "open " + path);
  return LookAtMemory(fd.get());
}

// What a snapshot is, by the sums of its memory and of its template's, and the bytes of its
// devices. The pages themselves are checked when they are loaded.
absl::StatusOr<sandbox::Image> ContentOf(const std::string& dir, const std::string& template_path) {
  ASSIGN_OR_RETURN(const MemoryImage common, LookAt(template_path));
  ASSIGN_OR_RETURN(const MemoryImage own, LookAt(fmt::format("{}/{}", dir, kMemoryPart)));
  ASSIGN_OR_RETURN(const std::string devices,
                   base::ReadFile(fmt::format("{}/{}", dir, kDevicesPart), kDevicesBytesMax));
  sandbox::Image content;
  content.set_digest(Sha256Digest(
      fmt::format("{} {} {} {} {}", common.pages, common.sum, own.pages, own.sum, devices)));
  content.set_size_bytes(own.stored_bytes + devices.size());
  content.set_layers(1);
  return content;
}

}  // namespace

struct SnapshotStore::Record {
  sandbox::Image image;
  std::string dir, template_id;
};

SnapshotStore::SnapshotStore(const std::string& dir)
    : dir_(dir), records_(dir, "image", "its snapshot is lost", kRecordBytesMax) {}

absl::StatusOr<std::unique_ptr<SnapshotStore>> SnapshotStore::Open(const std::string& dir) {
  for (const char* const part : {"names", "machines", "templates"})
    RETURN_IF_ERROR(base::MakeDirs(fmt::format("{}/{}", dir, part), 0700));
  std::unique_ptr<SnapshotStore> store(new SnapshotStore(dir));
  absl::MutexLock lock(&store->mutex_);
  store->RemoveUnnamed();
  return store;
}

std::string SnapshotStore::TemplatePath(const std::string& template_id) const {
  return fmt::format("{}/templates/{}", dir_, template_id);
}

absl::StatusOr<SnapshotStore::Record> SnapshotStore::ReadRecord(const std::string& path) const {
  ASSIGN_OR_RETURN(const NamedRecord record, records_.Read(path));
  const Record out{record.image, record.Text("dir"), record.Text("template")};
  if (!base::CheckId(out.dir, "dir").ok() || !base::CheckId(out.template_id, "template").ok() ||
      !record.numbers.contains("size")) {
    return records_.Malformed(path);
  }
  return out;
}

bool SnapshotStore::HasTemplate(const std::string& template_id) const {
  absl::MutexLock lock(&mutex_);
  return access(TemplatePath(template_id).c_str(), F_OK) == 0;
}

// What no name has: work that was cut short, and what was removed.
void SnapshotStore::RemoveUnnamed() const {
  std::set<std::string> machines, templates;
  std::error_code error;
  for (const std::string& path : records_.Paths()) {
    const absl::StatusOr<Record> record = ReadRecord(path);
    if (!record.ok()) {
      base::LogWarn(std::string(record.status().message()));
      return;  // nothing goes that it may have had
    }
    machines.insert(record->dir);
    templates.insert(record->template_id);
  }
  for (const auto& [kind, named] : {std::pair{"machines", &machines}, {"templates", &templates}}) {
    std::vector<fs::path> unnamed;
    for (const auto& entry : fs::directory_iterator(fmt::format("{}/{}", dir_, kind), error)) {
      if (!named->contains(entry.path().filename())) unnamed.push_back(entry.path());
    }
    for (const fs::path& path : unnamed) fs::remove_all(path, error);
  }
}

absl::StatusOr<SnapshotImage> SnapshotStore::Add(const std::string& name, const std::string& parts,
                                                 const VmConfig& machine) {
  RETURN_IF_ERROR(CheckImageName(name));
  RETURN_IF_ERROR(base::CheckId(machine.template_id, "template"));
  const base::TempPath work(parts + "-");  // whatever is left of it goes
  RETURN_IF_ERROR(Rename(parts, work.path()));
  SnapshotImage made;
  absl::MutexLock lock(&mutex_);
  const std::string from = TemplatePath(machine.template_id);
  const std::string given = fmt::format("{}/{}", work.path(), kTemplateMemoryPart);
  if (access(from.c_str(), F_OK) != 0) {
    if (access(given.c_str(), F_OK) != 0)
      return absl::UnavailableError("the template of the snapshot was just removed: try again");
    made.stored_bytes += BytesOf(given);
    RETURN_IF_ERROR(Sync(given));
    RETURN_IF_ERROR(Rename(given, from));
    RETURN_IF_ERROR(Sync(dir_ + "/templates"));
  } else {
    unlink(given.c_str());
  }
  agent::Encoder encoder;
  VmConfig copy = machine;
  copy.snapshot.clear();
  copy.Fields(encoder);
  RETURN_IF_ERROR(
      base::WriteFileAtomic(fmt::format("{}/{}", work.path(), kMachinePart), encoder.Take()));
  ASSIGN_OR_RETURN(made.image, ContentOf(work.path(), from));
  made.image.set_name(name);
  made.stored_bytes += made.image.size_bytes();
  RETURN_IF_ERROR(SyncAll(work.path()));
  const std::string dir = base::RandomHex(kDirBytes);
  RETURN_IF_ERROR(Rename(work.path(), fmt::format("{}/machines/{}", dir_, dir)));
  RETURN_IF_ERROR(Sync(dir_ + "/machines"));
  const json record = {{"name", name},
                       {"digest", made.image.digest()},
                       {"size", made.image.size_bytes()},
                       {"dir", dir},
                       {"template", machine.template_id}};
  RETURN_IF_ERROR(base::WriteFileAtomic(records_.Path(name), record.dump()));
  return made;
}

absl::StatusOr<std::optional<MachineSnapshot>> SnapshotStore::Find(const std::string& name) const {
  if (!CheckImageName(name).ok()) return std::nullopt;
  absl::MutexLock lock(&mutex_);
  absl::StatusOr<Record> record = ReadRecord(records_.Path(name));
  if (absl::IsNotFound(record.status())) return std::nullopt;
  RETURN_IF_ERROR(record.status());
  MachineSnapshot found;
  found.image = record->image;
  found.dir = fmt::format("{}/machines/{}", dir_, record->dir);
  ASSIGN_OR_RETURN(const std::string text,
                   base::ReadFile(fmt::format("{}/{}", found.dir, kMachinePart), kRecordBytesMax));
  if (!agent::Decode(text, &found.machine) || found.machine.template_id != record->template_id) {
    return absl::DataLossError(
        fmt::format("snapshot '{}' is of another version of sandboxd, or damaged: take it again "
                    "('reprise image rm {}')",
                    name, name));
  }
  return found;
}

absl::StatusOr<std::vector<sandbox::Image>> SnapshotStore::List() const {
  absl::MutexLock lock(&mutex_);
  std::vector<sandbox::Image> images;
  for (const std::string& path : records_.Paths()) {
    ASSIGN_OR_RETURN(const Record record, ReadRecord(path));
    images.push_back(record.image);
  }
  return images;
}

absl::Status SnapshotStore::Remove(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(records_.Remove(name));
  RemoveUnnamed();
  return absl::OkStatus();
}

absl::Status SnapshotStore::Check(const MachineSnapshot& snapshot) const {
  const absl::StatusOr<sandbox::Image> content =
      ContentOf(snapshot.dir, TemplatePath(snapshot.machine.template_id));
  if (content.ok() && content->digest() == snapshot.image.digest()) return absl::OkStatus();
  return absl::DataLossError(fmt::format(
      "snapshot '{}' in {} is damaged ({}): remove it ('reprise image rm')", snapshot.image.name(),
      snapshot.dir, content.ok() ? "its digest differs" : std::string(content.status().message())));
}

absl::StatusOr<std::shared_ptr<const Template>> SnapshotStore::LoadTemplate(
    const VmConfig& machine) const {
  auto made = std::make_shared<Template>();
  made->id = machine.template_id;
  ASSIGN_OR_RETURN(made->ram, MakeMemoryFile("reprise-ram", machine.memory_mib << 20));
  const std::string path = TemplatePath(machine.template_id);
  const base::UniqueFd in(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!in.valid()) return base::ErrnoStatus(errno, "open " + path);
  RETURN_IF_ERROR(LoadMemoryFile(in.get(), made->ram.get()).status());
  RETURN_IF_ERROR(Seal(*made));
  return made;
}

}  // namespace reprise::sandboxd::microvm
