#include "storage/s3_sign.h"

#include <fmt/format.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>

namespace reprise::storage {
namespace {

constexpr char kAlgorithm[] = "AWS4-HMAC-SHA256";
constexpr size_t kDateDigits = 8;

std::string ToHex(std::string_view bytes) {
  std::string hex;
  for (unsigned char byte : bytes) hex += fmt::format("{:02x}", byte);
  return hex;
}

std::string Hmac(std::string_view key, std::string_view data) {
  std::string out(SHA256_DIGEST_LENGTH, '\0');
  unsigned int size = 0;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
       reinterpret_cast<const unsigned char*>(data.data()), data.size(),
       reinterpret_cast<unsigned char*>(out.data()), &size);
  return out;
}

}  // namespace

std::string Sha256Hex(std::string_view data) {
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(data.data()), data.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return ToHex(digest);
}

std::map<std::string, std::string> SignS3(const S3Request& request,
                                          const S3Credentials& credentials) {
  std::map<std::string, std::string> headers = request.headers;
  headers["x-amz-date"] = request.time;
  headers["x-amz-content-sha256"] = request.payload_sha256;
  if (!credentials.session_token.empty())
    headers["x-amz-security-token"] = credentials.session_token;

  std::map<std::string, std::string> signed_headers = headers;
  signed_headers["host"] = request.host;
  std::string canonical_headers, names;
  for (const auto& [name, value] : signed_headers) {
    canonical_headers += fmt::format("{}:{}\n", name, value);
    names += (names.empty() ? "" : ";") + name;
  }
  const std::string canonical = fmt::format("{}\n{}\n\n{}\n{}\n{}", request.method, request.path,
                                            canonical_headers, names, request.payload_sha256);
  const std::string date = request.time.substr(0, kDateDigits);
  const std::string scope = fmt::format("{}/{}/s3/aws4_request", date, request.region);
  const std::string to_sign =
      fmt::format("{}\n{}\n{}\n{}", kAlgorithm, request.time, scope, Sha256Hex(canonical));
  std::string key = Hmac("AWS4" + credentials.secret_key, date);
  for (const std::string& part : {request.region, std::string("s3"), std::string("aws4_request")})
    key = Hmac(key, part);
  headers["authorization"] =
      fmt::format("{} Credential={}/{},SignedHeaders={},Signature={}", kAlgorithm,
                  credentials.access_key, scope, names, ToHex(Hmac(key, to_sign)));
  return headers;
}

}  // namespace reprise::storage
