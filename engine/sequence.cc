#include "engine/sequence.h"

#include <openssl/sha.h>

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

namespace reprise::engine {
namespace {

constexpr std::string_view kMagic = "RPRSEQ03";
constexpr uint64_t kOriginsMax = 1 << 20;
constexpr size_t kHashBytes = SHA256_DIGEST_LENGTH;

template <typename T>
void Append(const T& value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename T>
bool Take(std::string_view* bytes, T* value) {
  if (bytes->size() < sizeof(T)) return false;
  std::memcpy(value, bytes->data(), sizeof(T));
  bytes->remove_prefix(sizeof(T));
  return true;
}

std::string Hash(std::string_view bytes) {
  std::string hash(kHashBytes, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
         reinterpret_cast<unsigned char*>(hash.data()));
  return hash;
}

absl::Status Damaged(std::string_view what) {
  return absl::DataLossError(fmt::format("the saved sequence is damaged: {}", what));
}

}  // namespace

std::unique_ptr<Sequence> EngineSequence::Fork() const {
  return std::make_unique<EngineSequence>(*this);
}

absl::Status EngineSequence::Rewind(int64_t length) {
  if (!kv.CanRewind(length)) {
    return absl::OutOfRangeError(
        fmt::format("a sequence of {} tokens cannot go back to {}: its state holds the newest {}",
                    kv.length(), length, kRewindTokens));
  }
  if (length == kv.length()) return absl::OkStatus();
  kv.Rewind(length);
  ids.resize(static_cast<size_t>(length));
  while (!made_by.empty() && made_by.back().begin >= length) made_by.pop_back();
  residual_position = mtp_next = guess = -1;
  return absl::OkStatus();
}

void EngineSequence::NoteOrigin(int64_t begin, const std::string& digest) {
  if (made_by.empty() || made_by.back().digest != digest) made_by.push_back({digest, begin});
}

void EngineSequence::Adopt(absl::Span<const int32_t> tokens, const KvState& state,
                           const std::string& digest) {
  kv = state;
  made_by = {{digest, 0}};
  ids.assign(tokens.begin(), tokens.end());
  const bool has_residual = kv.layout().residual >= 0 && kv.mtp_length() >= kv.length() - 1;
  kv.set_mtp_length(std::min(kv.mtp_length(), kv.length() - 1));
  residual_position = has_residual ? kv.length() - 1 : -1;
}

std::string EngineSequence::Save() const {
  std::string body;
  Append(static_cast<uint64_t>(made_by.size()), &body);
  for (const KvOrigin& origin : made_by) {
    Append(origin.begin, &body);
    Append(static_cast<uint64_t>(origin.digest.size()), &body);
    body += origin.digest;
  }
  Append(static_cast<uint64_t>(ids.size()), &body);
  body.append(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t));
  Append(residual_position, &body);
  Append(mtp_next, &body);
  Append(guess, &body);
  kv.AppendTo(&body);
  return std::string(kMagic) + Hash(body) + body;
}

absl::Status EngineSequence::Load(std::string_view bytes, const std::string& digest) {
  if (!bytes.starts_with(kMagic)) return Damaged("it does not begin with RPRSEQ03");
  bytes.remove_prefix(kMagic.size());
  if (bytes.size() < kHashBytes) return Damaged("it is cut short");
  const std::string_view hash = bytes.substr(0, kHashBytes);
  bytes.remove_prefix(kHashBytes);
  if (Hash(bytes) != hash) return Damaged("its hash does not fit");
  uint64_t origins = 0, size = 0;
  if (!Take(&bytes, &origins) || origins > kOriginsMax) return Damaged("its origins are cut short");
  for (; origins > 0; --origins) {
    KvOrigin origin;
    if (!Take(&bytes, &origin.begin) || !Take(&bytes, &size) || size > bytes.size())
      return Damaged("its origins are cut short");
    origin.digest = bytes.substr(0, size);
    bytes.remove_prefix(size);
    made_by.push_back(std::move(origin));
  }
  if (!made_by.empty() && made_by.back().digest != digest) {
    return absl::FailedPreconditionError(
        fmt::format("the sequence was saved under weights with digest {}; these have {}",
                    made_by.back().digest, digest));
  }
  if (!Take(&bytes, &size) || size > bytes.size() / sizeof(int32_t))
    return Damaged("its tokens are cut short");
  ids.resize(size);
  std::memcpy(ids.data(), bytes.data(), size * sizeof(int32_t));
  bytes.remove_prefix(size * sizeof(int32_t));
  if (!Take(&bytes, &residual_position) || !Take(&bytes, &mtp_next) || !Take(&bytes, &guess))
    return Damaged("its guess is cut short");
  if (!kv.ReadFrom(bytes) || kv.length() != static_cast<int64_t>(ids.size())) {
    return absl::FailedPreconditionError(
        "the sequence was saved by an engine whose state is laid out otherwise: `speculate` must "
        "be "
        "the same");
  }
  return absl::OkStatus();
}

}  // namespace reprise::engine
