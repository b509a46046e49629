# containerd's gRPC API as a library (reprise::containerd_api), generated from the .proto files that Debian ships with
# its Go sources. They use gogoproto options and weak imports, which C++ neither needs nor can compile: both are
# taken out of a copy in the build tree. Headers are included as
# "github.com/containerd/containerd/api/services/<s>/v1/<s>.grpc.pb.h".
set(CONTAINERD_PROTO_ROOT /usr/share/gocode/src CACHE PATH "root of containerd's Go sources")
set(containerd_api github.com/containerd/containerd/api)
set(containerd_protos
  ${containerd_api}/types/descriptor.proto
  ${containerd_api}/types/metrics.proto
  ${containerd_api}/types/mount.proto
  ${containerd_api}/types/task/task.proto
  github.com/containerd/containerd/runtime/v2/runc/options/oci.proto)
set(containerd_services
  ${containerd_api}/services/containers/v1/containers.proto
  ${containerd_api}/services/content/v1/content.proto
  ${containerd_api}/services/diff/v1/diff.proto
  ${containerd_api}/services/images/v1/images.proto
  ${containerd_api}/services/leases/v1/leases.proto
  ${containerd_api}/services/namespaces/v1/namespace.proto
  ${containerd_api}/services/snapshots/v1/snapshots.proto
  ${containerd_api}/services/tasks/v1/tasks.proto
  ${containerd_api}/services/version/v1/version.proto)

set(containerd_src ${CMAKE_CURRENT_BINARY_DIR}/proto)
set(containerd_gen ${CMAKE_CURRENT_BINARY_DIR}/gen)
file(MAKE_DIRECTORY ${containerd_gen})
set(containerd_generated)
foreach(proto ${containerd_protos} ${containerd_services})
  set(original ${CONTAINERD_PROTO_ROOT}/${proto})
  if(NOT EXISTS ${original})
    message(FATAL_ERROR "${original} is missing: install golang-github-containerd-containerd-dev")
  endif()
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${original})
  file(READ ${original} text)
  string(REGEX REPLACE "import weak [^;]*;" "" text "${text}")
  string(REGEX REPLACE "option \\((gogoproto|containerd\\.plugin)[^;]*;" "" text "${text}")
  string(REGEX REPLACE "\\[\\(gogoproto[^]]*\\]" "" text "${text}")
  file(GENERATE OUTPUT ${containerd_src}/${proto} CONTENT "${text}")

  string(REPLACE ".proto" "" stem ${proto})
  set(outputs ${containerd_gen}/${stem}.pb.cc ${containerd_gen}/${stem}.pb.h)
  set(grpc_args)
  if(proto IN_LIST containerd_services)
    list(APPEND outputs ${containerd_gen}/${stem}.grpc.pb.cc ${containerd_gen}/${stem}.grpc.pb.h)
    set(grpc_args --grpc_out=${containerd_gen} --plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin>)
  endif()
  add_custom_command(OUTPUT ${outputs}
    COMMAND protobuf::protoc -I ${containerd_src} --cpp_out=${containerd_gen} ${grpc_args} ${containerd_src}/${proto}
    DEPENDS ${containerd_src}/${proto} VERBATIM)
  list(APPEND containerd_generated ${outputs})
endforeach()

add_library(reprise_containerd_api STATIC ${containerd_generated})
add_library(reprise::containerd_api ALIAS reprise_containerd_api)
target_compile_features(reprise_containerd_api PUBLIC cxx_std_20)
target_include_directories(reprise_containerd_api SYSTEM PUBLIC ${containerd_gen})
target_link_libraries(reprise_containerd_api PUBLIC protobuf::libprotobuf gRPC::grpc++)
if(REPRISE_SANITIZE)
  target_compile_options(reprise_containerd_api PRIVATE -fsanitize=${REPRISE_SANITIZE})
endif()
