// What a token mask costs over the published tokenizer (129,280 logits): made for a state that was
// never seen, and looked up for one that was; then a whole answer, mask by mask, as a sampler asks
// for them.
#include <zlib.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/fd.h"
#include "engine/grammar.h"
#include "engine/token_masks.h"

namespace reprise::engine {
namespace {

constexpr int32_t kVocab = 129280;
constexpr int kTurns = 5;

constexpr char kTools[] = R"([{"name": "bash", "parameters": {"type": "object", "properties":
  {"command": {"type": "string"}, "timeout": {"type": "integer"}}, "required": ["command"]}},
  {"name": "edit", "parameters": {"type": "object", "properties": {"path": {"type": "string"},
  "mode": {"enum": ["insert", "replace"]}, "lines": {"type": "array", "items": {"type": "object",
  "properties": {"at": {"type": "integer"}, "text": {"type": "string", "maxLength": 400}},
  "required": ["at", "text"]}}}, "required": ["path", "lines"]}}])";
constexpr char kAnswer[] =
    "I have to look at the file, then change two lines of it.\nLet me do that now.</think>I will "
    "edit it.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"bash\">\n<｜DSML｜parameter "
    "name=\"command\" string=\"true\">grep -n 'limit' src/server.cc | head -20 && sed -n "
    "1,40p src/server.cc</｜DSML｜parameter>\n<｜DSML｜parameter name=\"timeout\" "
    "string=\"false\">30</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke "
    "name=\"edit\">\n<｜DSML｜parameter name=\"path\" "
    "string=\"true\">src/server.cc</｜DSML｜parameter>\n<｜DSML｜parameter name=\"lines\" "
    "string=\"false\">[{\"at\": 12, \"text\": \"  if (size > kLimit) return TooLarge();\"}, "
    "{\"at\": 31, \"text\": \"// 漢字 and \\\"quotes\\\" stay\"}]</｜DSML｜parameter>\n"
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls><｜end▁of▁sentence｜>";

std::string Gunzip(const std::string& path) {
  gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) return "";
  std::string data;
  char buffer[1 << 16];
  for (int n; (n = gzread(file, buffer, sizeof(buffer))) > 0;)
    data.append(buffer, static_cast<size_t>(n));
  gzclose(file);
  return data;
}

struct Times {
  std::vector<double> us;
  void Print(const char* what) {
    std::sort(us.begin(), us.end());
    double sum = 0;
    for (const double one : us) sum += one;
    const size_t size = us.size();
    fmt::print("{:34}{:8}{:12.1f}{:12.1f}{:12.1f}{:12.1f}\n", what, size,
               sum / static_cast<double>(size), us[size / 2], us[size * 99 / 100], us.back());
  }
};

// One pass over the answer. `first`: masks are new in it.
absl::Status Pass(const Tokenizer& tokenizer, const std::shared_ptr<TokenMasks>& masks,
                  const std::vector<int32_t>& ids, Times* times, std::string* slowest) {
  AnswerConstraint constraint(masks, 0);
  double most = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const base::Stopwatch watch;
    const auto allowed = constraint.Allowed(absl::MakeConstSpan(ids).subspan(0, i));
    const auto us = static_cast<double>(watch.ElapsedMicros());
    if (!allowed.ok()) return allowed.status();
    if (!(*allowed)->Has(ids[i]))
      return absl::InternalError(fmt::format("token {} of the answer is not allowed", i));
    times->us.push_back(us);
    if (us > most) {
      most = us;
      *slowest =
          tokenizer.Decode(absl::MakeConstSpan(ids).subspan(i < 4 ? 0 : i - 4, i < 4 ? i : 4));
    }
  }
  return absl::OkStatus();
}

absl::Status Run() {
  const base::ScratchDir dir;
  const std::string path = dir.path() + "/tokenizer.json";
  const std::string packed =
      std::string(REPRISE_SOURCE_DIR) + "/tests/golden/tokenizer/tokenizer_v4.json.gz";
  absl::Status written = base::WriteFileAtomic(path, Gunzip(packed));
  if (!written.ok()) return written;
  auto tokenizer = Tokenizer::Load(path);
  if (!tokenizer.ok()) return tokenizer.status();
  base::Stopwatch watch;
  auto trie = TokenTrie::Make(**tokenizer, kVocab);
  if (!trie.ok()) return trie.status();
  fmt::print("trie of the vocabulary: {} nodes, {} tokens of plain text, made in {} ms, once\n",
             (*trie)->all.size(), (*trie)->plain.back().count, watch.ElapsedMicros() / 1000);
  GrammarSpec spec;
  spec.tools_json = kTools;
  watch = base::Stopwatch();
  auto grammar = AnswerGrammar::Compile(spec);
  if (!grammar.ok()) return grammar.status();
  fmt::print("grammar of two tools: compiled in {} us\n", watch.ElapsedMicros());
  const std::vector<int32_t> ids = (*tokenizer)->Encode(kAnswer);
  Times fresh, known;
  std::string slowest, ignored;
  for (int turn = 0; turn < kTurns; ++turn) {
    const auto masks = std::make_shared<TokenMasks>(*grammar, *trie);
    absl::Status status = Pass(**tokenizer, masks, ids, &fresh, &slowest);
    if (status.ok()) status = Pass(**tokenizer, masks, ids, &known, &ignored);
    if (!status.ok()) return status;
  }
  fmt::print("microseconds a mask, an answer of {} tokens with two calls:\n", ids.size());
  fmt::print("{:34}{:>8}{:>12}{:>12}{:>12}{:>12}\n", "", "masks", "mean", "median", "p99", "most");
  fresh.Print("a grammar's first answer");
  known.Print("its next answers");
  fmt::print("the slowest follows \"{}\"\n", slowest);
  return absl::OkStatus();
}

}  // namespace
}  // namespace reprise::engine

int main() {
  const absl::Status status = reprise::engine::Run();
  if (status.ok()) return 0;
  fmt::print(stderr, "bench_grammar: {}\n", std::string(status.message()));
  return 1;
}
