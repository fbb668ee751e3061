# perfconv_cuda: the CUDA kernels, built when nvcc is found and this tree has csrc/cuda.
# With PERFCONV_EMULATED the same kernel objects, with their PTX kept readable, are also linked into
# the emulated library of the tests (tests/emulator).
# Sets PERFCONV_CUDA_VERSION (empty without the library) and PERFCONV_CUDA_ARCHS.

set(PERFCONV_CUDA_VERSION "")
option(PERFCONV_EMULATED "also build, with CUDA, the emulated library of the tests" OFF)
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cpp)
list(REMOVE_ITEM cuda_sources "${CMAKE_SOURCE_DIR}/csrc/cuda/planner.cpp")  # in perfconv_host
file(GLOB cuda_kernels CONFIGURE_DEPENDS csrc/cuda/kernels/*.cu)
find_program(PERFCONV_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH
             PATHS /usr/local/cuda PATH_SUFFIXES bin)

set(obstacle "")
if(PERFCONV_CUDA STREQUAL "OFF")
  set(obstacle "PERFCONV_CUDA is off")
elseif(NOT cuda_kernels)
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
  set(PERFCONV_CUDA_ARCHS 80-real 86-real 89-real 90a-real 100 120-real)
endif()
foreach(arch IN LISTS PERFCONV_CUDA_ARCHS)
  string(REGEX MATCH "^[0-9]+" capability "${arch}")
  if(capability LESS 80)
    message(FATAL_ERROR
      "perfconv: the CUDA kernels need compute capability 8.0 or newer (asynchronous copies to "
      "shared memory), got ${arch}: leave it out of TORCH_CUDA_ARCH_LIST, or set PERFCONV_CUDA=0.")
  endif()
endforeach()
set(kernel_flags --expt-relaxed-constexpr --threads=0 -Xcompiler=-Wall,-Wextra)
if(PERFCONV_WERROR)
  list(APPEND kernel_flags -Werror=all-warnings -Xcompiler=-Werror)
endif()
file(GLOB emulator CONFIGURE_DEPENDS tests/emulator/runtime/*.cpp)
if(PERFCONV_EMULATED AND NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  message(STATUS "perfconv: the emulator of the tests runs on x86-64 only; building without it")
  set(PERFCONV_EMULATED OFF)
elseif(PERFCONV_EMULATED AND NOT emulator)
  message(STATUS "perfconv: this tree has no tests/emulator; building without it")
  set(PERFCONV_EMULATED OFF)
endif()
if(PERFCONV_EMULATED)
  list(PREPEND PERFCONV_CUDA_ARCHS 80-virtual)  # the PTX that the emulator runs
  list(REMOVE_DUPLICATES PERFCONV_CUDA_ARCHS)
  list(APPEND kernel_flags -lineinfo -Xfatbin=-compress-mode=none)
else()
  list(APPEND kernel_flags -Xfatbin=-compress-mode=size)  # a quarter less than -compress-all
endif()
# Architectures share PTX, so that nvcc's front end runs three times instead of six: that of 80, which
# the emulator executes, up to 89; that of 100 from there on; one with a letter (90a), which may use
# instructions of its own, has its own.
foreach(arch IN LISTS PERFCONV_CUDA_ARCHS)
  string(REGEX REPLACE "-.*" "" name "${arch}")
  if(name MATCHES "[af]$")
    set(ptx "${name}")
  elseif(name LESS 100)
    set(ptx 80)
  else()
    set(ptx 100)
  endif()
  list(APPEND ptx_versions "${ptx}")
  if(NOT arch MATCHES "-virtual$")
    list(APPEND codes_${ptx} "sm_${name}")
  endif()
  if(NOT arch MATCHES "-real$")
    list(APPEND codes_${ptx} "compute_${ptx}")
  endif()
endforeach()
list(REMOVE_DUPLICATES ptx_versions)
set(arch_flags "")
foreach(ptx IN LISTS ptx_versions)
  list(REMOVE_DUPLICATES codes_${ptx})
  list(JOIN codes_${ptx} "," codes)
  list(APPEND arch_flags "--generate-code=arch=compute_${ptx},code=[${codes}]")
endforeach()
# Sources whose names end in _sm90a use instructions that only 90a has, and are built for it alone,
# whatever else is built: their launchers are always there. The emulator executes their PTX.
set(sm90a_code "sm_90a")
if(PERFCONV_EMULATED)
  set(sm90a_code "sm_90a,compute_90a")
  if(NOT "sm_90a" IN_LIST codes_90a)
    set(sm90a_code "compute_90a")
  endif()
endif()
set(sm90a_flags "--generate-code=arch=compute_90a,code=[${sm90a_code}]")
set(CMAKE_CUDA_COMPILER "${PERFCONV_NVCC}" CACHE FILEPATH "")
set(CMAKE_CUDA_ARCHITECTURES OFF)  # named in kernel_flags
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_STANDARD 17)  # CMake 3.22 to 3.25 know no newer one for nvcc 13
enable_language(CUDA)

string(REGEX MATCH "^[0-9]+" nvcc_major "${CMAKE_CUDA_COMPILER_VERSION}")
if(PERFCONV_TORCH_CUDA_MAJOR AND NOT nvcc_major EQUAL PERFCONV_TORCH_CUDA_MAJOR)
  message(WARNING
    "perfconv: nvcc is CUDA ${CMAKE_CUDA_COMPILER_VERSION}, torch was built for CUDA "
    "${PERFCONV_TORCH_CUDA_MAJOR}.x: the driver must support CUDA ${nvcc_major}.")
endif()

set(sm90a_kernels ${cuda_kernels})
list(FILTER sm90a_kernels INCLUDE REGEX "_sm90a\\.cu$")
list(REMOVE_ITEM cuda_kernels ${sm90a_kernels})
add_library(perfconv_cuda_kernels OBJECT ${cuda_kernels})
target_compile_options(perfconv_cuda_kernels PRIVATE ${kernel_flags} ${arch_flags})
perfconv_target(perfconv_cuda_kernels)
add_library(perfconv_cuda_kernels_sm90a OBJECT ${sm90a_kernels})
target_compile_options(perfconv_cuda_kernels_sm90a PRIVATE ${kernel_flags} ${sm90a_flags})
perfconv_target(perfconv_cuda_kernels_sm90a)

add_library(perfconv_cuda MODULE ${cuda_sources})
target_include_directories(perfconv_cuda PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(perfconv_cuda PRIVATE torch_stable perfconv_cuda_kernels
                                             perfconv_cuda_kernels_sm90a perfconv_host)
target_link_options(perfconv_cuda PRIVATE -Wl,-z,defs)
set_target_properties(perfconv_cuda PROPERTIES LINKER_LANGUAGE CUDA)  # the CUDA runtime, static
perfconv_target(perfconv_cuda)
perfconv_install(perfconv_cuda)
set(PERFCONV_CUDA_VERSION "${CMAKE_CUDA_COMPILER_VERSION}")

if(PERFCONV_EMULATED)
  add_subdirectory(tests/emulator)
endif()
