# Fails when FILE has more than MAX bytes.
file(SIZE ${FILE} size)
if(size GREATER MAX)
  message(FATAL_ERROR "${FILE} has ${size} bytes; its limit is ${MAX}")
endif()
