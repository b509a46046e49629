// What a fuzz target is made of: an entry point that libFuzzer and tests/fuzz/drive.cc both call,
// checks that end the process, and inputs as files for what only reads files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace reprise::fuzz {

// Ends the process with a message when `ok` is false.
void Require(bool ok, const char* what);

// The bytes as a file without a name; it is gone with this.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t size);
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const;

 private:
  int fd_;
};

}  // namespace reprise::fuzz
