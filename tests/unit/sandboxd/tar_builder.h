// Builds tar archives entry by entry, hostile ones too: names and links go in as they are given.
#pragma once

#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>

namespace reprise::sandboxd {

class TarBuilder {
 public:
  TarBuilder& File(const std::string& name, std::string_view data, unsigned mode = 0644) {
    Header(name, '0', "", data.size(), mode);
    archive_ += data;
    archive_.resize((archive_.size() + 511) / 512 * 512, '\0');
    return *this;
  }
  TarBuilder& Directory(const std::string& name, unsigned mode = 0755) {
    return Header(name, '5', "", 0, mode);
  }
  TarBuilder& SymLink(const std::string& name, const std::string& target) {
    return Header(name, '2', target, 0, 0777);
  }
  // The mode becomes that of the file.
  TarBuilder& HardLink(const std::string& name, const std::string& target, unsigned mode = 0755) {
    return Header(name, '1', target, 0, mode);
  }
  TarBuilder& Device(const std::string& name) { return Header(name, '3', "", 0, 0600); }
  std::string Build() const { return archive_ + std::string(1024, '\0'); }

 private:
  TarBuilder& Header(const std::string& name, char type, const std::string& link, size_t size,
                     unsigned mode) {
    std::string header(512, '\0');
    auto put = [&](size_t at, const std::string& text) {
      std::memcpy(header.data() + at, text.data(), text.size());
    };
    auto octal = [&](size_t at, size_t digits, unsigned long value) {
      char text[16];
      std::snprintf(text, sizeof(text), "%0*lo", static_cast<int>(digits), value);
      put(at, text);
    };
    put(0, name.substr(0, 100));
    octal(100, 7, mode);
    octal(108, 7, 0);
    octal(116, 7, 0);
    octal(124, 11, size);
    octal(136, 11, 0);
    put(148, "        ");
    header[156] = type;
    put(157, link.substr(0, 100));
    put(257, std::string("ustar\0"
                         "00",
                         8));
    unsigned long sum = 0;
    for (const char c : header) sum += static_cast<unsigned char>(c);
    octal(148, 6, sum);
    header[154] = '\0';
    archive_ += header;
    return *this;
  }

  std::string archive_;
};

}  // namespace reprise::sandboxd
