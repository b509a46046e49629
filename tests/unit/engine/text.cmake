# Tests of reprise::text.
pkg_check_modules(ZLIB REQUIRED IMPORTED_TARGET zlib)
reprise_test(tokenizer_test SOURCES tokenizer_test.cc
  LIBS reprise::text nlohmann_json::nlohmann_json PkgConfig::ZLIB)
reprise_test(chat_test SOURCES chat_test.cc LIBS reprise::text nlohmann_json::nlohmann_json)
reprise_test(grammar_test SOURCES grammar_test.cc random_schema.cc
  LIBS reprise::text nlohmann_json::nlohmann_json)
