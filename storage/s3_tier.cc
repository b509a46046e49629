#include "storage/s3_tier.h"

#include <curl/curl.h>
#include <fmt/format.h>

#include <chrono>
#include <cstring>
#include <ctime>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/ids.h"
#include "base/status_macros.h"

namespace reprise::storage {
namespace {

constexpr int kTriesMax = 6;
constexpr int64_t kFirstPauseMs = 50;  // doubled after each try
constexpr long kConnectMs = 5'000;
constexpr long kStalledSeconds = 10;  // no byte for as long: the try has failed
constexpr size_t kIdleHandlesMax = 32;
constexpr size_t kErrorBytesMax = 64 << 10;
constexpr long kHttpOk = 200, kHttpPartial = 206, kHttpNotFound = 404, kHttpRange = 416,
               kHttpBusy = 429, kHttpServerError = 500;

struct HandleFree {
  void operator()(CURL* handle) const { curl_easy_cleanup(handle); }
};
using Handle = std::unique_ptr<CURL, HandleFree>;
struct ListFree {
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};

// What an answer is written to: never more than it may have.
struct Body {
  std::string* text;
  size_t bytes_max;
  CURL* handle;
  std::string error;  // of an answer that is not the object

  static size_t Take(char* data, size_t, size_t size, void* self) {
    auto* body = static_cast<Body*>(self);
    long code = 0;
    curl_easy_getinfo(body->handle, CURLINFO_RESPONSE_CODE, &code);
    const bool object = code == kHttpOk || code == kHttpPartial;
    std::string* target = object ? body->text : &body->error;
    const size_t room = object ? body->bytes_max : kErrorBytesMax;
    if (target->size() + size > room) return 0;
    target->append(data, size);
    return size;
  }
};

struct Upload {
  std::string_view left;
  static size_t Give(char* to, size_t, size_t room, void* self) {
    auto* upload = static_cast<Upload*>(self);
    const size_t size = std::min(room, upload->left.size());
    std::memcpy(to, upload->left.data(), size);
    upload->left.remove_prefix(size);
    return size;
  }
};

std::string Now() {
  const time_t now = time(nullptr);
  tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  strftime(text, sizeof(text), "%Y%m%dT%H%M%SZ", &parts);
  return text;
}

class S3Tier final : public ColdTier {
 public:
  S3Tier(S3Location location, S3Credentials credentials)
      : location_(std::move(location)), credentials_(std::move(credentials)) {}

  absl::StatusOr<std::string> Get(const std::string& key, size_t bytes_max) override {
    std::string object;
    RETURN_IF_ERROR(Perform("GET", key, {}, &object, bytes_max));
    return object;
  }

  absl::StatusOr<bool> Has(const std::string& key) override {
    std::string nothing;
    absl::Status status = Perform("HEAD", key, {}, &nothing, 0);
    if (absl::IsNotFound(status)) return false;
    RETURN_IF_ERROR(status);
    return true;
  }

  absl::Status Put(const std::string& key, std::string_view object) override {
    std::string answer;
    return Perform("PUT", key, object, &answer, kErrorBytesMax);
  }

  absl::Status Remove(const std::string& key) override {
    std::string answer;
    absl::Status status = Perform("DELETE", key, {}, &answer, kErrorBytesMax);
    return absl::IsNotFound(status) ? absl::OkStatus() : status;
  }

 private:
  // A try's end: done, not to be tried again, or to be tried again.
  struct Outcome {
    absl::Status status;
    bool again = false;
  };

  absl::Status Perform(const std::string& method, const std::string& key, std::string_view upload,
                       std::string* answer, size_t bytes_max) {
    RETURN_IF_ERROR(base::CheckId(key, "cold key", /*allow_slash=*/true));
    Outcome outcome;
    for (int tries = 0; tries < kTriesMax; ++tries) {
      if (tries > 0)
        std::this_thread::sleep_for(std::chrono::milliseconds(kFirstPauseMs << (tries - 1)));
      outcome = Try(method, key, upload, answer, bytes_max);
      if (!outcome.again) return outcome.status;
    }
    return absl::UnavailableError(
        fmt::format("{} (tried {} times)", std::string(outcome.status.message()), kTriesMax));
  }

