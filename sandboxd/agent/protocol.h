// What the daemon and reprise-agent say to each other over a unix socket: length-prefixed frames
// whose payloads are flat little-endian structs. Each connection begins with one request frame from
// the daemon; a call's connection then carries output and the end one way and acknowledgements the
// other, every other one carries its answer and closes. Both sides decode strictly: a frame that is
// too long, short or has bytes left over ends the connection. No dependencies: the agent is a
// static program.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace reprise::sandboxd::agent {

inline constexpr uint32_t kFrameBytesMax = 4u << 20;  // type and payload
inline constexpr uint32_t kDataBytesMax = 64u
                                          << 10;  // of one kOutput, kStdinData or kFileData frame
inline constexpr uint64_t kUnackedBytesMax = 1u << 20;  // per stream; then the call blocks
inline constexpr uint64_t kStdinBytesMax = 64u << 20;   // given with the start
inline constexpr uint64_t kFilesBytesMax = 64u << 20;   // given with the start
inline constexpr uint32_t kListEntriesMax = 100'000;    // of one directory
inline constexpr char kSocketName[] = "agent.sock";     // in the run directory

enum class FrameType : uint8_t {
  // First frame of a connection.
  kPing = 1,    // -> kOk
  kStart = 2,   // Start, then kStdinData until stdin_bytes are there -> kStarted or kError; then as
                // a call
  kAttach = 3,  // Attach -> kStarted, kUnknown or kError; then as a call
  kStdin = 4,   // Stdin -> kOk when there is room for it
  kSignal = 5,  // Signal -> kOk
  kRelease = 6,    // CallId -> kOk; an ended call is forgotten. On a call's connection: without
                   // payload, no answer
  kPrune = 7,      // calls without a connection are killed and forgotten -> kOk
  kReadFile = 8,   // PathRequest -> kFileData..., kOk
  kWriteFile = 9,  // WriteRequest, then kFileData..., an empty one ends -> kOk
  kListDir = 10,   // PathRequest -> kEntry..., kOk
  kMakeDir = 11,   // PathRequest -> kOk
  kMove = 12,      // MoveRequest -> kOk
  kRemove = 13,    // PathRequest -> kOk
  kResize = 14,    // Resize -> kOk
  kWatch = 15,  // WatchRequest -> kWatchEvent..., of which kStarted is the first, until the daemon
                // closes; kOk when the directory is gone
  // A call's connection.
  kOutput = 32,     // Output, agent to daemon
  kEnd = 33,        // End, agent to daemon, last
  kAck = 34,        // Ack, daemon to agent
  kStdinData = 35,  // raw bytes
  // Answers.
  kOk = 64,
  kError = 65,       // Error
  kStarted = 66,     // Started
  kUnknown = 67,     // the agent never saw this call_id
  kFileData = 68,    // raw bytes
  kEntry = 69,       // Entry
  kWatchEvent = 70,  // WatchEvent
};

// How a call ended, as the agent sees it.
enum class EndKind : uint8_t {
  kExited = 1,
  kSignaled,
  kTimedOut,
  kOutputLimit,
  kSetupFailed,
  kCancelled,
  kMemoryExceeded,
  kPolicyViolation,
};

// As sandbox.v1's WatchEventKind, with the same numbers.
enum class WatchKind : uint8_t {
  kStarted = 1,
  kCreated,
  kWritten,
  kRemoved,
  kRenamed,
  kChmod,
  kOverflow,
};

