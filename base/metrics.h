// Numbers for Prometheus: counters and histograms that any thread may raise, and the text form that
// a scrape reads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace reprise::base {

class Counter {
 public:
  void Add(uint64_t count = 1) { value_.fetch_add(count, std::memory_order_relaxed); }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

class Histogram {
 public:
  // Upper ends of the buckets, rising; one without end follows.
  explicit Histogram(std::vector<double> bounds);
  void Observe(double value);

  const std::vector<double>& bounds() const { return bounds_; }
  uint64_t bucket(size_t i) const { return buckets_[i].value(); }  // 0..bounds().size()
  double sum() const { return static_cast<double>(sum_micros_.value()) / 1e6; }

 private:
  const std::vector<double> bounds_;
  std::vector<Counter> buckets_;
  Counter sum_micros_;  // of values that are not negative, in millionths
};

// From a millisecond to a minute, in seconds.
std::vector<double> LatencyBounds();

// The text exposition format, family by family.
class MetricsText {
 public:
  static constexpr char kContentType[] = "text/plain; version=0.0.4; charset=utf-8";

  // Begins a family; its samples follow. `type`: counter, gauge or histogram.
  void Family(std::string_view name, std::string_view type, std::string_view help);
  // Of the family. `labels`: "" or `name="value",...` (Label makes one).
  void Sample(double value, std::string_view labels = "");
  void Sample(const Histogram& histogram, std::string_view labels = "");
  // name="value", with the value escaped.
  static std::string Label(std::string_view name, std::string_view value);

  std::string Finish() && { return std::move(text_); }

 private:
  void Line(std::string_view suffix, std::string_view labels, double value);

  std::string family_, text_;
};

}  // namespace reprise::base
