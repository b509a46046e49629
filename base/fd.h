// Owning file descriptors, and the few whole-file operations that the tree needs, with errors that name the path.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::base {

// Owns one file descriptor; -1 means none. Close errors are ignored: nothing durable relies on close().
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.Release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { Reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release();
  void Reset(int fd = -1);

 private:
  int fd_ = -1;
};

// An absl::Status from errno, with the code that fits it (ENOSPC -> RESOURCE_EXHAUSTED, ENOENT -> NOT_FOUND,
// EACCES/EPERM -> PERMISSION_DENIED, EIO -> DATA_LOSS, ...). `what` says what was tried and on which path.
absl::Status ErrnoStatus(int error, std::string_view what);

// Reads a whole file of at most `max_bytes`. Errors: NOT_FOUND, RESOURCE_EXHAUSTED when larger.
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes = 1ull << 30);

// Replaces `path` in one step: temporary file beside it, fsync, rename, fsync of the directory.
absl::Status WriteFileAtomic(const std::string& path, std::string_view data);

// mkdir -p with the given mode for each directory that it creates.
absl::Status MakeDirs(const std::string& path, uint32_t mode = 0755);

// Writes all bytes to a blocking descriptor, through EINTR and short writes.
absl::Status WriteAll(int fd, std::string_view data, std::string_view what);

// A new name below a directory of the caller's, removed with all its content at the end of its
// scope; what is made there is the caller's affair.
class TempPath {
 public:
  // PREFIX and 16 random hexadecimal digits.
  explicit TempPath(const std::string& prefix);
  ~TempPath();
  TempPath(const TempPath&) = delete;
  TempPath& operator=(const TempPath&) = delete;
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

// A directory below TMPDIR (or /tmp) that is removed with all its content when this goes out of scope.
class ScratchDir {
 public:
  // Aborts when the directory cannot be made: used by tests and by short-lived tools only.
  explicit ScratchDir(std::string_view prefix = "reprise");
  ~ScratchDir();
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace reprise::base