struct Start {
  std::string call_id;
  std::vector<std::string> argv, env;  // env: NAME=value, added to the agent's own
  std::string working_dir;             // absolute
  std::string user;                    // "" = the agent's default; name, uid or uid:gid
  uint64_t stdin_bytes = 0;            // follow in kStdinData frames
  uint64_t files_bytes = 0;            // follow after them: an InputFiles, in kStdinData frames too
  uint8_t stdin_open = 0;              // more comes by kStdin
  uint64_t timeout_ms = 0, cpu_seconds = 0, file_bytes = 0, open_files = 0,
           output_bytes_max = 0;  // 0: none
  uint64_t tag = 0;               // given back in Started
  // On a terminal of this window: one stream, stdout. 0: on pipes.
  uint16_t pty_rows = 0, pty_columns = 0;
  // For owners that make the sandbox for the call (the function tier); others leave them alone.
  uint64_t memory_bytes = 0, pids = 0, disk_bytes = 0;
  std::vector<std::string> binds;  // host path, path inside, "rw" or "ro", and so on
  uint8_t best_effort = 0;         // on processors that nothing else wants
  std::string network;             // policy as network::Policy::Text, of use with a resolver
  std::string resolver;            // ADDRESS:PORT; "" = no network
  bool on_terminal() const { return pty_rows != 0; }
  void Fields(auto& f) {
    f(call_id), f(argv), f(env), f(working_dir), f(user), f(stdin_bytes), f(files_bytes),
        f(stdin_open);
    f(timeout_ms), f(cpu_seconds), f(file_bytes), f(open_files), f(output_bytes_max), f(tag);
    f(pty_rows), f(pty_columns);
    f(memory_bytes), f(pids), f(disk_bytes), f(binds), f(best_effort);
    f(network), f(resolver);
  }
};
// Files laid into the working directory before the command starts; the three lists have the same
// length.
struct InputFiles {
  std::vector<std::string> paths, contents, modes;  // relative; modes in octal
  void Fields(auto& f) { f(paths), f(contents), f(modes); }
};
struct Attach {
  std::string call_id;
  uint64_t stdout_from = 0, stderr_from = 0;
  void Fields(auto& f) { f(call_id), f(stdout_from), f(stderr_from); }
};
struct Started {
  uint64_t tag = 0;
  void Fields(auto& f) { f(tag); }
};
struct Stdin {
  std::string call_id, data;
  uint8_t eof = 0;
  void Fields(auto& f) { f(call_id), f(data), f(eof); }
};
struct Signal {
  std::string call_id;
  int32_t signal = 0;
  uint8_t cancel = 0;  // kill everything of the call
  void Fields(auto& f) { f(call_id), f(signal), f(cancel); }
};
struct Resize {
  std::string call_id;
  uint16_t rows = 0, columns = 0;
  void Fields(auto& f) { f(call_id), f(rows), f(columns); }
};
struct CallId {
  std::string call_id;
  void Fields(auto& f) { f(call_id); }
};
struct Output {
  uint8_t stream = 0;  // 0 stdout, 1 stderr
  uint64_t offset = 0;
  std::string data;
  void Fields(auto& f) { f(stream), f(offset), f(data); }
};
struct Ack {
  uint8_t stream = 0;
  uint64_t upto = 0;
  void Fields(auto& f) { f(stream), f(upto); }
};
struct End {
  uint8_t kind = 0;  // EndKind
  int32_t exit_code = 0, signal = 0;
  uint64_t stdout_bytes = 0, stderr_bytes = 0;
  int64_t wall_us = 0, cpu_us = 0;
  uint64_t memory_peak_bytes = 0;  // of the largest process
  std::string message;
  void Fields(auto& f) {
    f(kind), f(exit_code), f(signal), f(stdout_bytes), f(stderr_bytes), f(wall_us), f(cpu_us),
        f(memory_peak_bytes);
    f(message);
  }
};
struct Error {
  int32_t error = 0;  // errno
  std::string message;
  void Fields(auto& f) { f(error), f(message); }
};
struct PathRequest {
  std::string path, user;
  void Fields(auto& f) { f(path), f(user); }
};
struct WriteRequest {
  std::string path, user;
  uint32_t mode = 0644;
  uint8_t make_parents = 0;
  void Fields(auto& f) { f(path), f(user), f(mode), f(make_parents); }
};
struct WatchRequest {
  std::string path, user;
  uint8_t recursive = 0;
  void Fields(auto& f) { f(path), f(user), f(recursive); }
};
struct WatchEvent {
  uint8_t kind = 0;  // WatchKind
  std::string path;  // relative to the watched directory; "" is itself
  void Fields(auto& f) { f(kind), f(path); }
};
struct MoveRequest {
  std::string from, to, user;
  void Fields(auto& f) { f(from), f(to), f(user); }
};
struct Entry {
  std::string name, link_target;
  uint32_t mode = 0;
  uint64_t size = 0;
  int64_t modified_us = 0;
  void Fields(auto& f) { f(name), f(link_target), f(mode), f(size), f(modified_us); }
};

