#include "sandboxd/api/http/gzip.h"

#include <zlib.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include <fmt/format.h>

#include "absl/strings/numbers.h"
#include "base/status_macros.h"
#include "http/message.h"

namespace reprise::sandboxd::http {
namespace {

constexpr int kGzipWindow = MAX_WBITS + 16;  // zlib's way to ask for gzip's frame
constexpr int kMemoryLevel = 8;
constexpr int kLevel = 1;  // the network is near, the processor is shared
constexpr size_t kPieceBytes = 64u << 10;

std::string_view Trim(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

Bytef* Input(std::string_view data) {
  return reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
}

}  // namespace

bool AcceptsGzip(std::string_view header) {
  bool any = false;
  for (size_t at = 0; at < header.size();) {
    const size_t end = std::min(header.find(',', at), header.size());
    const std::string_view item = header.substr(at, end - at);
    at = end + 1;
    const size_t semicolon = std::min(item.find(';'), item.size());
    const std::string_view coding = Trim(item.substr(0, semicolon));
    std::string_view weight = Trim(item.substr(std::min(semicolon + 1, item.size())));
    double q = 1;
    if (weight.substr(0, 2) == "q=" &&
        !absl::SimpleAtod(absl::string_view(weight.data() + 2, weight.size() - 2), &q)) {
      q = 0;
    }
    if (::reprise::http::EqualsIgnoreCase(coding, "gzip")) return q > 0;
    if (coding == "*") any = q > 0;
  }
  return any;
}

// ---- out

struct GzipWriter::State {
  z_stream stream{};
};

// It fails only where memory does.
GzipWriter::GzipWriter() : state_(std::make_unique<State>()) {
  if (deflateInit2(&state_->stream, kLevel, Z_DEFLATED, kGzipWindow, kMemoryLevel,
                   Z_DEFAULT_STRATEGY) != Z_OK) {
    std::abort();
  }
}
GzipWriter::~GzipWriter() { deflateEnd(&state_->stream); }

std::string GzipWriter::Run(std::string_view data, int flush) {
  z_stream& stream = state_->stream;
  stream.next_in = Input(data);
  stream.avail_in = static_cast<uInt>(data.size());
  std::string out;
  do {
    const size_t had = out.size();
    out.resize(had + kPieceBytes);
    stream.next_out = reinterpret_cast<Bytef*>(out.data() + had);
    stream.avail_out = kPieceBytes;
    deflate(&stream, flush);
    out.resize(had + kPieceBytes - stream.avail_out);
  } while (stream.avail_out == 0);
  return out;
}

std::string GzipWriter::Add(std::string_view data) {
  std::string out;
  for (size_t at = 0; at < data.size(); at += kPieceBytes)
    out += Run(data.substr(at, kPieceBytes), Z_NO_FLUSH);
  return out;
}
std::string GzipWriter::Finish() { return Run("", Z_FINISH); }

// ---- in

struct GzipReader::State {
  std::function<absl::StatusOr<std::string>()> next;
  uint64_t left = 0;  // bytes that may still come out
  z_stream stream{};
  std::string piece;      // compressed; stream.next_in points into it
  bool in_member = true;  // a frame has begun, or the first has still to come
  bool ended = false;
};

GzipReader::GzipReader(std::function<absl::StatusOr<std::string>()> next, uint64_t bytes_max)
    : state_(std::make_unique<State>()) {
  state_->next = std::move(next);
  state_->left = bytes_max;
  if (inflateInit2(&state_->stream, kGzipWindow) != Z_OK) std::abort();  // no memory
}
GzipReader::~GzipReader() { inflateEnd(&state_->stream); }

absl::StatusOr<std::string> GzipReader::Read() {
  State& state = *state_;
  z_stream& stream = state.stream;
  std::string out;
  while (out.empty() && !state.ended) {
    if (stream.avail_in == 0) {
      ASSIGN_OR_RETURN(state.piece, state.next());
      stream.next_in = Input(state.piece);
      stream.avail_in = static_cast<uInt>(state.piece.size());
      if (state.piece.empty() && state.in_member)
        return absl::InvalidArgumentError("the gzip body ends in the middle");
      state.ended = state.piece.empty();
      continue;
    }
    if (!state.in_member) {  // another frame may follow the one before
      inflateReset(&stream);
      state.in_member = true;
    }
    out.resize(kPieceBytes);
    stream.next_out = reinterpret_cast<Bytef*>(out.data());
    stream.avail_out = kPieceBytes;
    const int code = inflate(&stream, Z_NO_FLUSH);
    out.resize(kPieceBytes - stream.avail_out);
    if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR)
      return absl::InvalidArgumentError("the body is not gzip");
    if (code == Z_STREAM_END) state.in_member = false;
  }
  if (out.size() > state.left)
    return absl::ResourceExhaustedError("the gzip body is longer than an upload may be");
  state.left -= out.size();
  return out;
}

}  // namespace reprise::sandboxd::http
