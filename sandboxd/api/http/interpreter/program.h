// context.py: what runs inside a sandbox as a code context. Made at build time.
#pragma once

#include <cstddef>

namespace reprise::sandboxd::http {

extern const char kContextProgram[];
extern const size_t kContextProgramBytes;

}  // namespace reprise::sandboxd::http
