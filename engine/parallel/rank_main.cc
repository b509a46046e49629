// reprise-rank: one of the processes that run a model together. rolloutd and `reprise model` start
// those of their own host; on other hosts an operator does, and gives their addresses.
//
// Usage: reprise-rank --listen HOST:PORT --secret-file FILE
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "base/fd.h"
#include "base/log.h"
#include "base/secret_file.h"
#include "engine/parallel/frame.h"
#include "engine/parallel/rank.h"

namespace {

int Fail(const absl::Status& status) {
  reprise::base::LogError(std::string(status.message()));
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  namespace engine = reprise::engine;
  std::string address, secret_file;
  bool once = false;
  CLI::App app("Computes a part of a model for another process, on this or on another host.");
  app.add_option("--listen", address, "HOST:PORT, port 0 = any; or unix:PATH")->required();
  app.add_option("--secret-file", secret_file,
                 "what the first rank must know too; required for HOST:PORT");
  app.add_flag("--once", once, "end with the first group");
  CLI11_PARSE(app, argc, argv);
  std::string secret;
  if (!secret_file.empty()) {
    auto read = reprise::base::ReadSecretFile(secret_file, "secret");
    if (!read.ok()) return Fail(read.status());
    secret = *std::move(read);
  } else if (address.rfind("unix:", 0) != 0) {
    fmt::print(stderr, "reprise-rank: --listen {} needs --secret-file: nobody else may use it\n",
               address);
    return 2;
  }
  std::string bound;
  auto listener = engine::Listen(address, &bound);
  if (!listener.ok()) return Fail(listener.status());
  fmt::print("listening on {}\n", bound);
  std::fflush(stdout);
  const absl::Status served = engine::ServeRank(listener->get(), secret, once);
  return served.ok() ? 0 : Fail(served);
}
