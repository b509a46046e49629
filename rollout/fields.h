// Reads one object of a job file or a task line strictly: every key is asked for with its type and
// range, the first error sticks, and Finish() also refuses keys that nobody asked for. Errors are
// one line: file, key, what is wrong, what is allowed.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace reprise::rollout {

using Json = nlohmann::ordered_json;

// Deepest nesting that is accepted anywhere: files, task lines, arguments of a model.
inline constexpr int kMaxJsonDepth = 64;

// Parses JSON text of at most kMaxJsonDepth levels. INVALID_ARGUMENT says what is wrong and at
// which byte.
absl::StatusOr<Json> ParseJson(std::string_view text);

// Parses TOML text to the same tree. INVALID_ARGUMENT begins with `where`:line:column.
absl::StatusOr<Json> ParseToml(std::string_view text, const std::string& where);

class Fields {
 public:
  // `where` names the file (and line), `path` the table inside it ("" at the top). `object`
  // outlives this.
  Fields(const Json& object, std::string where, std::string path);

  bool Has(const std::string& key) const;
  // A missing key gives `fallback`; without one it is an error.
  std::string String(const std::string& key, std::optional<std::string> fallback = std::nullopt);
  std::string OneOf(const std::string& key, const std::vector<std::string>& allowed,
                    std::optional<std::string> fallback = std::nullopt);
  int64_t Int(const std::string& key, int64_t min, int64_t max,
              std::optional<int64_t> fallback = std::nullopt);
  // `open_min`: min itself is not allowed.
  double Number(const std::string& key, double min, double max, bool open_min, double fallback);
  bool Bool(const std::string& key, bool fallback);
  // An array of strings; at least `min_count` where the key is given.
  std::vector<std::string> Strings(const std::string& key, size_t min_count, bool required);
  // A table of strings, in the order of the file.
  std::vector<std::pair<std::string, std::string>> StringMap(const std::string& key);
  // The table or the tables of a key; nullopt or nothing when it is missing.
  std::optional<Fields> Table(const std::string& key);
  std::vector<Fields> Tables(const std::string& key);
  // Any value; nullptr when it is missing.
  const Json* Raw(const std::string& key);

  // Records an error about `key` ("" = the whole table) unless there is one already.
  void Fail(const std::string& key, const std::string& what);
  // The first error, or the first unknown key.
  absl::Status Finish();

  const std::string& where() const { return where_; }

 private:
  const Json* Take(const std::string& key);
  const Json* Typed(const std::string& key, bool required, bool (*is)(const Json&),
                    const char* type);
  std::string Name(const std::string& key) const;

  const Json* object_;
  std::string where_;
  std::string path_;
  std::vector<std::string> asked_;
  absl::Status error_;
};

}  // namespace reprise::rollout
