#include "sandboxd/api/http/languages.h"

#include <unistd.h>

#include <algorithm>

#include <fmt/format.h>

namespace reprise::sandboxd::http {
namespace {

constexpr Language kLanguages[] = {
    {"python", "main.py", "", "python3 main.py", "python3"},
    {"bash", "main.sh", "", "bash main.sh", "bash"},
    {"c", "main.c", "gcc -std=c17 -O2 main.c -o main -lm", "./main", "gcc"},
    {"cpp", "main.cpp", "g++ -std=c++17 -O2 main.cpp -o main", "./main", "g++"},
    {"nodejs", "main.js", "", "node main.js", "node"},
    {"typescript", "main.ts", "", "tsx main.ts", "node tsx"},
    {"go", "main.go", "GOCACHE=/tmp/go-cache go build -o main main.go", "./main", "go"},
    {"rust", "main.rs", "rustc -O main.rs -o main", "./main", "rustc gcc"},
    {"java", "Main.java", "javac Main.java", "java -cp . Main", "javac java"},
    {"csharp", "main.cs", "mcs -out:main.exe main.cs", "mono main.exe", "mcs mono"},
    {"php", "main.php", "", "php -f main.php", "php"},
    {"perl", "main.pl", "", "perl main.pl", "perl"},
    {"ruby", "main.rb", "", "ruby main.rb", "ruby"},
    {"lua", "main.lua", "", "lua main.lua", "lua"},
    {"R", "main.R", "", "Rscript main.R", "Rscript"},
    {"julia", "main.jl", "", "julia main.jl", "julia"},
    {"racket", "main.rkt", "", "racket main.rkt", "racket"},
    {"swift", "main.swift", "swiftc main.swift -o main", "./main", "swiftc"},
    {"verilog", "main.v", "iverilog -g2012 -o main main.v", "vvp -n main", "iverilog vvp"},
    {"sql", "main.sql", "", "sqlite3 :memory: '.read main.sql'", "sqlite3"},
};
constexpr std::string_view kProgramDirs[] = {"/usr/local/bin", "/usr/bin", "/bin"};

bool Installed(std::string_view program) {
  return std::any_of(std::begin(kProgramDirs), std::end(kProgramDirs), [&](std::string_view dir) {
    return ::access(fmt::format("{}/{}", dir, program).c_str(), X_OK) == 0;
  });
}

}  // namespace

const Language* FindLanguage(std::string_view name) {
  for (const Language& language : kLanguages) {
    if (language.name == name) return &language;
  }
  return nullptr;
}

std::string MissingProgram(const Language& language) {
  for (size_t at = 0; at < language.needs.size();) {
    const size_t end = std::min(language.needs.find(' ', at), language.needs.size());
    const std::string_view program = language.needs.substr(at, end - at);
    if (!Installed(program)) return std::string(program);
    at = end + 1;
  }
  return "";
}

std::vector<std::string_view> InstalledLanguages() {
  std::vector<std::string_view> names;
  for (const Language& language : kLanguages) {
    if (MissingProgram(language).empty()) names.push_back(language.name);
  }
  return names;
}

}  // namespace reprise::sandboxd::http
