// /files of envd: whole files out of a sandbox and into it, in pieces, and /health.
#include <sys/stat.h>

#include <algorithm>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "sandboxd/api/http/box_files.h"
#include "sandboxd/api/http/byte_range.h"
#include "sandboxd/api/http/e2b.h"
#include "sandboxd/api/http/file_source.h"
#include "sandboxd/api/http/gzip.h"
#include "sandboxd/api/http/multipart.h"

namespace reprise::sandboxd::http {
namespace {

using Json = nlohmann::json;

constexpr size_t kUploadMax = 16ull << 30;  // also of what comes out of a gzip body
constexpr int kLinksMax = 40;

// As envd words its errors; a full disk has a status of its own.
Response FileError(const absl::Status& status) {
  if (absl::IsResourceExhausted(status)) return ErrorResponse(507, std::string(status.message()));
  if (absl::IsFailedPrecondition(status)) return ErrorResponse(400, std::string(status.message()));
  return ErrorResponse(status);
}

class Files {
 public:
  explicit Files(Surface surface) : surface_(surface) {}

  // The sandbox of a request: named by a header, or by a signature that is good for one only.
  absl::StatusOr<std::string> Allowed(const Request& request, std::string_view operation) const {
    const int64_t now_s = base::WallMicros() / 1'000'000;
    std::string id = SandboxIdOf(request);
    if (!id.empty()) {
      RETURN_IF_ERROR(base::CheckId(id, "E2b-Sandbox-Id", /*allow_slash=*/true));
      if (surface_.access->MayUse(request, id) ||
          surface_.access->IsSigned(request, id, operation, now_s))
        return id;
    } else if (request.query_param("signature") != nullptr) {
      ASSIGN_OR_RETURN(const sandbox::ListResponse boxes, surface_.sandboxes->List());
      for (const sandbox::Sandbox& box : boxes.sandboxes()) {
        if (surface_.access->IsSigned(request, box.id(), operation, now_s)) return box.id();
      }
    }
    return absl::UnauthenticatedError(
        "X-Access-Token must be the envdAccessToken of the sandbox, or the URL signed with it");
  }

  void Get(const Request& request, const Respond& respond) const {
    const absl::StatusOr<std::string> id = Allowed(request, "read");
    if (!id.ok()) return respond(ErrorResponse(id.status()));
    if (std::optional<Response> gone = CheckUsable(surface_, *id); gone.has_value())
      return respond(*std::move(gone));
    const std::string* asked = request.query_param("path");
    if (asked == nullptr) return respond(ErrorResponse(400, "path is missing"));
    const absl::StatusOr<BoxFiles> files = BoxFiles::Open(surface_.sandboxes, *id);
    if (!files.ok()) return respond(FileError(files.status()));
    const absl::StatusOr<std::string> path = files->Path(*asked);
    if (!path.ok()) return respond(FileError(path.status()));
    Send(request, respond, *files, *path);
  }

  Response Post(const Request& request) const {
    const absl::StatusOr<std::string> id = Allowed(request, "write");
    if (!id.ok()) return ErrorResponse(id.status());
    if (std::optional<Response> gone = CheckUsable(surface_, *id); gone.has_value()) return *gone;
    const absl::StatusOr<BoxFiles> files = BoxFiles::Open(surface_.sandboxes, *id);
    if (!files.ok()) return FileError(files.status());
    const std::string_view encoding = request.header("content-encoding");
    if (!encoding.empty() && !EqualsIgnoreCase(encoding, "gzip") &&
        !EqualsIgnoreCase(encoding, "identity"))
      return ErrorResponse(415, "send the file as it is, or with Content-Encoding: gzip");
    Json written = Json::array();
    const absl::Status status = Take(request, *files, &written);
    return status.ok() ? JsonResponse(200, written.dump()) : FileError(status);
  }

 private:
  using Chunk = std::function<absl::Status(std::string_view)>;

  // A part where the request asks for one, else the whole, as gzip where the client takes it.
  static void Send(const Request& request, const Respond& respond, const BoxFiles& files,
                   const std::string& path) {
    Response response;
    response.headers = {{"Accept-Ranges", "bytes"}, {"Vary", "Accept-Encoding"}};
    // There is nothing that an If-Range could agree with.
    const std::string_view asked =
        request.header("if-range").empty() ? request.header("range") : std::string_view();
    const absl::StatusOr<uint64_t> size = asked.empty() ? 0 : SizeOf(files, path);
    if (!size.ok()) return respond(FileError(size.status()));
    const ByteRange range = ParseRange(asked, *size);
    if (range.kind == ByteRange::Kind::kOutside) {
      response = ErrorResponse(416, fmt::format("{} has {} bytes", path, *size));
      response.headers.push_back({"Content-Range", fmt::format("bytes */{}", *size)});
      return respond(std::move(response));
    }
    if (range.kind == ByteRange::Kind::kPart) {
      response.status = 206;
      response.headers.push_back(
          {"Content-Range", fmt::format("bytes {}-{}/{}", range.begin, range.end - 1, *size)});
      return SendFile(respond, std::move(response), FileError,
                      [&](const Chunk& chunk) { return ReadPart(files, path, range, chunk); });
    }
    if (!AcceptsGzip(request.header("accept-encoding"))) {
      return SendFile(respond, std::move(response), FileError,
                      [&](const Chunk& chunk) { return files.Read(path, chunk); });
    }
    response.headers.push_back({"Content-Encoding", "gzip"});
    SendFile(respond, std::move(response), FileError, [&](const Chunk& chunk) -> absl::Status {
      GzipWriter gzip;
      RETURN_IF_ERROR(
          files.Read(path, [&](std::string_view data) { return chunk(gzip.Add(data)); }));
      return chunk(gzip.Finish());
    });
  }

