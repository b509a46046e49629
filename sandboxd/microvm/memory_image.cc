#include "sandboxd/microvm/memory_image.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/crc32c.h"
#include "base/fd.h"
#include "base/format.h"
#include "base/status_macros.h"

namespace reprise::sandboxd::microvm {
namespace {

constexpr char kMagic[8] = {'R', 'P', 'R', 'M', 'E', 'M', '0', '1'};
constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kRunPagesMax = 256;
constexpr int kZstdLevel = 1;
constexpr size_t kPagemapEntries = 64 << 10;  // read at a time
// Of an entry of /proc/PID/pagemap.
constexpr uint64_t kPresent = 1ull << 63, kSwapped = 1ull << 62, kOfFile = 1ull << 61;

struct FileHeader {
  char magic[8];
  uint64_t memory_bytes;
};
static_assert(sizeof(FileHeader) == 16);

struct RunHeader {
  uint64_t first = 0;  // page; of the last header: how many pages there are
  uint32_t pages = 0;  // 0: the last header
  uint32_t stored =
      0;             // bytes that follow: 0 = all zeros, all of the pages = as they are, else zstd
  uint32_t sum = 0;  // CRC-32C of those bytes; of the last header: of all headers before
  uint32_t reserved = 0;
};
static_assert(sizeof(RunHeader) == 24);

template <typename T>
std::string_view Bytes(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

absl::Status Damaged(const char* what) {
  return absl::DataLossError(fmt::format("the memory of a snapshot is damaged: {}", what));
}

absl::Status ReadAt(int fd, char* data, size_t size, uint64_t offset, const char* what) {
  while (size > 0) {
    const ssize_t count = pread(fd, data, size, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return base::ErrnoStatus(errno, what);
    if (count == 0) return absl::DataLossError(fmt::format("{}: it ends too early", what));
    data += count, size -= static_cast<size_t>(count), offset += static_cast<uint64_t>(count);
  }
  return absl::OkStatus();
}

absl::Status WriteAt(int fd, std::string_view data, uint64_t offset, const char* what) {
  while (!data.empty()) {
    const ssize_t count = pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return base::ErrnoStatus(count < 0 ? errno : EIO, what);
    data.remove_prefix(static_cast<size_t>(count)), offset += static_cast<uint64_t>(count);
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> SizeOf(int ram) {
  struct stat found {};
  if (fstat(ram, &found) != 0) return base::ErrnoStatus(errno, "look at a memory file");
  return static_cast<uint64_t>(found.st_size);
}

// Takes pages in ascending order, writes runs of them.
class Writer {
 public:
  // Reads `size` bytes of the memory at `offset`.
  using Source = std::function<absl::Status(char* data, size_t size, uint64_t offset)>;
  Writer(int out, Source source)
      : out_(out),
        source_(std::move(source)),
        raw_(kRunPagesMax * kPageBytes, '\0'),
        packed_(ZSTD_compressBound(raw_.size()), '\0'),
        zstd_(ZSTD_createCCtx(), ZSTD_freeCCtx) {}

  absl::Status Begin(uint64_t memory_bytes) {
    FileHeader header{};
    memcpy(header.magic, kMagic, sizeof(kMagic));
    header.memory_bytes = memory_bytes;
    return Put(Bytes(header));
  }

  absl::Status Add(uint64_t page) {
    if (run_.pages > 0 && page == run_.first + run_.pages && run_.pages < kRunPagesMax) {
      ++run_.pages;
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(Flush());
    run_ = {page, 1};
    return absl::OkStatus();
  }

  absl::StatusOr<MemoryImage> Finish() {
    RETURN_IF_ERROR(Flush());
    RunHeader last;
    last.first = made_.pages;
    last.sum = made_.sum;
    RETURN_IF_ERROR(Put(Bytes(last)));
    return made_;
  }

 private:
  absl::Status Flush() {
    if (run_.pages == 0) return absl::OkStatus();
    const size_t size = run_.pages * kPageBytes;
    RETURN_IF_ERROR(source_(raw_.data(), size, run_.first * kPageBytes));
    std::string_view data(raw_.data(), size);
    if (data.front() == '\0' && memcmp(data.data(), data.data() + 1, size - 1) == 0) {
      data = {};
    } else {
      const size_t packed = ZSTD_compressCCtx(zstd_.get(), packed_.data(), packed_.size(),
                                              data.data(), size, kZstdLevel);
      if (!ZSTD_isError(packed) && packed < size) data = std::string_view(packed_.data(), packed);
    }
    run_.stored = static_cast<uint32_t>(data.size());
    run_.sum = base::Crc32c(data);
    made_.sum = base::Crc32c(Bytes(run_), made_.sum);
    made_.pages += run_.pages;
    RETURN_IF_ERROR(Put(Bytes(run_)));
    RETURN_IF_ERROR(Put(data));
    run_ = {};
    return absl::OkStatus();
  }

  absl::Status Put(std::string_view data) {
    made_.stored_bytes += data.size();
    return base::WriteAll(out_, data, "write the memory of a snapshot");
  }

  const int out_;
  const Source source_;
  std::string raw_, packed_;
  const std::unique_ptr<ZSTD_CCtx, size_t (*)(ZSTD_CCtx*)> zstd_;
  RunHeader run_;
  MemoryImage made_;
};

using Sink = std::function<absl::Status(std::string_view data, uint64_t offset)>;

absl::StatusOr<MemoryImage> Load(int in, uint64_t memory_bytes, const Sink& sink) {
  MemoryImage seen;
  auto take = [&](char* data, size_t size) {
    const uint64_t from = seen.stored_bytes;
    seen.stored_bytes += size;
    return ReadAt(in, data, size, from, "read the memory of a snapshot");
  };
  FileHeader header{};
  RETURN_IF_ERROR(take(reinterpret_cast<char*>(&header), sizeof(header)));
  if (memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) return Damaged("it is no such file");
  if (header.memory_bytes != memory_bytes) return Damaged("it is of a machine of another size");
  std::string stored, raw(kRunPagesMax * kPageBytes, '\0');
  uint64_t next = 0;
  while (true) {
    RunHeader run;
    RETURN_IF_ERROR(take(reinterpret_cast<char*>(&run), sizeof(run)));
    if (run.pages == 0) {
      if (run.first != seen.pages || run.sum != seen.sum || run.stored != 0)
        return Damaged("its parts do not add up");
      return seen;
    }
    const uint64_t size = run.pages * kPageBytes;
    if (run.pages > kRunPagesMax || run.stored > size || run.first < next ||
        run.first > memory_bytes / kPageBytes - run.pages) {
      return Damaged("a run of pages is out of place");
    }
    next = run.first + run.pages;
    seen.sum = base::Crc32c(Bytes(run), seen.sum);
    seen.pages += run.pages;
    stored.resize(run.stored);
    RETURN_IF_ERROR(take(stored.data(), stored.size()));
    if (base::Crc32c(stored) != run.sum) return Damaged("a checksum does not match");
    std::string_view data(stored);
    if (run.stored < size) {
      if (run.stored == 0) {
        memset(raw.data(), 0, size);
      } else if (ZSTD_decompress(raw.data(), size, stored.data(), stored.size()) != size) {
        return Damaged("a run of pages does not unpack");
      }
      data = std::string_view(raw.data(), size);
    }
    RETURN_IF_ERROR(sink(data, run.first * kPageBytes));
  }
}

// One piece of the mapping of a memory file.
struct Piece {
  uint64_t address, bytes, offset;  // in the process, and in the file
};

absl::StatusOr<std::vector<Piece>> PiecesOf(pid_t pid, int ram) {
  struct stat file {};
  if (fstat(ram, &file) != 0) return base::ErrnoStatus(errno, "look at a memory file");
  const std::string path = fmt::format("/proc/{}/maps", pid);
  std::ifstream maps(path);
  std::vector<Piece> pieces;
  for (std::string line; std::getline(maps, line);) {
    unsigned long start = 0, end = 0, offset = 0, inode = 0;
    unsigned major_number = 0, minor_number = 0;
    if (sscanf(line.c_str(), "%lx-%lx %*s %lx %x:%x %lu", &start, &end, &offset, &major_number,
               &minor_number, &inode) != 6 ||
        inode != file.st_ino || major_number != major(file.st_dev) ||
        minor_number != minor(file.st_dev)) {
      continue;
    }
    pieces.push_back({start, end - start, offset});
  }
  std::sort(pieces.begin(), pieces.end(),
            [](const Piece& a, const Piece& b) { return a.offset < b.offset; });
  uint64_t next = 0;
  for (const Piece& piece : pieces) {
    if (piece.offset != next) break;
    next += piece.bytes;
  }
  if (next != static_cast<uint64_t>(file.st_size)) {
    return absl::UnavailableError(
        fmt::format("the machine's memory does not show in {}: run sandboxd as root", path));
  }
  return pieces;
}

// Calls `each` with pieces of `size` bytes at `offset` of the file, and where they are.
absl::Status ForPieces(
    const std::vector<Piece>& pieces, size_t size, uint64_t offset,
    const std::function<absl::Status(uint64_t address, size_t size, size_t at)>& each) {
  size_t at = 0;
  for (const Piece& piece : pieces) {
    if (size == at || offset + at >= piece.offset + piece.bytes) continue;
    const uint64_t inside = offset + at - piece.offset;
    const size_t part = std::min<size_t>(size - at, piece.bytes - inside);
    RETURN_IF_ERROR(each(piece.address + inside, part, at));
    at += part;
  }
  return absl::OkStatus();
}

absl::StatusOr<base::UniqueFd> OpenProc(pid_t pid, const char* name, int flags) {
  const std::string path = fmt::format("/proc/{}/{}", pid, name);
  base::UniqueFd fd(open(path.c_str(), flags | O_CLOEXEC));
  if (!fd.valid()) return absl::UnavailableError(fmt::format("open {}: {}", path, strerror(errno)));
  return fd;
}

}  // namespace

absl::StatusOr<MemoryImage> SaveMemoryFile(int ram, int out) {
  ASSIGN_OR_RETURN(const uint64_t size, SizeOf(ram));
  Writer writer(out, [ram](char* data, size_t bytes, uint64_t offset) {
    return ReadAt(ram, data, bytes, offset, "read a memory file");
  });
  RETURN_IF_ERROR(writer.Begin(size));
  for (uint64_t at = 0; at < size;) {
    const off_t data = lseek(ram, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;
    const off_t hole = data < 0 ? -1 : lseek(ram, data, SEEK_HOLE);
    if (hole < 0) return base::ErrnoStatus(errno, "look for data in a memory file");
    for (at = static_cast<uint64_t>(data); at < static_cast<uint64_t>(hole); at += kPageBytes)
      RETURN_IF_ERROR(writer.Add(at / kPageBytes));
  }
  return writer.Finish();
}

absl::StatusOr<MemoryImage> SaveOwnPages(pid_t pid, int ram, int out) {
  ASSIGN_OR_RETURN(const uint64_t size, SizeOf(ram));
  ASSIGN_OR_RETURN(const std::vector<Piece> pieces, PiecesOf(pid, ram));
  ASSIGN_OR_RETURN(const base::UniqueFd memory, OpenProc(pid, "mem", O_RDONLY));
  ASSIGN_OR_RETURN(const base::UniqueFd pagemap, OpenProc(pid, "pagemap", O_RDONLY));
  Writer writer(out, [&](char* data, size_t bytes, uint64_t offset) {
    return ForPieces(pieces, bytes, offset, [&](uint64_t address, size_t part, size_t at) {
      return ReadAt(memory.get(), data + at, part, address, "read the memory of a machine");
    });
  });
  RETURN_IF_ERROR(writer.Begin(size));
  std::vector<uint64_t> entries(kPagemapEntries);
  for (const Piece& piece : pieces) {
    for (uint64_t at = 0; at < piece.bytes;) {
      const uint64_t count = std::min<uint64_t>(kPagemapEntries, (piece.bytes - at) / kPageBytes);
      RETURN_IF_ERROR(ReadAt(
          pagemap.get(), reinterpret_cast<char*>(entries.data()), count * sizeof(uint64_t),
          (piece.address + at) / kPageBytes * sizeof(uint64_t), "read which pages a machine has"));
      for (uint64_t i = 0; i < count; ++i) {
        const bool own = (entries[i] & (kPresent | kSwapped)) != 0 && (entries[i] & kOfFile) == 0;
        if (own) RETURN_IF_ERROR(writer.Add((piece.offset + at) / kPageBytes + i));
      }
      at += count * kPageBytes;
    }
  }
  return writer.Finish();
}

absl::StatusOr<MemoryImage> LoadMemoryFile(int in, int ram) {
  ASSIGN_OR_RETURN(const uint64_t size, SizeOf(ram));
  return Load(in, size, [ram](std::string_view data, uint64_t offset) {
    return WriteAt(ram, data, offset, "fill a memory file");
  });
}

absl::StatusOr<MemoryImage> LoadOwnPages(int in, pid_t pid, int ram) {
  ASSIGN_OR_RETURN(const uint64_t size, SizeOf(ram));
  ASSIGN_OR_RETURN(const std::vector<Piece> pieces, PiecesOf(pid, ram));
  ASSIGN_OR_RETURN(const base::UniqueFd memory, OpenProc(pid, "mem", O_RDWR));
  return Load(in, size, [&](std::string_view data, uint64_t offset) {
    return ForPieces(pieces, data.size(), offset, [&](uint64_t address, size_t part, size_t at) {
      return WriteAt(memory.get(), data.substr(at, part), address, "fill the memory of a machine");
    });
  });
}

absl::StatusOr<MemoryImage> LookAtMemory(int in) {
  MemoryImage seen;
  ASSIGN_OR_RETURN(seen.stored_bytes, SizeOf(in));
  RunHeader last;
  if (seen.stored_bytes < sizeof(FileHeader) + sizeof(last)) return Damaged("it is too short");
  RETURN_IF_ERROR(ReadAt(in, reinterpret_cast<char*>(&last), sizeof(last),
                         seen.stored_bytes - sizeof(last), "read the memory of a snapshot"));
  if (last.pages != 0 || last.stored != 0) return Damaged("its end is missing");
  seen.pages = last.first;
  seen.sum = last.sum;
  return seen;
}

}  // namespace reprise::sandboxd::microvm
