// A progress line on a terminal: drawn over itself on stderr, at most ten times a second, and gone
// once its work is done. Draws nothing where stderr is no terminal.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace reprise::cli {

// "label [#####.....] 12/48 note", at most `columns` wide.
std::string ProgressLine(std::string_view label, uint64_t done, uint64_t total,
                         std::string_view note, size_t columns);

class Progress {
 public:
  explicit Progress(std::string label);
  // Clears the line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `note` follows the bar: rates, counts. Skipped when the last line is too young, but not for the
  // last step.
  void Update(uint64_t done, uint64_t total, std::string_view note);
  void Clear();

 private:
  const std::string label_;
  const bool terminal_;
  int64_t drawn_us_ = 0;  // monotonic; 0 = nothing on the screen
};

}  // namespace reprise::cli
