// docs/openapi.json, compiled in.
#pragma once

#include <cstddef>

namespace reprise::sandboxd::http {

extern const char kOpenApi[];  // JSON, without a NUL at its end
extern const size_t kOpenApiBytes;

}  // namespace reprise::sandboxd::http
