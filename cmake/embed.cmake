# Writes a file as C++: the array NAME and its length NAME##Bytes, which HEADER declares in NAMESPACE.
# cmake -DIN=FILE -DOUT=FILE -DHEADER=PATH -DNAMESPACE=A::B -DNAME=kName -P embed.cmake
file(READ ${IN} bytes HEX)
string(LENGTH "${bytes}" digits)
math(EXPR count "${digits} / 2")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," bytes "${bytes}")
file(WRITE ${OUT} "#include \"${HEADER}\"\n\nnamespace ${NAMESPACE} {\n\n"
  "const char ${NAME}[] = {${bytes}};\nconst size_t ${NAME}Bytes = ${count};\n\n}  // namespace ${NAMESPACE}\n")
