// What the chunk tests share: contents that are the same in every run, and a cold tier in memory
// that counts, fails and damages on demand.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <string>

#include "absl/synchronization/mutex.h"
#include "storage/cold_tier.h"

namespace reprise::storage {

// Incompressible bytes that only `seed` decides.
inline std::string Noise(uint32_t seed, size_t bytes) {
  std::mt19937 random(seed);
  std::string noise(bytes, '\0');
  for (char& byte : noise) byte = static_cast<char>(random());
  return noise;
}

class FakeCold final : public ColdTier {
 public:
  absl::StatusOr<std::string> Get(const std::string& key, size_t) override {
    ++gets;
    while (hold) {
    }
    absl::MutexLock lock(&mutex);
    if (down) return absl::UnavailableError("the cold tier is down");
    auto found = objects.find(key);
    if (found == objects.end()) return absl::NotFoundError(key);
    return found->second;
  }
  absl::StatusOr<bool> Has(const std::string& key) override {
    absl::MutexLock lock(&mutex);
    return objects.contains(key);
  }
  absl::Status Put(const std::string& key, std::string_view object) override {
    absl::MutexLock lock(&mutex);
    objects[key] = object;
    return absl::OkStatus();
  }
  absl::Status Remove(const std::string& key) override {
    absl::MutexLock lock(&mutex);
    objects.erase(key);
    return absl::OkStatus();
  }

  std::atomic<int> gets{0};
  std::atomic<bool> hold{false};  // Get waits while it is set
  std::atomic<bool> down{false};
  absl::Mutex mutex;
  std::map<std::string, std::string> objects;
};

}  // namespace reprise::storage