  // Of what a link leads to.
  static absl::StatusOr<uint64_t> SizeOf(const BoxFiles& files, std::string path) {
    for (int links = 0; links <= kLinksMax; ++links) {
      ASSIGN_OR_RETURN(const sandbox::FileInfo info, files.Stat(path));
      if (!S_ISLNK(info.mode())) return info.size();
      path = CleanPath(info.link_target(), SplitPath(path).first);
    }
    return absl::InvalidArgumentError(fmt::format("{} is a link to a link without end", path));
  }

  // What lies before the part is read and left out; after it reading stops.
  static absl::Status ReadPart(const BoxFiles& files, const std::string& path,
                               const ByteRange& range, const Chunk& chunk) {
    uint64_t at = 0;
    const absl::Status read = files.Read(path, [&](std::string_view data) -> absl::Status {
      const uint64_t begin = std::max(range.begin, at), end = std::min(range.end, at + data.size());
      if (begin < end) RETURN_IF_ERROR(chunk(data.substr(begin - at, end - begin)));
      at += data.size();
      return at < range.end ? absl::OkStatus() : absl::CancelledError("the part is complete");
    });
    if (at >= range.end) return absl::OkStatus();
    return read.ok() ? absl::AbortedError(fmt::format("{} became shorter", path)) : read;
  }

  static absl::Status Put(const BoxFiles& files, std::string_view where,
                          const std::function<absl::StatusOr<std::string>()>& next, Json* written) {
    ASSIGN_OR_RETURN(const std::string path, files.Path(where));
    RETURN_IF_ERROR(files.Write(path, next));
    written->push_back({{"path", path}, {"name", SplitPath(path).second}, {"type", "file"}});
    return absl::OkStatus();
  }

  static absl::Status Take(const Request& request, const BoxFiles& files, Json* written) {
    const std::string* path = request.query_param("path");
    std::function<absl::StatusOr<std::string>()> pull = [&request] {
      return request.reader->Read();
    };
    std::optional<GzipReader> gzip;
    if (EqualsIgnoreCase(request.header("content-encoding"), "gzip")) {
      gzip.emplace(std::move(pull), kUploadMax);
      pull = [&gzip] { return gzip->Read(); };
    }
    if (EqualsIgnoreCase(request.header("content-type"), "application/octet-stream")) {
      if (path == nullptr) return absl::InvalidArgumentError("path is missing");
      return Put(files, *path, pull, written);
    }
    ASSIGN_OR_RETURN(const std::string boundary, MultipartBoundary(request.header("content-type")));
    MultipartReader reader(boundary, pull);
    while (true) {
      ASSIGN_OR_RETURN(const std::optional<MultipartReader::Part> part, reader.Next());
      if (!part.has_value()) break;
      if (part->name != "file") continue;
      if (path != nullptr && !written->empty())
        return absl::InvalidArgumentError("several files, and one path: leave the path out");
      if (path == nullptr && part->filename.value_or("").empty())
        return absl::InvalidArgumentError("a file part has no filename, and there is no path");
      RETURN_IF_ERROR(Put(
          files, path != nullptr ? *path : *part->filename, [&reader] { return reader.Read(); },
          written));
    }
    return written->empty() ? absl::InvalidArgumentError("the body has no part named file")
                            : absl::OkStatus();
  }

  const Surface surface_;
};

}  // namespace

void AddFilesRoutes(const Surface& surface, Router* router) {
  auto files = std::make_shared<Files>(surface);
  Route get;
  get.method = "GET";
  get.pattern = "/files";
  get.handler = [surface, files](RequestPtr request, Respond respond) {
    PostVerb(surface, FileError, respond, [=] { files->Get(*request, respond); });
  };
  router->Add(std::move(get));
  Route post;
  post.method = "POST";
  post.pattern = "/files";
  post.body_max = kUploadMax;
  post.in_pieces = true;
  post.handler = OnVerbThread(surface, FileError,
                              [files](const Request& request) { return files->Post(request); });
  router->Add(std::move(post));
  Route health;
  health.method = "GET";
  health.pattern = "/health";
  health.handler = OnVerbThread(surface, FileError, [surface](const Request& request) {
    const std::string id = SandboxIdOf(request);
    Response response;
    response.status = 204;
    if (id.empty()) return response;  // the daemon's own health
    return CheckUsable(surface, id).value_or(response);
  });
  router->Add(std::move(health));
}

}  // namespace reprise::sandboxd::http
