# Tests of reprise::engine.
reprise_test(model_test SOURCES model_test.cc LIBS reprise::engine nlohmann_json::nlohmann_json TIMEOUT 600)
reprise_test(bad_model_test SOURCES bad_config_test.cc bad_weights_test.cc
  LIBS reprise::engine nlohmann_json::nlohmann_json)
reprise_test(checkpoint_test SOURCES checkpoint_test.cc
  LIBS reprise::engine reprise::base nlohmann_json::nlohmann_json fmt::fmt)
reprise_test(convert_test SOURCES convert_test.cc
  LIBS reprise::engine reprise::kernels_cpu reprise::base nlohmann_json::nlohmann_json fmt::fmt)
reprise_test(numerics_test SOURCES numerics_test.cc
  LIBS reprise::engine reprise::base nlohmann_json::nlohmann_json fmt::fmt)
reprise_test(plan_test SOURCES plan_test.cc
  LIBS reprise::engine reprise::base nlohmann_json::nlohmann_json fmt::fmt)
reprise_test(prefix_disk_test SOURCES prefix_disk_test.cc
  LIBS reprise::engine reprise::base nlohmann_json::nlohmann_json fmt::fmt)
reprise_test(sequence_test SOURCES sequence_test.cc
  LIBS reprise::engine reprise::base nlohmann_json::nlohmann_json fmt::fmt TIMEOUT 600)
reprise_test(sampler_test SOURCES sampler_test.cc LIBS reprise::engine)
reprise_test(speculate_test SOURCES speculate_test.cc
  LIBS reprise::engine reprise::base nlohmann_json::nlohmann_json fmt::fmt)
reprise_test(engine_weights_test SOURCES weights_test.cc
  LIBS reprise::engine reprise::base nlohmann_json::nlohmann_json)
# The engine on several processes.
reprise_test(parallel_test SOURCES mesh_test.cc parallel_test.cc
  LIBS reprise::engine_parallel reprise::base nlohmann_json::nlohmann_json fmt::fmt TIMEOUT 300)
add_dependencies(parallel_test reprise-rank)
reprise_test(gather_plan_test SOURCES gather_plan_test.cc
  LIBS reprise::engine_parallel reprise::base)
if(TARGET reprise::engine_nccl)
  reprise_test(nccl_test SOURCES nccl_test.cc
    LIBS reprise::engine_nccl reprise::engine_parallel reprise::base CUDA::cudart)
endif()
reprise_test(constraint_test SOURCES constraint_test.cc random_schema.cc
  LIBS reprise::engine reprise::base nlohmann_json::nlohmann_json)
