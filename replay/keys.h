// Keys of the journal's families. Ids hold no NUL, so "id NUL" ends an id and no id is a prefix of
// another's range.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace reprise::replay {

// "id\0": prefix of everything that belongs to one id.
inline std::string IdPrefix(std::string_view id) {
  std::string key(id);
  key.push_back('\0');
  return key;
}

// "id\0" + u64 big-endian: ordered by number within an id.
inline std::string IdNumberKey(std::string_view id, uint64_t number) {
  std::string key = IdPrefix(id);
  for (int shift = 56; shift >= 0; shift -= 8) key.push_back(static_cast<char>(number >> shift));
  return key;
}

inline uint64_t NumberOfKey(std::string_view key) {
  uint64_t number = 0;
  for (size_t i = key.size() - 8; i < key.size(); ++i) {
    number = (number << 8) | static_cast<unsigned char>(key[i]);
  }
  return number;
}

}  // namespace reprise::replay