  Outcome Try(const std::string& method, const std::string& key, std::string_view upload,
              std::string* answer, size_t bytes_max) {
    const std::string path = location_.base + "/" + key;
    const std::string what = fmt::format("{} s3 {}{}", method, location_.host, path);
    S3Request request{method, location_.host, path, {}, Sha256Hex(upload), location_.region, Now()};
    const size_t from = method == "GET" ? answer->size() : 0;  // what earlier tries got
    if (from > 0) request.headers["range"] = fmt::format("bytes={}-", from);
    std::unique_ptr<curl_slist, ListFree> headers;
    for (const auto& [name, value] : SignS3(request, credentials_)) {
      headers.reset(
          curl_slist_append(headers.release(), fmt::format("{}: {}", name, value).c_str()));
    }
    headers.reset(curl_slist_append(headers.release(), "Expect:"));

    Handle handle = TakeHandle();
    if (handle == nullptr) return {absl::ResourceExhaustedError(what + ": no curl handle"), false};
    CURL* curl = handle.get();
    Body body{answer, bytes_max, curl, {}};
    Upload source{upload};
    const std::string url = fmt::format("{}://{}{}", location_.scheme, location_.host, path);
    curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers.get());
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, kConnectMs);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, kStalledSeconds);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &Body::Take);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &body);
    if (method == "HEAD") curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
    if (method == "DELETE") curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, "DELETE");
    if (method == "PUT") {
      curl_easy_setopt(curl, CURLOPT_UPLOAD, 1L);
      curl_easy_setopt(curl, CURLOPT_READFUNCTION, &Upload::Give);
      curl_easy_setopt(curl, CURLOPT_READDATA, &source);
      curl_easy_setopt(curl, CURLOPT_INFILESIZE_LARGE, static_cast<curl_off_t>(upload.size()));
    }
    const CURLcode code = curl_easy_perform(curl);
    long http = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &http);
    GiveHandle(std::move(handle));
    return Judge(what, code, http, from, answer, bytes_max);
  }

  static Outcome Judge(const std::string& what, CURLcode code, long http, size_t from,
                       std::string* answer, size_t bytes_max) {
    if (code == CURLE_WRITE_ERROR && (http == kHttpOk || http == kHttpPartial)) {
      return {absl::DataLossError(fmt::format("{}: more than {} bytes", what, bytes_max)), false};
    }
    if (code != CURLE_OK)
      return {absl::UnavailableError(fmt::format("{}: {}", what, curl_easy_strerror(code))), true};
    if (from > 0 && http == kHttpOk) {  // no ranges here: the whole object came behind the part
      answer->erase(0, from);
      return {absl::OkStatus(), false};
    }
    if (from > 0 && http == kHttpRange) {  // nothing is missing, or it has changed: from the start
      answer->clear();
      return {absl::UnavailableError(what + ": the object changed while it was read"), true};
    }
    if (http >= 200 && http < 300) return {absl::OkStatus(), false};
    const std::string words = fmt::format("{}: HTTP {}", what, http);
    if (http == kHttpNotFound) return {absl::NotFoundError(words), false};
    if (http == kHttpBusy || http >= kHttpServerError) return {absl::UnavailableError(words), true};
    return {absl::PermissionDeniedError(words + ": check the bucket, region and credentials"),
            false};
  }

  // Handles keep their connections.
  Handle TakeHandle() {
    absl::MutexLock lock(&mutex_);
    if (idle_.empty()) return Handle(curl_easy_init());
    Handle handle = std::move(idle_.back());
    idle_.pop_back();
    return handle;
  }
  void GiveHandle(Handle handle) {
    curl_easy_reset(handle.get());
    absl::MutexLock lock(&mutex_);
    if (idle_.size() < kIdleHandlesMax) idle_.push_back(std::move(handle));
  }

  const S3Location location_;
  const S3Credentials credentials_;
  absl::Mutex mutex_;
  std::vector<Handle> idle_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<S3Location> ParseS3Location(const std::string& url) {
  constexpr std::string_view kScheme = "s3://";
  auto refuse = [&url](std::string_view why) {
    return absl::InvalidArgumentError(fmt::format(
        "cold tier '{}': {}; write s3://BUCKET[/PREFIX]?region=REGION[&endpoint=http://HOST:PORT]",
        url, why));
  };
  if (!url.starts_with(kScheme)) return refuse("does not begin with s3://");
  const size_t query_at = std::min(url.find('?'), url.size());
  std::string path = url.substr(kScheme.size(), query_at - kScheme.size());
  while (path.ends_with('/')) path.pop_back();
  if (!base::CheckId(path, "bucket", /*allow_slash=*/true).ok()) return refuse("no plain bucket");
  S3Location location{"https", "", "", ""};
  std::string endpoint;
  for (size_t begin = query_at + 1; begin < url.size();) {
    const size_t end = std::min(url.find('&', begin), url.size());
    const std::string word = url.substr(begin, end - begin);
    if (word.starts_with("region=")) {
      location.region = word.substr(7);
    } else if (word.starts_with("endpoint=")) {
      endpoint = word.substr(9);
    } else {
      return refuse(fmt::format("unknown parameter '{}'", word));
    }
    begin = end + 1;
  }
  if (!base::CheckId(location.region, "region").ok()) return refuse("no region");
  if (endpoint.empty()) {
    const size_t slash = std::min(path.find('/'), path.size());
    location.host = fmt::format("{}.s3.{}.amazonaws.com", path.substr(0, slash), location.region);
    location.base = path.substr(slash);
    return location;
  }
  const size_t colon = endpoint.find("://");
  if (colon == std::string::npos) return refuse("the endpoint has no scheme");
  location.scheme = endpoint.substr(0, colon);
  location.host = endpoint.substr(colon + 3);
  while (location.host.ends_with('/')) location.host.pop_back();
  location.base = "/" + path;
  if (location.scheme != "http" && location.scheme != "https")
    return refuse("the endpoint is neither http nor https");
  if (location.host.empty() || location.host.find_first_of("/@# ") != std::string::npos)
    return refuse("the endpoint has no plain host");
  return location;
}

absl::StatusOr<std::shared_ptr<ColdTier>> OpenS3Tier(S3Location location,
                                                     S3Credentials credentials) {
  static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (started != CURLE_OK)
    return absl::InternalError(fmt::format("libcurl: {}", curl_easy_strerror(started)));
  if (credentials.access_key.empty() || credentials.secret_key.empty()) {
    return absl::InvalidArgumentError(
        "an S3 cold tier needs credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
  }
  return std::make_shared<S3Tier>(std::move(location), std::move(credentials));
}

}  // namespace reprise::storage
