// Formats of the HTTP port: Connect envelopes, multipart bodies cut at every place, reports of the
// judge, ranges, gzip.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "reprise/envd/v1/process.pb.h"
#include "sandboxd/api/http/byte_range.h"
#include "sandboxd/api/http/connect_codec.h"
#include "sandboxd/api/http/gzip.h"
#include "sandboxd/api/http/judge.h"
#include "sandboxd/api/http/multipart.h"

namespace reprise::sandboxd::http {
namespace {

TEST(Connect, EnvelopesRoundTrip) {
  const std::string frame = Envelope(0, "payload");
  EXPECT_EQ(frame, std::string("\0\0\0\0\7payload", 12));
  const auto payload = OnlyEnvelope(frame);
  ASSERT_TRUE(payload.ok());
  EXPECT_EQ(*payload, "payload");
  for (size_t cut = 0; cut < frame.size(); ++cut)
    EXPECT_FALSE(OnlyEnvelope(std::string_view(frame).substr(0, cut)).ok()) << cut;
  EXPECT_FALSE(OnlyEnvelope(frame + "x").ok());
  EXPECT_TRUE(absl::IsUnimplemented(OnlyEnvelope(Envelope(kEnvelopeCompressed, "x")).status()));
  EXPECT_EQ(EndFrame(absl::NotFoundError("gone")),
            Envelope(kEnvelopeEnd, R"({"error":{"code":"not_found","message":"gone"}})"));
}

TEST(Connect, ReadsTheMessagesOfTheSdks) {
  const auto codec = CodecOf("application/connect+json");
  ASSERT_TRUE(codec.ok() && codec->streaming && codec->json);
  envd::v1::StartRequest start;
  ASSERT_TRUE(Decode(*codec,
                     R"({"process":{"cmd":"/bin/bash","args":["-l","-c","echo hi"],)"
                     R"("envs":{"A":"1"},"cwd":"/tmp"},"stdin":false,"later":[1]})",
                     &start)
                  .ok());
  EXPECT_EQ(start.process().args(2), "echo hi");
  EXPECT_TRUE(start.has_stdin() && !start.stdin());
  envd::v1::ProcessEvent event;
  event.mutable_data()->set_stdout("\xff\n");
  EXPECT_EQ(Encode(*codec, event), R"({"data":{"stdout":"/wo="}})");
  event.mutable_end()->set_exited(true);
  EXPECT_EQ(Encode(*codec, event), R"({"end":{"exitCode":0,"exited":true,"status":""}})");
  const auto binary = CodecOf("application/proto");
  ASSERT_TRUE(binary.ok());
  envd::v1::ProcessEvent again;
  ASSERT_TRUE(Decode(*binary, Encode(*binary, event), &again).ok());
  EXPECT_TRUE(again.end().exited());
  EXPECT_TRUE(absl::IsInvalidArgument(Decode(*codec, "{\"process\":3}", &start)));
  EXPECT_FALSE(CodecOf("text/plain").ok());
}

// The parts of `body`, which arrives in pieces of `piece` bytes.
absl::StatusOr<std::vector<std::pair<std::string, std::string>>> Parts(const std::string& body,
                                                                       size_t piece) {
  size_t at = 0;
  MultipartReader reader("XX", [&]() -> absl::StatusOr<std::string> {
    std::string data = body.substr(std::min(at, body.size()), piece);
    at += data.size();
    return data;
  });
  std::vector<std::pair<std::string, std::string>> parts;
  while (true) {
    auto part = reader.Next();
    if (!part.ok()) return part.status();
    if (!part->has_value()) return parts;
    std::string content;
    while (true) {
      auto data = reader.Read();
      if (!data.ok()) return data.status();
      if (data->empty()) break;
      content += *data;
    }
    parts.emplace_back((*part)->filename.value_or((*part)->name), content);
  }
}

const std::string kBody =
    "preamble\r\n--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a "
    "\\\"b\\\".txt\"\r\n"
    "Content-Type: application/octet-stream\r\n\r\nhello\r\n--X not yet\r\n\r\n--XX\r\n"
    "content-disposition: form-data; name=empty\r\n\r\n\r\n--XX--\r\nepilogue";

TEST(Multipart, ReadsPartsWhereverTheBodyIsCut) {
  for (size_t piece = 1; piece <= kBody.size(); ++piece) {
    const auto parts = Parts(kBody, piece);
    ASSERT_TRUE(parts.ok()) << parts.status() << " at " << piece;
    ASSERT_EQ(parts->size(), 2u);
    EXPECT_EQ((*parts)[0].first, "a \"b\".txt");
    EXPECT_EQ((*parts)[0].second, "hello\r\n--X not yet\r\n");
    EXPECT_EQ((*parts)[1], (std::pair<std::string, std::string>{"empty", ""}));
  }
}

TEST(Multipart, RefusesABodyThatEndsEarly) {
  const size_t end = kBody.find("--\r\nepilogue");
  for (size_t size = 0; size < end + 2; ++size)
    EXPECT_FALSE(Parts(kBody.substr(0, size), 7).ok()) << size;
  EXPECT_FALSE(Parts("--XX\r\nContent-Type: x\r\n\r\nno name\r\n--XX--", 100).ok());
  EXPECT_FALSE(Parts("--XXjunk\r\n\r\n", 100).ok());
  EXPECT_FALSE(Parts("--XX\r\n" + std::string(2 * kPartHeaderBytesMax, 'h'), 100).ok());
}

TEST(Multipart, FindsTheBoundary) {
  EXPECT_EQ(*MultipartBoundary("multipart/form-data; boundary=----abc"), "----abc");
  EXPECT_EQ(*MultipartBoundary("multipart/form-data; charset=x; Boundary=\"a b\""), "a b");
  EXPECT_FALSE(MultipartBoundary("application/json").ok());
  EXPECT_FALSE(MultipartBoundary("multipart/form-data").ok());
}

TEST(Judge, ReadsItsReportAndNothingThatIsNotWhole) {
  JudgeRequest request;
  request.run_timeout_s = 2;
  const std::string out =
      "program\noutputMARK\ncompile 0 0 1500000\n3\nabc0\nrun 139 1 250000\nfile 2\nxynone\nend\n";
  const auto verdict = ReadReport(out, "errors", "MARK\n", request);
  ASSERT_TRUE(verdict.has_value());
  EXPECT_EQ(verdict->compile->out, "abc");
  EXPECT_EQ(verdict->compile->err, "");
  EXPECT_DOUBLE_EQ(verdict->compile->seconds, 1.5);
  EXPECT_EQ(verdict->run->out, "program\noutput");
  EXPECT_EQ(verdict->run->err, "errors");
  EXPECT_EQ(verdict->run->return_code, -11);
  EXPECT_FALSE(verdict->run->timed_out);
  ASSERT_EQ(verdict->fetched.size(), 2u);
  EXPECT_EQ(*verdict->fetched[0], "xy");
  EXPECT_FALSE(verdict->fetched[1].has_value());
  for (size_t size = 0; size < out.size(); ++size)
    EXPECT_FALSE(ReadReport(out.substr(0, size), "", "MARK\n", request).has_value()) << size;
  // Exits with a number that looks like a signal; killed at the limit.
  EXPECT_EQ(ReadReport("MARK\nrun 139 0 1\nend\n", "", "MARK\n", request)->run->return_code, 139);
  EXPECT_TRUE(ReadReport("MARK\nrun 137 1 2000001\nend\n", "", "MARK\n", request)->run->timed_out);
  EXPECT_FALSE(ReadReport("MARK\nrun 137 1 1900000\nend\n", "", "MARK\n", request)->run->timed_out);
}

TEST(Range, OfOneFile) {
  using Kind = ByteRange::Kind;
  struct Case {
    const char* header;
    Kind kind;
    uint64_t begin, end;
  };
  for (const Case& expected :
       std::vector<Case>{{"bytes=0-0", Kind::kPart, 0, 1},
                         {"Bytes=2-5", Kind::kPart, 2, 6},
                         {"bytes=2-", Kind::kPart, 2, 10},
                         {"bytes=9-100", Kind::kPart, 9, 10},
                         {"bytes=0-18446744073709551615", Kind::kPart, 0, 10},
                         {"bytes=-3", Kind::kPart, 7, 10},
                         {"bytes=-30", Kind::kPart, 0, 10},
                         {"bytes=10-", Kind::kOutside, 0, 0},
                         {"bytes=-0", Kind::kOutside, 0, 0},
                         {"", Kind::kWhole, 0, 0},
                         {"bytes=", Kind::kWhole, 0, 0},
                         {"bytes=5-2", Kind::kWhole, 0, 0},
                         {"bytes=1-2,4-5", Kind::kWhole, 0, 0},
                         {"bytes=a-b", Kind::kWhole, 0, 0},
                         {"bytes=-", Kind::kWhole, 0, 0},
                         {"lines=1-2", Kind::kWhole, 0, 0},
                         {"bytes=99999999999999999999-", Kind::kWhole, 0, 0}}) {
    const ByteRange range = ParseRange(expected.header, 10);
    EXPECT_EQ(range.kind, expected.kind) << expected.header;
    if (range.kind != Kind::kPart) continue;
    EXPECT_EQ(range.begin, expected.begin) << expected.header;
    EXPECT_EQ(range.end, expected.end) << expected.header;
  }
  for (const char* header : {"bytes=0-", "bytes=-1", "bytes=0-0"})
    EXPECT_EQ(ParseRange(header, 0).kind, Kind::kOutside) << header;
}

TEST(Gzip, WhoTakesIt) {
  for (const char* header : {"gzip", "deflate, gzip;q=0.5, br", "GZIP", "*", "identity, *;q=0.1"})
    EXPECT_TRUE(AcceptsGzip(header)) << header;
  for (const char* header :
       {"", "identity", "gzip;q=0", "br, *;q=0", "gzip;q=0, *", "gzipped", "gzip;q=x"})
    EXPECT_FALSE(AcceptsGzip(header)) << header;
}

// Gives `body` in pieces of `piece` bytes.
std::function<absl::StatusOr<std::string>()> InPieces(const std::string& body, size_t piece) {
  auto at = std::make_shared<size_t>(0);
  return [&body, piece, at]() -> absl::StatusOr<std::string> {
    const std::string part = body.substr(std::min(*at, body.size()), piece);
    *at += part.size();
    return part;
  };
}
absl::StatusOr<std::string> Unzip(const std::string& body, size_t piece, uint64_t max) {
  GzipReader reader(InPieces(body, piece), max);
  std::string out;
  while (true) {
    absl::StatusOr<std::string> part = reader.Read();
    if (!part.ok()) return part.status();
    if (part->empty()) return out;
    out += *part;
  }
}

TEST(Gzip, RoundTripsWithinItsLimits) {
  std::string data;
  for (int i = 0; i < 300'000; ++i) data += static_cast<char>(i * 2654435761u >> (i % 13));
  data += std::string(3 << 20, 'z');
  GzipWriter writer;
  std::string body;
  for (size_t at = 0; at < data.size(); at += 70'001) body += writer.Add(data.substr(at, 70'001));
  body += writer.Finish();
  EXPECT_LT(body.size(), data.size());
  for (const size_t piece : {size_t{1000}, size_t{1} << 20}) {
    const auto out = Unzip(body, piece, data.size());
    ASSERT_TRUE(out.ok()) << out.status();
    EXPECT_TRUE(*out == data);
    EXPECT_EQ(*Unzip(body + body, piece, 2 * data.size()), data + data);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(Unzip(body, 1000, data.size() - 1).status()));
  for (const size_t cut : {size_t{0}, size_t{5}, body.size() / 2, body.size() - 1})
    EXPECT_TRUE(absl::IsInvalidArgument(Unzip(body.substr(0, cut), 1000, 1u << 30).status()))
        << cut;
  EXPECT_TRUE(absl::IsInvalidArgument(Unzip("not gzip at all", 4, 1000).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Unzip(body + "tail", 1000, 1u << 30).status()));
  GzipWriter empty;
  EXPECT_EQ(*Unzip(empty.Finish(), 1000, 0), "");
}

}  // namespace
}  // namespace reprise::sandboxd::http
