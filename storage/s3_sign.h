// AWS Signature Version 4 for one S3 request whose parts are given, as a pure function.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace reprise::storage {

struct S3Credentials {
  std::string access_key, secret_key;
  std::string session_token;  // "" = none
};

struct S3Request {
  std::string method;                          // "GET"
  std::string host;                            // with the port where it is not the scheme's own
  std::string path;                            // absolute, already percent-encoded
  std::map<std::string, std::string> headers;  // more headers to sign, names in lower case
  std::string payload_sha256;                  // hexadecimal
  std::string region;
  std::string time;  // "20130524T000000Z"
};

// Lower-case hexadecimal SHA-256.
std::string Sha256Hex(std::string_view data);

// Every header that the request must carry, "host" left out: those given, x-amz-date,
// x-amz-content-sha256, x-amz-security-token where there is one, and authorization.
std::map<std::string, std::string> SignS3(const S3Request& request,
                                          const S3Credentials& credentials);

}  // namespace reprise::storage
