// The Range header of a request for one file.
#pragma once

#include <cstdint>
#include <string_view>

namespace reprise::sandboxd::http {

struct ByteRange {
  enum class Kind {
    kWhole,    // no range, several of them, or a form that is not known: the whole file is sent
    kPart,     // `begin` to `end`
    kOutside,  // nothing of the file lies in it: 416
  };
  Kind kind = Kind::kWhole;
  uint64_t begin = 0, end = 0;  // bytes; end is one past the last
};

// `size`: of the file.
ByteRange ParseRange(std::string_view header, uint64_t size);

}  // namespace reprise::sandboxd::http
