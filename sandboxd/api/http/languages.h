// The languages that /run_code can judge, and which of them this host has: the function tier shows
// its jobs the host's programs, so a language is there when its programs lie in the directories of
// the jobs' PATH.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace reprise::sandboxd::http {

struct Language {
  std::string_view name;     // as clients ask for it
  std::string_view file;     // where the code is laid in, relative to the working directory
  std::string_view compile;  // shell command, "" = none
  std::string_view run;      // shell command
  std::string_view needs;    // programs, separated by spaces
};

// nullptr when it is none that we know.
const Language* FindLanguage(std::string_view name);
// "" when everything is there, else the first program that is missing.
std::string MissingProgram(const Language& language);
// Names of those that are installed.
std::vector<std::string_view> InstalledLanguages();

}  // namespace reprise::sandboxd::http
