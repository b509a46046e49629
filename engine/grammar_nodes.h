// The compiled form of a grammar. grammar_schema.cc makes nodes out of JSON schemas,
// grammar_turn.cc a turn out of them, and grammar.cc reads symbols. Internal to engine/grammar*.cc.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/grammar.h"
#include "engine/json.h"

namespace reprise::engine {

inline constexpr uint64_t kNoMax = std::numeric_limits<uint64_t>::max();

// Finds texts in a stream of bytes, whatever it is cut into (Aho-Corasick).
class TextScan {
 public:
  // Together fewer than 255 bytes.
  explicit TextScan(const std::vector<std::string_view>& texts);
  uint8_t Next(uint8_t state, uint8_t byte) const { return next_[state][byte]; }
  // The first of the texts that ends where `state` is; -1: none.
  int Found(uint8_t state) const { return found_[state]; }

 private:
  std::vector<std::array<uint8_t, 256>> next_;
  std::vector<int> found_;
};

struct GrammarTrie {
  struct Node {
    std::vector<std::pair<Symbol, uint32_t>> next;
    uint64_t below = 0;  // bits of the leaves from here on
    int32_t leaf = -1;
  };
  std::vector<Node> nodes = std::vector<Node>(1);

  void Add(std::string_view text, int32_t leaf, uint64_t bits);
  // The node after `symbol`; 0 (which no symbol leads to): none.
  uint32_t Next(uint32_t node, Symbol symbol) const;
};

struct GrammarNode {
  enum class Kind {
    kReasoning,  // free text; `children` follow </think>
    kContent,    // free text, to the end or to the opener of a block
    kEnd,        // the end-of-sentence marker
    kDone,       // nothing
    kLiteral,    // `literal`
    kBlock,      // after the opener of a block; `max` calls, `item`: kTools
    kTools,      // `trie` of names, each with its kCall in `children`
    kCall,       // after the opener of a call; `item`: kNames
    kNames,      // `trie` of properties of the frame below; leaf i is followed by `children`[i]
    kRaw,        // a string as it is; min..max characters
    kValues,     // one of the texts in `trie`
    kString,     // a JSON string; min..max characters
    kNumber,     // a JSON number
    kObject,     // a JSON object; `item`: kNames
    kMap,        // a JSON object of any keys; `item`: of every value
    kArray,      // a JSON array; `item`, min..max of them
    kAnyOf,      // one of `children`
    kSpace,      // one space or none
  } kind = Kind::kDone;
  std::vector<Symbol> literal;
  std::vector<uint32_t> children;
  uint32_t item = 0;
  GrammarTrie trie;
  uint64_t all = 0, required = 0;  // properties
  uint64_t min = 0, max = kNoMax;
  bool integer = false, negative = true, zero = true;  // kNumber: what it may be
  bool free = false;  // kMap, kArray: of a value without a schema, so its depth is bounded
};

class GrammarNodes {
 public:
  GrammarNodes();

  uint32_t Add(GrammarNode node);
  uint32_t Literal(std::string_view text);  // with the marker's text where the marker is meant
  const GrammarNode& at(uint32_t node) const { return nodes_[node]; }
  GrammarNode* mutable_at(uint32_t node) { return &nodes_[node]; }
  size_t size() const { return nodes_.size(); }

  // Nodes that every grammar has.
  uint32_t end, done, space, any, any_string, any_raw;
  uint32_t block_open;       // "tool_calls>\n", after the marker
  uint32_t block_close;      // marker "tool_calls>"
  uint32_t call_open;        // `invoke name="`
  uint32_t call_close;       // marker "invoke>\n"
  uint32_t call_close_tag;   // "</" marker "invoke>\n"
  uint32_t parameter_open;   // `parameter name="`
  uint32_t parameter_close;  // "</" marker "parameter>\n"
  uint32_t colon;            // ":"

 private:
  std::vector<GrammarNode> nodes_;
};

// The grammar whose first stack is `start`, its bottom first.
std::shared_ptr<const AnswerGrammar> MakeAutomaton(GrammarNodes nodes, std::vector<uint32_t> start,
                                                   std::string key);

// A value as a grammar has it: as JSON, and, where it is a string, as it stands in a parameter that
// is marked string="true".
struct GrammarValue {
  std::vector<uint32_t> raw;     // alternatives that are strings, unquoted
  std::vector<uint32_t> json;    // alternatives that are none
  std::vector<uint32_t> quoted;  // those of `raw`, as JSON
};

class SchemaCompiler {
 public:
  // `root`: of $ref; outlives this. `where`: begins every error.
  SchemaCompiler(GrammarNodes* nodes, const JsonValue& root, std::string where)
      : nodes_(nodes), root_(root), where_(std::move(where)) {}

  absl::StatusOr<GrammarValue> Value(const JsonValue& schema, const std::string& path, int depth);
  // The node of a JSON value of that schema.
  absl::StatusOr<uint32_t> Json(const JsonValue& schema, const std::string& path, int depth);
  // The kCall of a tool whose parameters have that schema.
  absl::StatusOr<uint32_t> Call(const JsonValue& schema, const std::string& path);

 private:
  struct Property {
    std::string name;
    const JsonValue* schema;
  };
  absl::Status Error(const std::string& path, std::string_view what) const;
  // Every member must be an annotation, or one of `allowed`.
  absl::Status CheckKeywords(const JsonValue& schema, const std::string& path,
                             const std::vector<std::string_view>& allowed) const;
  absl::StatusOr<uint64_t> Count(const JsonValue& schema, std::string_view keyword,
                                 const std::string& path, uint64_t fallback) const;
  absl::Status Bounds(const JsonValue& schema, std::string_view min, std::string_view max,
                      const std::string& path, GrammarNode* node) const;
  absl::StatusOr<std::vector<Property>> Properties(const JsonValue& schema, const std::string& path,
                                                   GrammarNode* node) const;

  absl::StatusOr<GrammarValue> OfType(const std::string& type, const JsonValue& schema,
                                      const std::string& path, int depth);
  absl::StatusOr<GrammarValue> Values(const std::vector<JsonValue>& values,
                                      const std::vector<std::string>& types,
                                      const std::string& path);
  absl::StatusOr<GrammarValue> Reference(const std::string& name, const std::string& path,
                                         int depth);
  absl::StatusOr<GrammarValue> AnyOf(const std::vector<JsonValue>& schemas, const std::string& path,
                                     int depth);
  absl::StatusOr<GrammarValue> Number(const std::string& type, const JsonValue& schema,
                                      const std::string& path);
  absl::StatusOr<uint32_t> Object(const JsonValue& schema, const std::string& path, int depth);
  absl::StatusOr<uint32_t> Array(const JsonValue& schema, const std::string& path, int depth);
  uint32_t OneOf(std::vector<uint32_t> nodes);
  GrammarValue JsonOnly(uint32_t node) const;

  GrammarNodes* nodes_;
  const JsonValue& root_;
  const std::string where_;
  std::map<std::string, GrammarValue> references_;
  std::vector<std::string> open_references_;
};

}  // namespace reprise::engine
