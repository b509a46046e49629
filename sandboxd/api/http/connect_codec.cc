#include "sandboxd/api/http/connect_codec.h"

#include <google/protobuf/util/json_util.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace reprise::sandboxd::http {
namespace {

std::string ErrorJson(const absl::Status& status) {
  const nlohmann::json body = {
      {"code", ConnectCode(status.code())},
      {"message", std::string(status.message().data(), status.message().size())}};
  return body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

int ConnectHttpStatus(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kFailedPrecondition:
      return 400;
    case absl::StatusCode::kCancelled:
      return 499;
    default:
      return HttpStatus(code);
  }
}

}  // namespace

std::string_view ConnectCode(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kCancelled:
      return "canceled";
    case absl::StatusCode::kInvalidArgument:
      return "invalid_argument";
    case absl::StatusCode::kDeadlineExceeded:
      return "deadline_exceeded";
    case absl::StatusCode::kNotFound:
      return "not_found";
    case absl::StatusCode::kAlreadyExists:
      return "already_exists";
    case absl::StatusCode::kPermissionDenied:
      return "permission_denied";
    case absl::StatusCode::kResourceExhausted:
      return "resource_exhausted";
    case absl::StatusCode::kFailedPrecondition:
      return "failed_precondition";
    case absl::StatusCode::kAborted:
      return "aborted";
    case absl::StatusCode::kOutOfRange:
      return "out_of_range";
    case absl::StatusCode::kUnimplemented:
      return "unimplemented";
    case absl::StatusCode::kInternal:
      return "internal";
    case absl::StatusCode::kUnavailable:
      return "unavailable";
    case absl::StatusCode::kDataLoss:
      return "data_loss";
    case absl::StatusCode::kUnauthenticated:
      return "unauthenticated";
    default:
      return "unknown";
  }
}

std::string Codec::content_type() const {
  return fmt::format("application/{}{}", streaming ? "connect+" : "", json ? "json" : "proto");
}

absl::StatusOr<Codec> CodecOf(std::string_view content_type) {
  content_type = content_type.substr(0, content_type.find(';'));
  while (!content_type.empty() && content_type.back() == ' ') content_type.remove_suffix(1);
  for (const bool json : {true, false}) {
    for (const bool streaming : {true, false}) {
      const Codec codec{json, streaming};
      if (content_type == codec.content_type()) return codec;
    }
  }
  return absl::UnimplementedError(fmt::format(
      "content type \"{}\" is not spoken here: send application/[connect+]json or proto",
      content_type.substr(0, 64)));
}

absl::Status Decode(const Codec& codec, std::string_view text, google::protobuf::Message* message) {
  if (!codec.json) {
    if (message->ParseFromArray(text.data(), static_cast<int>(text.size())))
      return absl::OkStatus();
    return absl::InvalidArgumentError(
        fmt::format("the body is no {} in protobuf", message->GetDescriptor()->name()));
  }
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  const auto parsed = google::protobuf::util::JsonStringToMessage(
      google::protobuf::StringPiece(text.data(), text.size()), message, options);
  if (parsed.ok()) return absl::OkStatus();
  std::string why(parsed.message().data(), parsed.message().size());
  why = why.substr(0, why.find('\n'));
  return absl::InvalidArgumentError(
      fmt::format("the body is no {} in JSON: {}", message->GetDescriptor()->name(), why));
}

std::string Encode(const Codec& codec, const google::protobuf::Message& message) {
  std::string out;
  if (!codec.json) {
    message.SerializeToString(&out);
    return out;
  }
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;  // exitCode 0 is not the same as none to everybody
  if (!google::protobuf::util::MessageToJsonString(message, &out, options).ok()) return "{}";
  return out;
}

std::string Envelope(uint8_t flags, std::string_view payload) {
  std::string frame;
  frame.reserve(kEnvelopeHeadBytes + payload.size());
  const auto size = static_cast<uint32_t>(payload.size());
  frame += static_cast<char>(flags);
  for (int shift = 24; shift >= 0; shift -= 8) frame += static_cast<char>(size >> shift);
  frame += payload;
  return frame;
}

absl::StatusOr<std::string_view> OnlyEnvelope(std::string_view body) {
  if (body.size() < kEnvelopeHeadBytes)
    return absl::InvalidArgumentError("the body is shorter than the head of an envelope");
  const auto flags = static_cast<uint8_t>(body[0]);
  uint32_t size = 0;
  for (size_t i = 1; i < kEnvelopeHeadBytes; ++i) size = size << 8 | static_cast<uint8_t>(body[i]);
  if ((flags & kEnvelopeCompressed) != 0)
    return absl::UnimplementedError("compressed envelopes are not spoken here");
  if (flags != 0 || body.size() - kEnvelopeHeadBytes != size)
    return absl::InvalidArgumentError("the body is not exactly one envelope");
  return body.substr(kEnvelopeHeadBytes);
}

std::string EndFrame(const absl::Status& status) {
  if (status.ok()) return Envelope(kEnvelopeEnd, "{}");
  return Envelope(kEnvelopeEnd, fmt::format("{{\"error\":{}}}", ErrorJson(status)));
}

Response ConnectResponse(const Codec& codec, const google::protobuf::Message& message) {
  Response response;
  response.content_type = codec.content_type();
  response.body = Encode(codec, message);
  return response;
}

Response ConnectError(const absl::Status& status) {
  return JsonResponse(ConnectHttpStatus(status.code()), ErrorJson(status));
}

}  // namespace reprise::sandboxd::http
