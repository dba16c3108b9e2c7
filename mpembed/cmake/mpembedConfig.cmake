# find_package(mpembed CONFIG [COMPONENTS cuda]) makes these targets:
#
#   mpembed::headers  the arithmetic of include/mpembed, header only, for C++17 and CUDA
#   mpembed::mpembed  the shared library behind mpembed/api.h, a plain C interface
#   mpembed::cuda     the CUDA backend behind the same header, where the package has it
#
# The package has no absolute path in it and may be moved.
get_filename_component(_mpembed_package "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)

# Beside the libraries in an installed package, beside the package in a source tree.
set(_mpembed_include "${_mpembed_package}/include")
if(NOT EXISTS "${_mpembed_include}/mpembed/api.h")
  get_filename_component(_mpembed_include "${_mpembed_package}/../include" ABSOLUTE)
endif()

function(_mpembed_library target name)
  set(file "${_mpembed_package}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}${name}${CMAKE_SHARED_LIBRARY_SUFFIX}")
  if(NOT EXISTS "${file}" OR TARGET mpembed::${target})
    return()
  endif()
  get_filename_component(soname "${file}" NAME)
  add_library(mpembed::${target} SHARED IMPORTED)
  set_target_properties(mpembed::${target} PROPERTIES
    IMPORTED_LOCATION "${file}"
    IMPORTED_SONAME "${soname}"
    INTERFACE_INCLUDE_DIRECTORIES "${_mpembed_include}")
endfunction()

if(NOT TARGET mpembed::headers)
  add_library(mpembed::headers INTERFACE IMPORTED)
  # One answer everywhere: no fused multiply-add but those that are written out.
  set(_mpembed_gnu "$<OR:$<CXX_COMPILER_ID:GNU>,$<CXX_COMPILER_ID:Clang>,$<CXX_COMPILER_ID:AppleClang>>")
  set_target_properties(mpembed::headers PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${_mpembed_include}"
    INTERFACE_COMPILE_FEATURES cxx_std_17
    INTERFACE_COMPILE_OPTIONS
      "$<$<AND:$<COMPILE_LANGUAGE:CXX>,${_mpembed_gnu}>:-ffp-contract=off>;$<$<COMPILE_LANGUAGE:CUDA>:-fmad=false>;$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-ffp-contract=off>")
endif()
_mpembed_library(mpembed mpembed)
_mpembed_library(cuda mpembed_cuda)
if(TARGET mpembed::cuda)
  set_property(TARGET mpembed::cuda PROPERTY INTERFACE_LINK_LIBRARIES mpembed::mpembed)
  set(mpembed_cuda_FOUND TRUE)
endif()

if(NOT TARGET mpembed::mpembed)
  set(mpembed_FOUND FALSE)
  set(mpembed_NOT_FOUND_MESSAGE "${_mpembed_package}/lib has no library: the package was not built")
endif()
foreach(_mpembed_component IN LISTS mpembed_FIND_COMPONENTS)
  if(mpembed_FIND_REQUIRED_${_mpembed_component} AND NOT mpembed_${_mpembed_component}_FOUND)
    set(mpembed_FOUND FALSE)
    set(mpembed_NOT_FOUND_MESSAGE "this build of mpembed has no component ${_mpembed_component}")
  endif()
endforeach()
