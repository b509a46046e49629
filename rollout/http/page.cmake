# Writes the page as C++: cmake -DIN=FILE -DOUT=FILE -P page.cmake
file(READ ${IN} bytes HEX)
string(LENGTH "${bytes}" digits)
math(EXPR count "${digits} / 2")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," bytes "${bytes}")
file(WRITE ${OUT} "#include \"rollout/http/page.h\"\n\nnamespace reprise::rollout::http {\n\n"
  "const char kPage[] = {${bytes}};\nconst size_t kPageBytes = ${count};\n\n}  // namespace reprise::rollout::http\n")
