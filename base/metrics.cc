#include "base/metrics.h"

#include <algorithm>

#include <fmt/format.h>

namespace reprise::base {

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), buckets_(bounds_.size() + 1) {}

void Histogram::Observe(double value) {
  const auto at = std::lower_bound(bounds_.begin(), bounds_.end(), value);
  buckets_[static_cast<size_t>(at - bounds_.begin())].Add();
  sum_micros_.Add(static_cast<uint64_t>(std::max(value, 0.0) * 1e6));
}

std::vector<double> LatencyBounds() {
  return {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};
}

void MetricsText::Family(std::string_view name, std::string_view type, std::string_view help) {
  family_ = name;
  text_ += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

void MetricsText::Line(std::string_view suffix, std::string_view labels, double value) {
  const char* open = labels.empty() ? "" : "{";
  const char* close = labels.empty() ? "" : "}";
  text_ += fmt::format("{}{}{}{}{} {}\n", family_, suffix, open, labels, close, value);
}

void MetricsText::Sample(double value, std::string_view labels) { Line("", labels, value); }

void MetricsText::Sample(const Histogram& histogram, std::string_view labels) {
  const char* comma = labels.empty() ? "" : ",";
  uint64_t count = 0;
  for (size_t i = 0; i <= histogram.bounds().size(); ++i) {
    count += histogram.bucket(i);
    const bool last = i == histogram.bounds().size();
    Line("_bucket",
         fmt::format("{}{}le=\"{}\"", labels, comma,
                     last ? "+Inf" : fmt::format("{}", histogram.bounds()[i])),
         static_cast<double>(count));
  }
  Line("_sum", labels, histogram.sum());
  Line("_count", labels, static_cast<double>(count));
}

std::string MetricsText::Label(std::string_view name, std::string_view value) {
  std::string escaped;
  for (const char c : value) {
    if (c == '\\' || c == '"') escaped += '\\';
    escaped += c == '\n' ? ' ' : c;
  }
  return fmt::format("{}=\"{}\"", name, escaped);
}

}  // namespace reprise::base
