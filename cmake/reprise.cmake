# House rules as targets: reprise_flags carries the compiler flags, and one function a kind of target
# keeps links explicit, so that a wrong include does not link.
add_library(reprise_flags INTERFACE)
target_compile_features(reprise_flags INTERFACE cxx_std_20)
# The last three warn falsely in g++ 12 on inlined std::string and std::variant code (GCC bugs 105329, 105562).
target_compile_options(reprise_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -Wno-unused-parameter -fno-strict-aliasing
    -Wno-restrict -Wno-maybe-uninitialized -Wno-stringop-overflow>)
target_include_directories(reprise_flags INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/gen)
if(REPRISE_SANITIZE)
  target_compile_options(reprise_flags INTERFACE -fsanitize=${REPRISE_SANITIZE}
    -fno-omit-frame-pointer)
  # gcc 12, which inlines less here, takes Boost.Asio's coroutine frames for mismatched new and delete.
  target_compile_options(reprise_flags INTERFACE -Wno-mismatched-new-delete)
  target_link_options(reprise_flags INTERFACE -fsanitize=${REPRISE_SANITIZE})
  target_compile_definitions(reprise_flags INTERFACE REPRISE_SANITIZED=1)
  if(REPRISE_SANITIZE STREQUAL "thread")
    # gcc warns for every std::atomic_thread_fence under tsan; Boost.Asio and absl use them.
    target_compile_options(reprise_flags INTERFACE -Wno-tsan)
  endif()
endif()
find_program(REPRISE_MOLD mold)
if(REPRISE_MOLD)
  target_link_options(reprise_flags INTERFACE -fuse-ld=mold)
endif()

# reprise_library(NAME SOURCES... [PUBLIC libs...] [PRIVATE libs...])
function(reprise_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(reprise_${name} STATIC ${ARG_SOURCES})
  add_library(reprise::${name} ALIAS reprise_${name})
  target_link_libraries(reprise_${name} PUBLIC ${ARG_PUBLIC} PRIVATE reprise_flags ${ARG_PRIVATE})
  target_include_directories(reprise_${name} PUBLIC ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/gen)
endfunction()

# What an executable NAME of a sanitizer build needs beside its flags.
function(reprise_sanitized name)
  if(REPRISE_SANITIZE STREQUAL "thread")
    target_sources(${name} PRIVATE $<TARGET_OBJECTS:reprise_tsan>)
    target_link_libraries(${name} PRIVATE absl::synchronization absl::time)
  endif()
endfunction()

# reprise_binary(NAME SOURCES... [LIBS libs...]): an executable in bin/
function(reprise_binary name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  reprise_sanitized(${name})
  target_link_libraries(${name} PRIVATE reprise_flags ${ARG_LIBS})
endfunction()

# reprise_test(NAME SOURCES... [LIBS libs...] [LABELS labels...] [TIMEOUT seconds] [ARGS args...])
# One GoogleTest binary, one ctest entry; labels pick suites (unit, integration, security).
function(reprise_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LIBS;LABELS;ARGS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  reprise_sanitized(${name})
  target_link_libraries(${name} PRIVATE reprise_flags ${ARG_LIBS} GTest::gmock GTest::gtest_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  target_compile_definitions(${name} PRIVATE
    REPRISE_SOURCE_DIR="${PROJECT_SOURCE_DIR}" REPRISE_BIN_DIR="${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(REPRISE_SANITIZE)
    math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * 10")
  endif()
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
endfunction()

# reprise_benchmark(NAME SOURCES... [LIBS libs...]): built with the tree, run by tests/bench/run
function(reprise_benchmark name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  if(NOT REPRISE_BENCH)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE reprise_flags ${ARG_LIBS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bench)
endfunction()
