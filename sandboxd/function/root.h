// The file system that every worker starts from, made once by the zygote in its own mount
// namespace: the host's programs and libraries read-only, a small /etc of its own, the harmless
// devices, empty places for the rest.
#pragma once

#include <string>

namespace reprise::sandboxd::function {

// Enters a new mount namespace and builds the root at `path` (an existing directory). False with
// `why`.
bool BuildRoot(const std::string& path, std::string* why);

// Empty directories of the root below which binds of a call may be put where the target does not
// exist.
inline constexpr const char* kOpenPlaces[] = {"/data", "/home", "/media", "/mnt",
                                              "/opt",  "/srv",  "/var"};

}  // namespace reprise::sandboxd::function