// Little-endian numbers; strings and lists with a 32-bit count. Both sides run on one machine,
// which is little-endian.
class Encoder {
 public:
  void operator()(const std::string& value) {
    (*this)(static_cast<uint32_t>(value.size()));
    out_ += value;
  }
  void operator()(const std::vector<std::string>& values) {
    (*this)(static_cast<uint32_t>(values.size()));
    for (const std::string& value : values) (*this)(value);
  }
  template <typename T>
  requires std::is_integral_v<T>
  void operator()(T value) { out_.append(reinterpret_cast<const char*>(&value), sizeof(value)); }
  std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

class Decoder {
 public:
  explicit Decoder(std::string_view in) : in_(in) {}
  void operator()(std::string& value) {
    uint32_t size = 0;
    (*this)(size);
    if (!ok_ || size > in_.size()) return Fail();
    value.assign(in_.substr(0, size));
    in_.remove_prefix(size);
  }
  void operator()(std::vector<std::string>& values) {
    uint32_t count = 0;
    (*this)(count);
    if (!ok_ || count > in_.size() / sizeof(uint32_t)) return Fail();
    values.resize(count);
    for (std::string& value : values) (*this)(value);
  }
  template <typename T>
  requires std::is_integral_v<T>
  void operator()(T& value) {
    if (in_.size() < sizeof(value)) return Fail();
    std::memcpy(&value, in_.data(), sizeof(value));
    in_.remove_prefix(sizeof(value));
  }
  bool Complete() const { return ok_ && in_.empty(); }

 private:
  void Fail() { ok_ = false, in_ = {}; }
  std::string_view in_;
  bool ok_ = true;
};

// A whole frame: 32-bit length of what follows, type, payload.
inline std::string RawFrame(FrameType type, std::string_view payload) {
  const auto length = static_cast<uint32_t>(payload.size() + 1);
  std::string frame(reinterpret_cast<const char*>(&length), sizeof(length));
  frame += static_cast<char>(type);
  frame += payload;
  return frame;
}
template <typename Message>
std::string Frame(FrameType type, Message message) {
  Encoder encoder;
  message.Fields(encoder);
  return RawFrame(type, encoder.Take());
}
// False when the payload is not exactly one Message.
template <typename Message>
bool Decode(std::string_view payload, Message* message) {
  Decoder decoder(payload);
  message->Fields(decoder);
  return decoder.Complete();
}

// Cuts frames out of a byte stream.
class FrameReader {
 public:
  enum class Next { kFrame, kNeedMore, kMalformed };
  void Append(std::string_view bytes) { buffer_ += bytes; }
  // For kFrame, `type` and `payload` are the next frame.
  Next Pop(FrameType* type, std::string* payload) {
    uint32_t length = 0;
    if (buffer_.size() - at_ < sizeof(length)) return Compact(), Next::kNeedMore;
    std::memcpy(&length, buffer_.data() + at_, sizeof(length));
    if (length == 0 || length > kFrameBytesMax) return Next::kMalformed;
    if (buffer_.size() - at_ - sizeof(length) < length) return Compact(), Next::kNeedMore;
    *type = static_cast<FrameType>(buffer_[at_ + sizeof(length)]);
    payload->assign(buffer_, at_ + sizeof(length) + 1, length - 1);
    at_ += sizeof(length) + length;
    return Next::kFrame;
  }
  bool empty() const { return at_ == buffer_.size(); }

 private:
  void Compact() { buffer_.erase(0, at_), at_ = 0; }
  std::string buffer_;
  size_t at_ = 0;
};

}  // namespace reprise::sandboxd::agent
