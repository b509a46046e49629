// The system-call filter of the function tier: an allow-list, made once by libseccomp and kept as a
// program that each worker installs with one system call.
#pragma once

#include <linux/filter.h>

#include <string>
#include <vector>

namespace reprise::sandboxd::function {

// Empty with `why` when libseccomp cannot make it.
std::vector<sock_filter> MakeFilter(std::string* why);

// Installs it for this process and its children, for good. False with errno set. Needs
// no_new_privs.
bool InstallFilter(const std::vector<sock_filter>& filter);

}  // namespace reprise::sandboxd::function
