#include "sandboxd/api/http/multipart.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/status_macros.h"
#include "sandboxd/api/http/names.h"

namespace reprise::sandboxd::http {
namespace {

constexpr size_t kBoundaryBytesMax = 70;  // RFC 2046
constexpr std::string_view kFormData = "multipart/form-data";
constexpr std::string_view kDisposition = "content-disposition:";

// The value of `name` in "a; name=value; other=\"quoted\"". nullopt when it is not there.
std::optional<std::string> Parameter(std::string_view text, std::string_view name) {
  size_t at = text.find(';');
  while (at != std::string_view::npos) {
    ++at;
    while (at < text.size() && (text[at] == ' ' || text[at] == '\t')) ++at;
    const size_t equal = text.find('=', at);
    if (equal == std::string_view::npos) return std::nullopt;
    const bool found = EqualsIgnoreCase(text.substr(at, equal - at), name);
    std::string value;
    size_t end = equal + 1;
    if (end < text.size() && text[end] == '"') {
      for (++end; end < text.size() && text[end] != '"'; ++end) {
        // Only these two are escaped; other backslashes are part of Windows paths.
        if (text[end] == '\\' && end + 1 < text.size() &&
            (text[end + 1] == '"' || text[end + 1] == '\\'))
          ++end;
        value += text[end];
      }
    } else {
      const size_t stop = std::min(text.find(';', end), text.size());
      value = std::string(text.substr(end, stop - end));
      while (!value.empty() && (value.back() == ' ' || value.back() == '\t')) value.pop_back();
      end = stop;
    }
    if (found) return value;
    at = text.find(';', end);
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<std::string> MultipartBoundary(std::string_view content_type) {
  if (!EqualsIgnoreCase(content_type.substr(0, kFormData.size()), kFormData))
    return absl::InvalidArgumentError("the body is not multipart/form-data");
  std::optional<std::string> boundary = Parameter(content_type, "boundary");
  if (!boundary.has_value() || boundary->empty() || boundary->size() > kBoundaryBytesMax)
    return absl::InvalidArgumentError("multipart/form-data without a usable boundary");
  return *std::move(boundary);
}

// The body is read as if it began with a line end, so that its first delimiter looks like others.
MultipartReader::MultipartReader(std::string_view boundary, Pull pull)
    : delimiter_(fmt::format("\r\n--{}", boundary)), pull_(std::move(pull)), buffer_("\r\n") {}

absl::Status MultipartReader::More() {
  ASSIGN_OR_RETURN(std::string piece, pull_());
  if (piece.empty()) return absl::InvalidArgumentError("the multipart body ends early");
  buffer_ += piece;
  return absl::OkStatus();
}

absl::StatusOr<std::string> MultipartReader::Read() {
  while (in_part_) {
    const size_t at = buffer_.find(delimiter_);
    const size_t safe = at != std::string::npos ? at
                        : buffer_.size() < delimiter_.size()
                            ? 0
                            : buffer_.size() - delimiter_.size() + 1;
    if (safe > 0) {
      std::string piece = buffer_.substr(0, safe);
      buffer_.erase(0, safe);
      return piece;
    }
    if (at == 0) {
      in_part_ = false;
    } else {
      RETURN_IF_ERROR(More());
    }
  }
  return std::string();
}

absl::StatusOr<std::optional<MultipartReader::Part>> MultipartReader::Next() {
  if (ended_) return std::optional<Part>();
  if (parts_ == 0) in_part_ = true;  // what comes before the first delimiter belongs to nobody
  while (true) {
    ASSIGN_OR_RETURN(const std::string skipped, Read());
    if (skipped.empty()) break;
  }
  buffer_.erase(0, delimiter_.size());
  while (buffer_.size() < 2) RETURN_IF_ERROR(More());
  if (buffer_.compare(0, 2, "--") == 0) {
    ended_ = true;
    return std::optional<Part>();
  }
  if (++parts_ > kPartsMax)
    return absl::InvalidArgumentError(fmt::format("more than {} parts", kPartsMax));
  // The rest of the delimiter's line, then header lines up to an empty one.
  size_t end;
  while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
    if (buffer_.size() > kPartHeaderBytesMax)
      return absl::InvalidArgumentError("the headers of a part are too long");
    RETURN_IF_ERROR(More());
  }
  if (end > kPartHeaderBytesMax)
    return absl::InvalidArgumentError("the headers of a part are too long");
  const std::string head = buffer_.substr(0, end + 2);
  buffer_.erase(0, end + 4);
  if (head.compare(0, 2, "\r\n") != 0)
    return absl::InvalidArgumentError("a delimiter of the multipart body is followed by text");
  Part part;
  bool disposition = false;
  for (size_t at = 2; at < head.size();) {
    const size_t stop = head.find("\r\n", at);
    const std::string_view line = std::string_view(head).substr(at, stop - at);
    at = stop + 2;
    if (!EqualsIgnoreCase(line.substr(0, kDisposition.size()), kDisposition)) continue;
    disposition = true;
    part.name = Parameter(line, "name").value_or("");
    part.filename = Parameter(line, "filename");
  }
  if (!disposition) return absl::InvalidArgumentError("a part has no Content-Disposition");
  // An empty part has no line end of its own before the next delimiter but the header's.
  in_part_ = true;
  return std::optional<Part>(std::move(part));
}

}  // namespace reprise::sandboxd::http
