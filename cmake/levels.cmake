# One OBJECT library per ISA level: csrc/level*.cpp compiled with that level's feature flags and
# with SIMTILE_ISA set to its name. Every level contains the ones before it.
# Feature flags, not -march=<cpu>: a CPU name would also turn on features that isa.cpp does not check.

# -O3 makes a third more code of kernels that say themselves what is unrolled, and none of them faster by more than a
# few percent, but for the three below.
set(kernel_flags -O2 -fno-math-errno -fno-trapping-math)
if(NOT SIMTILE_SANITIZE)
  set_source_files_properties(csrc/level.cpp csrc/level_pool.cpp csrc/level_quantize.cpp PROPERTIES COMPILE_OPTIONS
    $<$<NOT:$<CONFIG:Debug>>:-O3>)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND kernel_flags -fvect-cost-model=dynamic)  # -O3's: loops over any number of elements are vectors too
  # GCC 12 finds it in its own intrinsics, whose undefined inputs are meant.
  set(level_warnings -Wno-maybe-uninitialized)
endif()

set(SIMTILE_LEVELS "" CACHE STRING "ISA levels to build, e.g. baseline;avx2; empty: all. The first is always built")
set(SIMTILE_LEVEL_TARGETS "")
set(SIMTILE_EACH_LEVEL "")

# Scores are the same at every level, also at those without fused multiply-adds.
set_source_files_properties(csrc/level_topk.cpp csrc/level_maxsim_codes.cpp PROPERTIES COMPILE_OPTIONS -ffp-contract=off)

set(SIMTILE_KERNELS maxsim maxsim_backward maxsim_codes pairwise pool quantize siglip topk)  # csrc/level_*.cpp

# simtile_add_level(LEVEL FLAGS ... [LIKE LOWER BUT KERNELS ...]): LIKE a lower level, whose objects it takes, BUT for
# the kernels that use what it has more. Where that level is not built it has objects of its own.
# tests/test_levels.py finds kernels that are missing after BUT.
function(simtile_add_level level)
  if(SIMTILE_LEVELS AND SIMTILE_LEVEL_TARGETS AND NOT level IN_LIST SIMTILE_LEVELS)
    return()
  endif()
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "LIKE" "FLAGS;BUT")
  set(target simtile_${level})
  set(sources csrc/level.cpp)
  set(definitions SIMTILE_ISA=${level} SIMTILE_ISA_NAME="${level}")
  foreach(kernel IN LISTS SIMTILE_KERNELS)
    set(from ${level})
    if(TARGET simtile_${arg_LIKE} AND NOT kernel IN_LIST arg_BUT)
      set(from ${SIMTILE_${arg_LIKE}_${kernel}})
    else()
      list(APPEND sources csrc/level_${kernel}.cpp)
    endif()
    set(SIMTILE_${level}_${kernel} ${from} PARENT_SCOPE)
    list(APPEND definitions SIMTILE_FROM_${kernel}=${from})
  endforeach()
  add_library(${target} OBJECT ${sources})
  target_link_libraries(${target} PUBLIC simtile_options)
  target_compile_definitions(${target} PRIVATE ${definitions})
  target_compile_options(${target} PRIVATE $<$<NOT:$<CONFIG:Debug>>:${kernel_flags}> ${level_warnings} ${arg_FLAGS})
  if(SIMTILE_SANITIZE)
    target_compile_options(${target} PRIVATE -O1)  # with the checks in, more compiles for minutes
  endif()
  set(SIMTILE_LEVEL_TARGETS ${SIMTILE_LEVEL_TARGETS} ${target} PARENT_SCOPE)
  set(SIMTILE_EACH_LEVEL "${SIMTILE_EACH_LEVEL} SIMTILE_LEVEL(${level})" PARENT_SCOPE)
endfunction()

# On a Mac a compiler makes code for another processor when it is asked to; for two at once there are no levels.
set(processor ${CMAKE_SYSTEM_PROCESSOR})
if(APPLE AND CMAKE_OSX_ARCHITECTURES)
  set(processor "${CMAKE_OSX_ARCHITECTURES}")
endif()
if(processor MATCHES "^(x86_64|AMD64)$")
  set(avx2 -mavx2 -mfma -mf16c -mpopcnt)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512cd)
  set(vnni ${avx512} -mavx512vnni -mavx512vpopcntdq -mavx512bitalg)
  set(bf16 ${vnni} -mavx512bf16)
  simtile_add_level(baseline)
  simtile_add_level(avx2 FLAGS ${avx2})
  simtile_add_level(avx512 FLAGS ${avx512})
  simtile_add_level(avx512_vnni LIKE avx512 BUT maxsim_codes topk FLAGS ${vnni})
  simtile_add_level(avx512_bf16 LIKE avx512_vnni BUT maxsim pairwise siglip FLAGS ${bf16})
  simtile_add_level(avx512_amx LIKE avx512_bf16 BUT maxsim maxsim_codes pairwise siglip topk
    FLAGS ${bf16} -mamx-tile -mamx-bf16 -mamx-int8)
elseif(processor MATCHES "^(aarch64|arm64)$")
  simtile_add_level(neon)
  simtile_add_level(neon_dot LIKE neon BUT maxsim_codes topk FLAGS -march=armv8.2-a+dotprod+fp16)
  simtile_add_level(neon_mm LIKE neon_dot BUT maxsim pairwise siglip FLAGS -march=armv8.2-a+dotprod+fp16+i8mm+bf16)
else()
  message(FATAL_ERROR "simtile has no kernels for ${processor}: x86-64 or aarch64 is needed")
endif()
