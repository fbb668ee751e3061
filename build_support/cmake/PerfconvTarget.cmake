# perfconv_target(name): include path, warnings, sanitizers, and no path of the building machine.
# perfconv_install(name): into the Python package, stripped, without a run path.

set(warning_flags -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor)
if(PERFCONV_WERROR)
  list(APPEND warning_flags -Werror)
endif()

# __FILE__ must not put paths of the building machine into the libraries.
set(path_flags -ffile-prefix-map=${CMAKE_SOURCE_DIR}/=
               -ffile-prefix-map=${PERFCONV_TORCH_DIR}/include/=)
list(JOIN path_flags "," cuda_path_flags)

set(sanitize_flags "")
if(PERFCONV_SANITIZE)
  set(sanitize_flags -fsanitize=${PERFCONV_SANITIZE} -fno-omit-frame-pointer -g
                     -fno-sanitize-recover=undefined)
else()
  set(strip_flags -Wl,--strip-all)  # of symbols that nothing loads by: 0.2 MB of the wheel
endif()

function(perfconv_target name)
  target_include_directories(${name} PRIVATE "${CMAKE_SOURCE_DIR}/csrc")
  target_compile_options(${name} PRIVATE
    "$<$<COMPILE_LANGUAGE:CXX>:${path_flags};${warning_flags};${sanitize_flags}>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${cuda_path_flags}>")
endfunction()

function(perfconv_install name)
  target_link_options(${name} PRIVATE ${sanitize_flags} ${strip_flags})
  # torch is loaded before these libraries are: no run path is baked in.
  set_target_properties(${name} PROPERTIES SKIP_BUILD_RPATH ON BUILD_RPATH "" INSTALL_RPATH "")
  install(TARGETS ${name} LIBRARY DESTINATION perfconv)
endfunction()
