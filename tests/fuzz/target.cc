#include "tests/fuzz/target.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace reprise::fuzz {

void Require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "fuzz: does not hold: %s\n", what);
  std::abort();
}

MemoryFile::MemoryFile(const uint8_t* data, size_t size)
    : fd_(::memfd_create("fuzz", MFD_CLOEXEC)) {
  Require(fd_ >= 0, "memfd_create works");
  for (size_t at = 0; at < size;) {
    const ssize_t written = ::write(fd_, data + at, size - at);
    Require(written > 0, "a memory file takes its bytes");
    at += static_cast<size_t>(written);
  }
}

MemoryFile::~MemoryFile() { ::close(fd_); }

std::string MemoryFile::path() const { return "/proc/self/fd/" + std::to_string(fd_); }

}  // namespace reprise::fuzz
