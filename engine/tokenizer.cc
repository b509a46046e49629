#include "engine/tokenizer.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "absl/strings/escaping.h"
#include "base/fd.h"
#include "base/status_macros.h"
#include "engine/bpe.h"
#include "engine/pretokenizer.h"

namespace reprise::engine {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxFileBytes = 256u << 20;

// The GPT-2 byte alphabet: printable bytes stand for themselves, the other 68 for U+0100 and up.
std::array<int, 0x180> CodePointToByte() {
  std::array<int, 0x180> table;
  table.fill(-1);
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    table[static_cast<size_t>(printable ? byte : next++)] = byte;
  }
  return table;
}

// Bytes that a vocabulary entry stands for; false when it holds a character outside the alphabet.
bool AlphabetToBytes(std::string_view text, std::string* bytes) {
  static const std::array<int, 0x180> table = CodePointToByte();
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    uint32_t code = lead;
    size_t size = 1;
    if (lead >= 0x80) {
      if ((lead & 0xe0) != 0xc0 || i + 1 >= text.size()) return false;
      code = ((lead & 0x1fu) << 6) | (static_cast<unsigned char>(text[i + 1]) & 0x3fu);
      size = 2;
    }
    if (code >= table.size() || table[code] < 0) return false;
    bytes->push_back(static_cast<char>(table[code]));
    i += size;
  }
  return true;
}

std::string Sha256Hex(const std::string& data) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(data.data(), data.size(), digest, &size, EVP_sha256(), nullptr);
  return absl::BytesToHexString(std::string(reinterpret_cast<char*>(digest), size));
}

struct AddedToken {
  std::string text;
  int32_t id;
};

class TokenizerImpl final : public Tokenizer {
 public:
  absl::Status Init(const std::string& path, const std::string& file) {
    path_ = path;
    digest_ = Sha256Hex(file);
    json root = json::parse(file, nullptr, /*allow_exceptions=*/false);
    if (root.is_discarded() || !root.is_object()) return Bad("the file is not a JSON object");
    RETURN_IF_ERROR(LoadModel(root));
    RETURN_IF_ERROR(LoadAddedTokens(root));
    RETURN_IF_ERROR(LoadPreTokenizer(root));
    const json normalizer = root.value("normalizer", json());
    if (!normalizer.is_null() && !(normalizer.value("type", "") == "Sequence" &&
                                   normalizer.value("normalizers", json::array()).empty())) {
      return Bad("normalizer: only none or an empty Sequence is supported");
    }
    return absl::OkStatus();
  }

  std::vector<int32_t> Encode(std::string_view text, bool match_added) const override {
    std::vector<int32_t> ids;
    EncodeWith(
        text, [&](size_t) { return match_added ? text.size() : 0; }, &ids);
    return ids;
  }

  std::vector<int32_t> Encode(absl::Span<const PromptPiece> pieces) const override {
    std::string joined;
    // For each byte offset where a run of markup begins: where it ends.
    std::vector<std::pair<size_t, size_t>> markup;
    for (const PromptPiece& piece : pieces) {
      if (piece.markup && !piece.text.empty()) {
        if (!markup.empty() && markup.back().second == joined.size()) {
          markup.back().second += piece.text.size();
        } else {
          markup.emplace_back(joined.size(), joined.size() + piece.text.size());
        }
      }
      joined += piece.text;
    }
    size_t run = 0;
    std::vector<int32_t> ids;
    EncodeWith(
        joined,
        [&](size_t at) -> size_t {
          while (run < markup.size() && markup[run].second <= at) ++run;
          return run < markup.size() && markup[run].first <= at ? markup[run].second : 0;
        },
        &ids);
    return ids;
  }

  std::string Decode(absl::Span<const int32_t> ids) const override {
    std::string text;
    for (int32_t id : ids) text += TokenBytes(id);
    return text;
  }

  std::string TokenBytes(int32_t id) const override {
    return id >= 0 && id < vocab_size() ? bytes_[static_cast<size_t>(id)] : std::string();
  }

  std::optional<int32_t> AddedTokenId(std::string_view text) const override {
    for (const auto& [lead, tokens] : added_) {
      for (const AddedToken& token : tokens) {
        if (token.text == text) return token.id;
      }
    }
    return std::nullopt;
  }

  bool IsAddedToken(int32_t id) const override {
    return id >= 0 && id < vocab_size() && is_added_[static_cast<size_t>(id)];
  }
  int32_t vocab_size() const override { return static_cast<int32_t>(bytes_.size()); }
  const std::string& digest() const override { return digest_; }

