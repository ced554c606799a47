# The CUDA module simtile._cuda, which imports without a driver and calls nothing of libtorch.
#
# SIMTILE_CUDA=AUTO  built where a CUDA compiler that works is found; configuring says which, or why not
# SIMTILE_CUDA=ON    an error where none is found
# SIMTILE_CUDA=OFF   never built
#
# The compiler is CMAKE_CUDA_COMPILER, $CUDACXX, nvcc on PATH, /usr/local/cuda/bin/nvcc, or that of the
# PyPI packages nvidia-cuda-* beside the Python that builds; the first of these that exists.

set(SIMTILE_CUDA AUTO CACHE STRING "Build the CUDA module: AUTO, ON or OFF")
set_property(CACHE SIMTILE_CUDA PROPERTY STRINGS AUTO ON OFF)
set(SIMTILE_CUDA_ARCHITECTURES all CACHE STRING "As CMAKE_CUDA_ARCHITECTURES; all: every architecture that is supported")

set(cuda_oldest 12.8)  # the first that compiles for sm_100 and sm_120

# Machine code for each architecture of which cards exist; it also runs on those of the same major version with a higher
# minor one: 8.7, 10.3, 12.1. PTX of 8.0 is for those in between (11.0), PTX of 12.0 for those to come. The kernels use
# nothing newer than 8.0, so no card runs other code for being served by PTX.
set(cuda_all 80 86-real 89-real 90-real 100-real 120)

# Sets `nvcc` to a compiler, or `problem` to why there is none.
macro(simtile_find_nvcc)
  set(problem "")
  set(nvcc "")
  if(CMAKE_CUDA_COMPILER)
    set(nvcc ${CMAKE_CUDA_COMPILER})
  elseif(DEFINED ENV{CUDACXX})
    set(nvcc $ENV{CUDACXX})
  else()
    file(GLOB wheels "${Python_SITELIB}/nvidia/cu*/bin")
    find_program(found_nvcc nvcc PATHS /usr/local/cuda/bin ${wheels} NO_CACHE)
    if(found_nvcc)
      set(nvcc ${found_nvcc})
    endif()
  endif()
  if(NOT nvcc)
    set(problem "no nvcc on PATH, in /usr/local/cuda/bin or in ${Python_SITELIB}/nvidia")
  else()
    execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE version ERROR_QUIET RESULT_VARIABLE failed)
    if(version MATCHES "release ([0-9]+\\.[0-9]+)")
      set(version ${CMAKE_MATCH_1})
    endif()
    if(failed)
      set(problem "${nvcc} --version: ${failed}")
    elseif(version VERSION_LESS cuda_oldest)
      set(problem "${nvcc} is of CUDA ${version}, ${cuda_oldest} or newer is needed")
    endif()
  endif()
endmacro()

# Whether CMake can make a program with it; in a project of its own, because enable_language ends with a fatal error.
macro(simtile_try_nvcc)
  include(CheckLanguage)
  unset(CMAKE_CUDA_COMPILER CACHE)
  unset(CMAKE_CUDA_COMPILER)
  if(NOT CMAKE_CUDA_HOST_COMPILER)
    set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
  endif()
  set(ENV{CUDACXX} ${nvcc})
  set(ENV{CUDAHOSTCXX} ${CMAKE_CUDA_HOST_COMPILER})
  set(ENV{CUDAARCHS} 80)
  # nvcc looks for its libraries in lib64, where the PyPI packages have none.
  get_filename_component(root ${nvcc} DIRECTORY)
  get_filename_component(root ${root} DIRECTORY)
  if(EXISTS ${root}/lib/libcudart_static.a AND NOT EXISTS ${root}/lib64)
    set(ENV{CUDAFLAGS} "$ENV{CUDAFLAGS} -L${root}/lib")
  endif()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)  # else the next run would not look
    set(problem "${nvcc} does not make a program with ${CMAKE_CUDA_HOST_COMPILER}; see CMakeError.log or CMakeConfigureLog.yaml in ${CMAKE_BINARY_DIR}/CMakeFiles")
  endif()
endmacro()

macro(simtile_decide_cuda)
  set(problem "")
  if(SIMTILE_CUDA STREQUAL "OFF")
    set(problem "SIMTILE_CUDA=OFF")
  elseif(SIMTILE_CUDA STREQUAL "AUTO" AND SIMTILE_SANITIZE)
    set(problem "this build has sanitizers")
  elseif(SIMTILE_CUDA MATCHES "^(AUTO|ON)$")
    simtile_find_nvcc()
    if(NOT problem)
      simtile_try_nvcc()
    endif()
    if(problem AND SIMTILE_CUDA STREQUAL "ON")
      message(FATAL_ERROR "SIMTILE_CUDA=ON: ${problem}")
    endif()
  else()
    message(FATAL_ERROR "SIMTILE_CUDA: found ${SIMTILE_CUDA}, expected AUTO, ON or OFF")
  endif()
endmacro()

simtile_decide_cuda()
if(problem)
  message(STATUS "simtile: the CUDA module is not built: ${problem}")
  return()
endif()

if(SIMTILE_CUDA_ARCHITECTURES STREQUAL "all")
  set(CMAKE_CUDA_ARCHITECTURES ${cuda_all})
else()
  set(CMAKE_CUDA_ARCHITECTURES ${SIMTILE_CUDA_ARCHITECTURES})
endif()
list(JOIN CMAKE_CUDA_ARCHITECTURES " " architectures)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # its only other library is the driver's, which it opens when it is called
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
enable_language(CUDA)
message(STATUS "simtile: the CUDA module is built by ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION} "
               "for ${architectures}")

# Apart from the module: pybind11's headers and link-time optimisation are not for nvcc.
add_library(simtile_cuda OBJECT csrc/cuda/info_nce.cu csrc/cuda/maxsim.cu csrc/cuda/topk.cu)
target_include_directories(simtile_cuda PRIVATE kernels csrc)
target_compile_options(simtile_cuda PRIVATE -Xcompiler=-Wall,-Wextra -Werror=all-warnings)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
  # A third of the size. Drivers of before 12.4 cannot unpack it; those of 13.0 and newer all can.
  target_compile_options(simtile_cuda PRIVATE --compress-mode=size)
endif()

pybind11_add_module(_cuda MODULE NO_EXTRAS
  csrc/cuda/module.cpp csrc/cuda/bind_info_nce.cpp csrc/cuda/bind_maxsim.cpp csrc/cuda/bind_maxsim_topk.cpp
  csrc/cuda/bind_topk.cpp csrc/cuda/runtime.cpp)
target_compile_definitions(_cuda PRIVATE
  SIMTILE_VERSION="${PROJECT_VERSION}" SIMTILE_CUDA_ARCHITECTURES="${architectures}")
target_include_directories(_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(_cuda PRIVATE simtile_options simtile_cuda)
# The linker of the host, with the static runtime's libraries.
set_target_properties(_cuda PROPERTIES LINKER_LANGUAGE CUDA)
install(TARGETS _cuda DESTINATION simtile COMPONENT python)
