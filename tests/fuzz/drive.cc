// Runs a fuzz target where there is no libFuzzer: over its corpus, and over mutations of it that
// are the same on every run.
//   fuzz_NAME CORPUS_DIRECTORY [MUTATIONS]     default: 4000
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/target.h"

namespace {

constexpr size_t kInputBytesMax = 1 << 16;
constexpr int kEditsMax = 4;

std::vector<std::string> ReadCorpus(const std::string& directory) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> corpus;
  for (const auto& path : paths) {
    std::ifstream in(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  return corpus;
}

void Run(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

class Mutator {
 public:
  explicit Mutator(std::vector<std::string> corpus) : corpus_(std::move(corpus)) {}

  std::string Next() {
    std::string input = Any();
    for (size_t edits = 1 + Below(kEditsMax); edits > 0; --edits) Edit(&input);
    if (input.size() > kInputBytesMax) input.resize(kInputBytesMax);
    return input;
  }

 private:
  size_t Below(size_t n) { return random_() % n; }
  const std::string& Any() { return corpus_[Below(corpus_.size())]; }
  // A piece of any input.
  std::string Piece() {
    const std::string& from = Any();
    const size_t at = Below(from.size() + 1);
    return from.substr(at, Below(64));
  }

  void Edit(std::string* input) {
    const size_t at = Below(input->size() + 1);
    switch (Below(6)) {
      case 0:
        if (at < input->size()) (*input)[at] = static_cast<char>((*input)[at] ^ (1 << Below(8)));
        return;
      case 1:
        if (at < input->size()) (*input)[at] = static_cast<char>(random_());
        return;
      case 2:
        input->erase(at, Below(16));
        return;
      case 3:
        input->insert(at, Piece());
        return;
      case 4:
        input->replace(at, Below(16), Piece());
        return;
      default:
        input->resize(at);
        return;
    }
  }

  const std::vector<std::string> corpus_;
  std::mt19937 random_{1};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s CORPUS_DIRECTORY [MUTATIONS]\n", argv[0]);
    return 2;
  }
  const std::vector<std::string> corpus = ReadCorpus(argv[1]);
  if (corpus.empty()) {
    std::fprintf(stderr, "%s: the corpus is empty\n", argv[1]);
    return 1;
  }
  for (const std::string& input : corpus) Run(input);
  const int mutations = argc > 2 ? std::atoi(argv[2]) : 4000;
  Mutator mutator(corpus);
  for (int i = 0; i < mutations; ++i) Run(mutator.Next());
  std::printf("%zu inputs and %d mutations of them\n", corpus.size(), mutations);
  return 0;
}
