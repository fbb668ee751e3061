# perfconv_cuda: the CUDA kernels, built when nvcc is found and this tree has csrc/cuda.
# Sets PERFCONV_CUDA_VERSION (empty without the library) and PERFCONV_CUDA_ARCHS.

set(PERFCONV_CUDA_VERSION "")
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cpp csrc/cuda/kernels/*.cu)
find_program(PERFCONV_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH
             PATHS /usr/local/cuda PATH_SUFFIXES bin)

set(obstacle "")
if(PERFCONV_CUDA STREQUAL "OFF")
  set(obstacle "PERFCONV_CUDA is off")
elseif(NOT cuda_sources)
  set(obstacle "this tree has no CUDA sources (csrc/cuda)")
elseif(NOT PERFCONV_NVCC)
  set(obstacle "no nvcc found: put it on PATH or set CUDA_HOME")
endif()

if(obstacle)
  set(PERFCONV_CUDA_ARCHS "")
  if(PERFCONV_CUDA STREQUAL "ON")
    message(FATAL_ERROR "perfconv: PERFCONV_CUDA=1, but ${obstacle}.")
  endif()
  message(STATUS "perfconv: ${obstacle}; building the CPU kernels only")
  return()
endif()

if(NOT PERFCONV_CUDA_ARCHS)
  set(PERFCONV_CUDA_ARCHS 80-real 86-real 89-real 90a-real 100-real 120)
endif()
set(CMAKE_CUDA_COMPILER "${PERFCONV_NVCC}" CACHE FILEPATH "")
set(CMAKE_CUDA_ARCHITECTURES ${PERFCONV_CUDA_ARCHS})
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
enable_language(CUDA)

string(REGEX MATCH "^[0-9]+" nvcc_major "${CMAKE_CUDA_COMPILER_VERSION}")
if(PERFCONV_TORCH_CUDA_MAJOR AND NOT nvcc_major EQUAL PERFCONV_TORCH_CUDA_MAJOR)
  message(WARNING
    "perfconv: nvcc is CUDA ${CMAKE_CUDA_COMPILER_VERSION}, torch was built for CUDA "
    "${PERFCONV_TORCH_CUDA_MAJOR}.x: the driver must support CUDA ${nvcc_major}.")
endif()

add_library(perfconv_cuda MODULE ${cuda_sources})
target_include_directories(perfconv_cuda PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(perfconv_cuda PRIVATE torch_stable)
target_compile_options(perfconv_cuda PRIVATE
  "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;--threads=0;-Xfatbin=-compress-all;-Xcompiler=-Wall,-Wextra>")
perfconv_target(perfconv_cuda)
perfconv_install(perfconv_cuda)
set(PERFCONV_CUDA_VERSION "${CMAKE_CUDA_COMPILER_VERSION}")
