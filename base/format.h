// Lets fmt::format take absl::string_view (what absl::Status::message() returns), which is a type of its own
// where Abseil was built that way (Debian).
#pragma once

#include <fmt/format.h>

#include "absl/strings/string_view.h"

#ifndef ABSL_USES_STD_STRING_VIEW
template <>
struct fmt::formatter<absl::string_view> : fmt::formatter<fmt::string_view> {
  template <typename Context>
  auto format(absl::string_view text, Context& context) const {
    return fmt::formatter<fmt::string_view>::format(fmt::string_view(text.data(), text.size()), context);
  }
};
#endif
