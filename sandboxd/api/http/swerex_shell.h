// The shell scripts behind SWE-ReX's sessions and uploads.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace reprise::sandboxd::http {

// What the scripts write on standard error, and nothing else, when the session is not as they need
// it.
inline constexpr char kNoSession[] = "reprise: no such session";
inline constexpr char kSessionExists[] = "reprise: the session exists";

// argv of each; `session` is a checked id.
std::vector<std::string> OpenSession(std::string_view session,
                                     const std::vector<std::string>& sources);
std::vector<std::string> RunInSession(std::string_view session, std::string_view command);
std::vector<std::string> CloseSession(std::string_view session);
// Unpacks the archive and removes it.
std::vector<std::string> Unzip(std::string_view archive, std::string_view target);
// Standard error goes where standard output goes.
std::vector<std::string> Merged(const std::vector<std::string>& argv);

}  // namespace reprise::sandboxd::http
