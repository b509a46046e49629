#include "engine/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/status_macros.h"

namespace reprise::engine {
namespace {

constexpr uint64_t kHeaderBytesMax = 100'000'000;  // the limit of the format
constexpr uint64_t kLengthBytes = 8;

using Json = nlohmann::json;

std::optional<uint64_t> ElementBytes(const std::string& dtype) {
  static const std::map<std::string, uint64_t> kBytes = {
      {"F64", 8},  {"I64", 8},     {"U64", 8},     {"F32", 4},    {"I32", 4}, {"U32", 4},
      {"F16", 2},  {"BF16", 2},    {"I16", 2},     {"U16", 2},    {"I8", 1},  {"U8", 1},
      {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}};
  auto found = kBytes.find(dtype);
  if (found == kBytes.end()) return std::nullopt;
  return found->second;
}

// The elements of a shape, or nothing when it is no shape or too large to be one.
std::optional<uint64_t> ReadShape(const Json& json, std::vector<int64_t>* shape) {
  if (!json.is_array()) return std::nullopt;
  uint64_t elements = 1;
  for (const Json& dimension : json) {
    if (!dimension.is_number_unsigned()) return std::nullopt;
    const uint64_t size = dimension.get<uint64_t>();
    if (size > (uint64_t{1} << 40) || (size != 0 && elements > (uint64_t{1} << 50) / size))
      return std::nullopt;
    elements *= size;
    shape->push_back(static_cast<int64_t>(size));
  }
  return elements;
}

}  // namespace

std::string ShapeText(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::string SafetensorsHead(const std::vector<TensorHead>& tensors) {
  // In the order of the data, and said to be a checkpoint's: readers look for it.
  nlohmann::ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (const TensorHead& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.bytes}}};
    offset += tensor.bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  const uint64_t length = text.size();  // little-endian, as this machine is
  std::string head(kLengthBytes, '\0');
  std::memcpy(head.data(), &length, kLengthBytes);
  return head + text;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return base::ErrnoStatus(errno, fmt::format("cannot open {}", path));
  struct stat info;
  if (::fstat(fd.get(), &info) != 0)
    return base::ErrnoStatus(errno, fmt::format("cannot stat {}", path));
  const uint64_t size = static_cast<uint64_t>(info.st_size);
  if (!S_ISREG(info.st_mode) || size < kLengthBytes) {
    return absl::DataLossError(fmt::format("{}: {} bytes are no safetensors file", path, size));
  }
  void* map = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (map == MAP_FAILED) return base::ErrnoStatus(errno, fmt::format("cannot map {}", path));
  std::unique_ptr<SafetensorsFile> file(
      new SafetensorsFile(path, static_cast<const uint8_t*>(map), size));
  RETURN_IF_ERROR(file->ReadHeader());
  return file;
}

SafetensorsFile::~SafetensorsFile() { ::munmap(const_cast<uint8_t*>(map_), size_); }

absl::Status SafetensorsFile::ReadHeader() {
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, map_, kLengthBytes);
  if (header_bytes > kHeaderBytesMax || header_bytes > size_ - kLengthBytes) {
    return absl::DataLossError(
        fmt::format("{}: header of {} bytes in a file of {}: truncated or not safetensors", path_,
                    header_bytes, size_));
  }
  const uint8_t* data = map_ + kLengthBytes + header_bytes;
  const uint64_t data_bytes = size_ - kLengthBytes - header_bytes;
  const std::string_view text(reinterpret_cast<const char*>(map_ + kLengthBytes), header_bytes);
  const Json header = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object())
    return absl::DataLossError(fmt::format("{}: the header is not a JSON object", path_));

  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    auto malformed = [&, &name = name](std::string_view what) {
      return absl::DataLossError(fmt::format("{}: tensor {}: {}", path_, name, what));
    };
    if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") ||
        !entry.contains("data_offsets") || !entry["dtype"].is_string()) {
      return malformed("its header entry lacks dtype, shape or data_offsets");
    }
    TensorView view;
    view.dtype = entry["dtype"].get<std::string>();
    const std::optional<uint64_t> element = ElementBytes(view.dtype);
    if (!element) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tensor {}: unknown dtype \"{}\"", path_, name, view.dtype));
    }
    const std::optional<uint64_t> elements = ReadShape(entry["shape"], &view.shape);
    if (!elements) return malformed("its shape is malformed");
    const Json& offsets = entry["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned() ||
        offsets[0].get<uint64_t>() > offsets[1].get<uint64_t>()) {
      return malformed("its data_offsets are malformed");
    }
    const uint64_t begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>();
    if (end > data_bytes) {
      return malformed(
          fmt::format("its data ends at byte {} and the file has {}: truncated", end, data_bytes));
    }
    if (end - begin != *elements * *element) {
      return malformed(fmt::format("{} {} takes {} bytes and has {}", view.dtype,
                                   ShapeText(view.shape), *elements * *element, end - begin));
    }
    view.data = data + begin;
    view.bytes = end - begin;
    ranges.emplace_back(begin, end);
    tensors_.emplace(name, std::move(view));
  }
  std::sort(ranges.begin(), ranges.end());
  uint64_t at = 0;
  for (const auto& [begin, end] : ranges) {
    if (begin != at)
      return absl::DataLossError(
          fmt::format("{}: tensors overlap or leave a gap at byte {}", path_, at));
    at = end;
  }
  if (at != data_bytes) {
    return absl::DataLossError(
        fmt::format("{}: {} bytes follow the last tensor", path_, data_bytes - at));
  }
  return absl::OkStatus();
}

}  // namespace reprise::engine
