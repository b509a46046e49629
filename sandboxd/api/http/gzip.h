// Bodies as gzip, piece by piece: compressed for clients that ask for it, taken apart within limits
// for clients that send it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace reprise::sandboxd::http {

// Whether an Accept-Encoding header takes gzip: named, or by "*", and not with q=0.
bool AcceptsGzip(std::string_view accept_encoding);

class GzipWriter {
 public:
  GzipWriter();
  ~GzipWriter();
  GzipWriter(const GzipWriter&) = delete;
  GzipWriter& operator=(const GzipWriter&) = delete;
  // What can be sent after this piece; often "".
  std::string Add(std::string_view data);
  // The rest, once.
  std::string Finish();

 private:
  struct State;
  std::string Run(std::string_view data, int flush);
  const std::unique_ptr<State> state_;
};

class GzipReader {
 public:
  // `next` gives pieces of the compressed body, "" at its end. At most `bytes_max` come out.
  GzipReader(std::function<absl::StatusOr<std::string>()> next, uint64_t bytes_max);
  ~GzipReader();
  GzipReader(const GzipReader&) = delete;
  GzipReader& operator=(const GzipReader&) = delete;
  // The next piece, "" at the end. INVALID_ARGUMENT (no gzip, cut off), RESOURCE_EXHAUSTED (more
  // than `bytes_max`), or the error of `next`.
  absl::StatusOr<std::string> Read();

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace reprise::sandboxd::http
