// Formats of the HTTP port: Connect envelopes, multipart bodies cut at every place, reports of the
// judge.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "reprise/envd/v1/process.pb.h"
#include "sandboxd/api/http/connect_codec.h"
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

}  // namespace
}  // namespace reprise::sandboxd::http