 private:
  absl::Status Bad(std::string_view what) const {
    return absl::InvalidArgumentError(
        fmt::format("{}: {}; give the tokenizer.json of the checkpoint", path_, what));
  }

  void SetToken(int32_t id, std::string bytes, bool added) {
    const auto index = static_cast<size_t>(id);
    if (index >= bytes_.size()) {
      bytes_.resize(index + 1);
      is_added_.resize(index + 1, false);
    }
    bytes_[index] = std::move(bytes);
    is_added_[index] = added;
  }

  absl::Status LoadModel(const json& root) {
    const json model = root.value("model", json());
    if (!model.is_object() || model.value("type", "BPE") != "BPE")
      return Bad("model.type is not BPE");
    if (model.value("byte_fallback", false)) return Bad("model.byte_fallback is not supported");
    const auto vocab = model.find("vocab");
    const auto merges = model.find("merges");
    if (vocab == model.end() || !vocab->is_object()) return Bad("model.vocab is missing");
    if (merges == model.end() || !merges->is_array()) return Bad("model.merges is missing");
    std::unordered_map<std::string, int32_t> ids;
    ids.reserve(vocab->size());
    std::vector<int32_t> byte_ids(256, -1);
    for (const auto& [text, value] : vocab->items()) {
      if (!value.is_number_integer() || value.get<int64_t>() < 0 ||
          value.get<int64_t>() > (1 << 24)) {
        return Bad(fmt::format("model.vocab[\"{}\"] is not a token id", text));
      }
      const auto id = value.get<int32_t>();
      ids.emplace(text, id);
      std::string bytes;
      // Entries outside the byte alphabet are added tokens that some exporters list here as well.
      if (!AlphabetToBytes(text, &bytes)) bytes = text;
      if (bytes.size() == 1) byte_ids[static_cast<unsigned char>(bytes[0])] = id;
      SetToken(id, std::move(bytes), false);
    }
    for (int byte = 0; byte < 256; ++byte) {
      if (byte_ids[static_cast<size_t>(byte)] < 0)
        return Bad(fmt::format("model.vocab lacks byte 0x{:02x}", byte));
    }
    bpe_ = std::make_unique<Bpe>(std::move(byte_ids));
    for (size_t i = 0; i < merges->size(); ++i) {
      const json& merge = (*merges)[i];
      std::string left, right;
      if (merge.is_string()) {
        const std::string& text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space == std::string::npos)
          return Bad(fmt::format("model.merges[{}] is not a pair", i));
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
                 merge[1].is_string()) {
        left = merge[0];
        right = merge[1];
      } else {
        return Bad(fmt::format("model.merges[{}] is not a pair", i));
      }
      auto l = ids.find(left), r = ids.find(right), m = ids.find(left + right);
      if (l == ids.end() || r == ids.end() || m == ids.end()) {
        return Bad(fmt::format("model.merges[{}] uses a token that is not in model.vocab", i));
      }
      bpe_->AddMerge(l->second, r->second, m->second);
    }
    return absl::OkStatus();
  }

  absl::Status LoadAddedTokens(const json& root) {
    const json added = root.value("added_tokens", json::array());
    for (size_t i = 0; i < added.size(); ++i) {
      const json& token = added[i];
      if (!token.is_object() || !token.contains("content") || !token["content"].is_string() ||
          !token.contains("id") || !token["id"].is_number_integer()) {
        return Bad(fmt::format("added_tokens[{}] needs an id and a content", i));
      }
      if (token.value("lstrip", false) || token.value("rstrip", false) ||
          token.value("single_word", false)) {
        return Bad(
            fmt::format("added_tokens[{}]: lstrip, rstrip and single_word are not supported", i));
      }
      std::string text = token["content"];
      const auto id = token["id"].get<int64_t>();
      if (text.empty() || id < 0 || id > (1 << 24))
        return Bad(fmt::format("added_tokens[{}] is malformed", i));
      SetToken(static_cast<int32_t>(id), text, true);
      added_[text[0]].push_back({std::move(text), static_cast<int32_t>(id)});
    }
    for (auto& [lead, tokens] : added_) {
      std::sort(tokens.begin(), tokens.end(), [](const AddedToken& a, const AddedToken& b) {
        return a.text.size() > b.text.size();
      });
    }
    return absl::OkStatus();
  }

  absl::Status LoadPreTokenizer(const json& root) {
    const json pre = root.value("pre_tokenizer", json());
    if (!pre.is_object()) return Bad("pre_tokenizer is missing");
    const json steps = pre.value("type", "") == "Sequence"
                           ? pre.value("pretokenizers", json::array())
                           : json::array({pre});
    std::vector<std::string> patterns;
    bool byte_level = false;
    for (size_t i = 0; i < steps.size(); ++i) {
      const std::string type = steps[i].value("type", "");
      if (type == "Split" && !byte_level) {
        const json pattern = steps[i].value("pattern", json::object());
        if (!pattern.contains("Regex") || !pattern["Regex"].is_string() ||
            steps[i].value("behavior", "") != "Isolated" || steps[i].value("invert", false)) {
          return Bad(
              fmt::format("pre_tokenizer[{}]: only Split with a Regex, Isolated, is supported", i));
        }
        patterns.push_back(pattern["Regex"]);
      } else if (type == "ByteLevel") {
        if (steps[i].value("add_prefix_space", false) || steps[i].value("use_regex", true)) {
          return Bad("pre_tokenizer ByteLevel: add_prefix_space and use_regex are not supported");
        }
        byte_level = true;
      } else {
        return Bad(fmt::format("pre_tokenizer[{}]: type \"{}\" is not supported", i, type));
      }
    }
    if (!byte_level) return Bad("pre_tokenizer does not end with ByteLevel");
    absl::StatusOr<std::unique_ptr<PreTokenizer>> made = PreTokenizer::Create(patterns);
    if (!made.ok()) return Bad(std::string(made.status().message()));
    pre_tokenizer_ = std::move(*made);
    return absl::OkStatus();
  }

  // `markup_end(at)`: end of the markup that byte `at` lies in, 0 outside; called with rising `at`.
  template <typename MarkupEnd>
  void EncodeWith(std::string_view text, MarkupEnd markup_end, std::vector<int32_t>* ids) const {
    size_t begin = 0;
    for (size_t at = 0; at < text.size();) {
      const AddedToken* match = nullptr;
      if (auto it = added_.find(text[at]); it != added_.end()) {
        const size_t end = markup_end(at);
        for (const AddedToken& token : it->second) {
          if (at + token.text.size() <= end &&
              text.compare(at, token.text.size(), token.text) == 0) {
            match = &token;
            break;
          }
        }
      }
      if (match == nullptr) {
        ++at;
        continue;
      }
      EncodePlain(text.substr(begin, at - begin), ids);
      ids->push_back(match->id);
      at += match->text.size();
      begin = at;
    }
    EncodePlain(text.substr(begin), ids);
  }

  void EncodePlain(std::string_view text, std::vector<int32_t>* ids) const {
    for (std::string_view fragment : pre_tokenizer_->Split(text)) bpe_->Encode(fragment, ids);
  }

  std::string path_;
  std::string digest_;
  std::vector<std::string> bytes_;
  std::vector<bool> is_added_;
  std::unordered_map<char, std::vector<AddedToken>> added_;  // by first byte, longest first
  std::unique_ptr<Bpe> bpe_;
  std::unique_ptr<PreTokenizer> pre_tokenizer_;
};

