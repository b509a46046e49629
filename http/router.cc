#include "http/router.h"

#include <algorithm>
#include <utility>

namespace reprise::http {
namespace {

constexpr std::string_view kAny = "{}";

bool Matches(const std::vector<std::string>& pattern, const std::vector<std::string>& segments,
             std::vector<std::string>* params) {
  if (pattern.size() != segments.size()) return false;
  params->clear();
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == kAny) {
      params->push_back(segments[i]);
    } else if (pattern[i] != segments[i]) {
      return false;
    }
  }
  return true;
}

}  // namespace

void Router::Add(Route route) {
  const std::string_view pattern = route.pattern;
  for (size_t at = 1; at < pattern.size();) {
    const size_t end = std::min(pattern.find('/', at), pattern.size());
    route.segments.emplace_back(pattern.substr(at, end - at));
    at = end + 1;
  }
  routes_.push_back(std::move(route));
}

const Route* Router::Find(std::string_view method, const std::vector<std::string>& segments,
                          std::vector<std::string>* params, bool* path_known) const {
  *path_known = false;
  for (const Route& route : routes_) {
    if (!Matches(route.segments, segments, params)) continue;
    if (route.method == method) return &route;
    *path_known = true;
  }
  params->clear();
  return nullptr;
}

}  // namespace reprise::http
