// The input of `reprise bulk run`: a file of one JSON object a line, each one program to run. Every
// line is checked before the first one runs, and read again when its turn comes, so that the file
// may be larger than memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/fd.h"
#include "reprise/sandbox/v1/sandbox.pb.h"

namespace reprise::cli {

inline constexpr size_t kMaxBulkLineBytes = 48u << 20;
inline constexpr size_t kMaxBulkIdBytes = 100;   // of a line
inline constexpr size_t kMaxBulkNameBytes = 60;  // of a run
inline constexpr uint64_t kMaxBulkLines = 50'000'000;

struct BulkLine {
  std::string id;
  ::reprise::sandbox::v1::SandboxSpec spec;
  ::reprise::sandbox::v1::ExecuteRequest request;  // sandbox_id and call_id filled in
};

// What lines are read with.
struct BulkDefaults {
  std::string name;                          // of the run
  ::reprise::sandbox::v1::SandboxSpec spec;  // that a line's own fields are laid over
};

// Keys: id; argv (array of strings) or command (text for /bin/sh -c); stdin, files (name -> text),
// env (name -> value), limits, working_dir, user, on_interrupt ("report" or "rerun"), image, and
// sandbox (as in a job file). The call's id is made of the run's name, the line's id and a hash of
// all that decides what runs: the same line again is the same call, a changed line another one.
// `where` begins errors.
absl::StatusOr<BulkLine> ParseBulkLine(std::string_view text, const std::string& where,
                                       const BulkDefaults& defaults);

class BulkFile {
 public:
  // Reads and checks every line; empty ones are skipped. INVALID_ARGUMENT "FILE:LINE: ..." for the
  // first that is malformed or has an id that was there before.
  static absl::StatusOr<std::unique_ptr<BulkFile>> Open(const std::string& path,
                                                        const BulkDefaults& defaults);
  size_t size() const { return places_.size(); }
  // Thread-safe. DATA_LOSS when the file was changed meanwhile.
  absl::StatusOr<BulkLine> Read(size_t index) const;

 private:
  struct Place {
    uint64_t offset = 0;
    uint32_t bytes = 0;
    uint32_t line = 0;  // from 1
    uint32_t crc = 0;
  };
  BulkFile(std::string path, BulkDefaults defaults, base::UniqueFd file)
      : path_(std::move(path)), defaults_(std::move(defaults)), file_(std::move(file)) {}
  absl::Status Index();
  std::string Where(uint32_t line) const;

  const std::string path_;
  const BulkDefaults defaults_;
  const base::UniqueFd file_;
  std::vector<Place> places_;
};

}  // namespace reprise::cli