// Length of the UTF-8 sequence that `lead` begins; 1 for what begins none.
size_t SequenceLength(unsigned char lead) {
  if (lead >= 0xf0 && lead < 0xf8) return 4;
  if (lead >= 0xe0) return lead < 0xf0 ? 3 : 1;
  return lead >= 0xc2 && lead < 0xe0 ? 2 : 1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  ASSIGN_OR_RETURN(std::string file, base::ReadFile(path, kMaxFileBytes));
  auto tokenizer = std::make_unique<TokenizerImpl>();
  try {
    RETURN_IF_ERROR(tokenizer->Init(path, file));
  } catch (const json::exception& error) {
    // A value of another type than its key has.
    return absl::InvalidArgumentError(fmt::format("{}: {}", path, error.what()));
  }
  return tokenizer;
}

std::string StreamDecoder::Push(int32_t id) {
  pending_ += tokenizer_->TokenBytes(id);
  // Hold back a sequence at the end that may still be completed.
  size_t keep = 0;
  for (size_t back = 1; back <= std::min<size_t>(3, pending_.size()); ++back) {
    const auto byte = static_cast<unsigned char>(pending_[pending_.size() - back]);
    if ((byte & 0xc0) == 0x80) continue;
    if (SequenceLength(byte) > back) keep = back;
    break;
  }
  std::string out = pending_.substr(0, pending_.size() - keep);
  pending_.erase(0, pending_.size() - keep);
  return out;
}

std::string StreamDecoder::Finish() {
  std::string out = pending_.empty() ? "" : "\xef\xbf\xbd";
  pending_.clear();
  return out;
}

}  // namespace reprise::engine
