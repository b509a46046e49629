// The Connect protocol (unary calls and server streams) over protobuf messages, in JSON or binary:
// envelopes, error bodies, end-of-stream frames.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <google/protobuf/message.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sandboxd/api/http/names.h"

namespace reprise::sandboxd::http {

inline constexpr uint8_t kEnvelopeCompressed = 0x01;
inline constexpr uint8_t kEnvelopeEnd = 0x02;
inline constexpr size_t kEnvelopeHeadBytes = 5;  // flags, big-endian length

// How one request and its answer are written.
struct Codec {
  bool json = true;
  bool streaming = false;
  std::string content_type() const;
};
// From a Content-Type. UNIMPLEMENTED (HTTP 415) for another one.
absl::StatusOr<Codec> CodecOf(std::string_view content_type);

// INVALID_ARGUMENT when `text` is no such message. Unknown fields are ignored.
absl::Status Decode(const Codec& codec, std::string_view text, google::protobuf::Message* message);
std::string Encode(const Codec& codec, const google::protobuf::Message& message);

// One envelope around `payload`.
std::string Envelope(uint8_t flags, std::string_view payload);
// The payload of a body that is exactly one uncompressed envelope, as the request of a server
// stream is. INVALID_ARGUMENT; UNIMPLEMENTED when it is compressed.
absl::StatusOr<std::string_view> OnlyEnvelope(std::string_view body);
// The last frame of a stream.
std::string EndFrame(const absl::Status& status);

// An answer of a unary call.
Response ConnectResponse(const Codec& codec, const google::protobuf::Message& message);
// {"code":"not_found","message":...} with the HTTP status that the protocol gives to the code.
Response ConnectError(const absl::Status& status);
std::string_view ConnectCode(absl::StatusCode code);

}  // namespace reprise::sandboxd::http
