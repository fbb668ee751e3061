# torch_stable: compile and link against the stable ABI of the installed torch (2.10 or newer).
# No find_package(Torch): on a CUDA build of torch it demands the whole toolkit and edits global
# flags. Sets PERFCONV_TORCH_BUILD (version) and PERFCONV_TORCH_CUDA_MAJOR (empty on a CPU build).

find_package(Python 3.10 COMPONENTS Interpreter OPTIONAL_COMPONENTS Development.Module)
if(NOT PERFCONV_TORCH_DIR)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
      "import importlib.util as u, os; s = u.find_spec('torch'); print(os.path.dirname(s.origin) if s else '', end='')"
    OUTPUT_VARIABLE PERFCONV_TORCH_DIR)
endif()
if(NOT EXISTS "${PERFCONV_TORCH_DIR}/include/torch/csrc/stable/library.h")
  message(FATAL_ERROR
    "perfconv: no torch >= 2.10 found (looked in '${PERFCONV_TORCH_DIR}'). "
    "Install torch first, or pass -DPERFCONV_TORCH_DIR=.../site-packages/torch")
endif()

file(STRINGS "${PERFCONV_TORCH_DIR}/version.py" torch_version_lines REGEX "^__version__|^cuda")
string(REGEX MATCH "__version__ = '([^']+)'" unused "${torch_version_lines}")
set(PERFCONV_TORCH_BUILD "${CMAKE_MATCH_1}")
string(REGEX MATCH "cuda[^=]*= '([0-9]+)\\.([0-9]+)" unused "${torch_version_lines}")
set(PERFCONV_TORCH_CUDA_MAJOR "${CMAKE_MATCH_1}")
message(STATUS "perfconv: torch ${PERFCONV_TORCH_BUILD} at ${PERFCONV_TORCH_DIR}")

# TORCH_TARGET_VERSION pins the oldest torch and turns every unstable torch header into an #error.
string(REPLACE "." ";" target_numbers "${PERFCONV_TORCH_TARGET}")
list(GET target_numbers 0 target_major)
list(GET target_numbers 1 target_minor)
math(EXPR target_hex "(${target_major} << 56) | (${target_minor} << 48)" OUTPUT_FORMAT HEXADECIMAL)

add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE "${PERFCONV_TORCH_DIR}/include")
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=${target_hex})
# libtorch.so must stay NEEDED: on CUDA builds it is what brings libtorch_cuda.so into scope.
target_link_libraries(torch_stable INTERFACE
  -Wl,--no-as-needed "${PERFCONV_TORCH_DIR}/lib/libtorch.so" -Wl,--as-needed
  "${PERFCONV_TORCH_DIR}/lib/libtorch_cpu.so")
