#include "clients/cli/output.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

namespace reprise::cli {
namespace {

constexpr std::string_view kGap = "  ";

bool IsNumber(std::string_view cell) {
  if (cell.empty() || cell == "-") return true;
  return cell.find_first_not_of("0123456789.,-+%") == cell.npos;
}

bool IsContinuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

}  // namespace

void Print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void PrintJson(const Json& value) {
  Print(value.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

size_t Width(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return !IsContinuation(c); }));
}

std::string OneLine(std::string_view text, size_t columns) {
  std::string out;
  size_t width = 0;
  for (char c : text) {
    if (!IsContinuation(c) && ++width > columns) {
      // Back over the last three columns, to make room for the dots.
      for (int i = 0; i < 3 && !out.empty(); ++i) {
        while (!out.empty() && IsContinuation(out.back())) out.pop_back();
        if (!out.empty()) out.pop_back();
      }
      return out + "...";
    }
    out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  }
  return out;
}

std::string Table::Render() const {
  std::vector<size_t> widths(header_.size());
  std::vector<bool> right(header_.size(), !rows_.empty());
  for (size_t i = 0; i < header_.size(); ++i) {
    widths[i] = Width(header_[i]);
    for (const auto& row : rows_) {
      widths[i] = std::max(widths[i], Width(row[i]));
      right[i] = right[i] && IsNumber(row[i]);
    }
  }
  std::string out;
  auto line = [&](const std::vector<std::string>& row) {
    std::string text;
    for (size_t i = 0; i < row.size(); ++i) {
      std::string pad(widths[i] - Width(row[i]), ' ');
      if (i > 0) text += kGap;
      text += right[i] ? pad + row[i] : row[i] + pad;
    }
    while (text.ends_with(' ')) text.pop_back();
    out += text + "\n";
  };
  line(header_);
  for (const auto& row : rows_) line(row);
  return out;
}

std::string Facts::Render() const {
  size_t width = 0;
  for (const auto& [name, value] : rows_) width = std::max(width, Width(name));
  std::string out;
  for (const auto& [name, value] : rows_) {
    out += fmt::format("  {}{}  {}\n", name, std::string(width - Width(name), ' '), value);
  }
  return out;
}

std::string Count(uint64_t number) {
  std::string digits = std::to_string(number), out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

std::string HumanBytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes);
  int unit = 0;
  // 1023.95 would print as 1024.0.
  while (value >= 1023.95 && unit < 6) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string HumanSeconds(double seconds) {
  if (seconds < 0.9995) return fmt::format("{:.0f} ms", seconds * 1000);
  if (seconds < 59.95) return fmt::format("{:.1f} s", seconds);
  auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

std::string LocalTime(int64_t micros) {
  if (micros == 0) return "";
  return fmt::format("{:%Y-%m-%d %H:%M:%S}",
                     fmt::localtime(static_cast<std::time_t>(micros / 1'000'000)));
}

std::string ShellQuote(std::string_view word) {
  constexpr std::string_view kPlain =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_@%+=:,./-";
  if (!word.empty() && word.find_first_not_of(kPlain) == word.npos) return std::string(word);
  std::string out = "'";
  for (char c : word) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  return out + "'";
}

}  // namespace reprise::cli
