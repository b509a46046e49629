// Random tool schemas of what a grammar enforces, values that fit them, and a validator that knows
// nothing of grammars.
#pragma once

#include <cstdint>
#include <random>
#include <string>

#include <nlohmann/json.hpp>

namespace reprise::engine {

using OrderedJson = nlohmann::ordered_json;

class RandomSchema {
 public:
  explicit RandomSchema(uint64_t seed) : random_(seed) {}

  // An array of tools in OpenAI form.
  OrderedJson Tools();
  OrderedJson Schema(int depth);
  // A value that `schema` allows.
  OrderedJson Value(const OrderedJson& schema);
  size_t Below(size_t count) { return random_() % count; }

 private:
  OrderedJson Object(int depth);
  std::string Text(size_t min, size_t max);

  std::mt19937_64 random_;
};

// Empty when `value` fits; else where it does not. For the keywords that RandomSchema uses.
std::string Misfit(const OrderedJson& schema, const OrderedJson& value);

}  // namespace reprise::engine
