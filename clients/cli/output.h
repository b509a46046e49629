// How the command prints: tables with aligned columns, JSON, and quantities as people read them.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace reprise::cli {

using Json = nlohmann::ordered_json;

// Writes to stdout and flushes.
void Print(std::string_view text);
// One line of JSON on stdout; bytes that are no UTF-8 become U+FFFD.
void PrintJson(const Json& value);

// Columns as wide as their widest cell, two spaces apart. A column whose cells are all numbers is
// aligned to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  bool empty() const { return rows_.empty(); }
  std::string Render() const;

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

// "name   value" lines, indented by two spaces, values aligned.
class Facts {
 public:
  void Add(std::string name, std::string value) {
    rows_.emplace_back(std::move(name), std::move(value));
  }
  std::string Render() const;

 private:
  std::vector<std::pair<std::string, std::string>> rows_;
};

std::string Count(uint64_t number);             // 1234567 -> "1,234,567"
std::string HumanBytes(uint64_t bytes);         // 1536 -> "1.5 KiB"
std::string HumanSeconds(double seconds);       // 75.2 -> "1 min 15 s"; 0.0123 -> "12 ms"
std::string LocalTime(int64_t micros);          // "2026-04-01 12:30:05"; "" for 0
std::string ShellQuote(std::string_view word);  // as a shell takes it back
// Characters that `text` (UTF-8) takes on a terminal, each counted as one column.
size_t Width(std::string_view text);
// `text` cut to `columns` with "..." at its end, line breaks shown as spaces.
std::string OneLine(std::string_view text, size_t columns);

}  // namespace reprise::cli
