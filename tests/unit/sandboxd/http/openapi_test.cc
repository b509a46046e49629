// docs/openapi.json against the routes themselves: each is described, nothing else is, and every
// reference in it leads somewhere.
#include <algorithm>
#include <cctype>
#include <functional>
#include <set>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "sandboxd/api/http/metrics.h"
#include "sandboxd/api/http/openapi.h"
#include "sandboxd/api/http/routes.h"

namespace reprise::sandboxd::http {
namespace {

using nlohmann::json;

// "POST /sandboxes/{}/pause"
std::string Name(std::string method, std::string path) {
  for (char& c : method) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  for (size_t open = path.find('{'); open != std::string::npos; open = path.find('{', open + 1))
    path.erase(open + 1, path.find('}', open) - open - 1);
  return method + " " + path;
}

TEST(OpenApi, DescribesEveryRouteAndNoOther) {
  Router router;
  AddAllRoutes(Surface(), /*leases=*/nullptr, /*builds=*/nullptr, /*tls=*/false, &router);
  AddMetricsRoute(Surface(), /*journal=*/nullptr, &router);
  std::set<std::string> routes, described;
  for (const Route& route : router.routes()) routes.insert(Name(route.method, route.pattern));
  const json document = json::parse(kOpenApi, kOpenApi + kOpenApiBytes);
  EXPECT_EQ(document["openapi"], "3.1.0");
  for (const auto& [path, operations] : document["paths"].items()) {
    for (const auto& [method, operation] : operations.items()) {
      EXPECT_TRUE(described.insert(Name(method, path)).second) << method << " " << path << " twice";
      EXPECT_FALSE(operation["summary"].get<std::string>().empty());
      EXPECT_GE(operation["responses"].size(), 2u) << path;
      size_t named = 0;
      for (const json& parameter : operation.value("parameters", json::array()))
        named += parameter["in"] == "path" ? 1 : 0;
      EXPECT_EQ(named, static_cast<size_t>(std::count(path.begin(), path.end(), '{'))) << path;
    }
  }
  EXPECT_EQ(described, routes);
}

TEST(OpenApi, ReferencesLeadSomewhere) {
  const json document = json::parse(kOpenApi, kOpenApi + kOpenApiBytes);
  const json& schemes = document["components"]["securitySchemes"];
  std::function<void(const json&)> walk = [&](const json& node) {
    if (node.is_object() && node.contains("$ref")) {
      const std::string to = node["$ref"];
      EXPECT_EQ(to.substr(0, 1), "#");
      EXPECT_TRUE(document.contains(json::json_pointer(to.substr(1)))) << to;
    }
    if (node.is_object() && node.contains("security")) {
      for (const json& choice : node["security"])
        for (const auto& [scheme, scopes] : choice.items())
          EXPECT_TRUE(schemes.contains(scheme)) << scheme;
    }
    if (node.is_structured())
      for (const json& child : node) walk(child);
  };
  walk(document);
}

}  // namespace
}  // namespace reprise::sandboxd::http
