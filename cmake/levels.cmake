# One OBJECT library per ISA level: csrc/level*.cpp compiled with that level's feature flags and
# with SIMTILE_ISA set to its name. Every level contains the ones before it.
# Feature flags, not -march=<cpu>: a CPU name would also turn on features that isa.cpp does not check.

set(kernel_flags -O3 -fno-math-errno -fno-trapping-math)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC 12 finds it in its own intrinsics, whose undefined inputs are meant.
  set(level_warnings -Wno-maybe-uninitialized)
endif()

set(SIMTILE_LEVELS "" CACHE STRING "ISA levels to build, e.g. baseline;avx2; empty: all. The first is always built")
set(SIMTILE_LEVEL_TARGETS "")
set(SIMTILE_EACH_LEVEL "")

# Scores are the same at every level, also at those without fused multiply-adds.
set_source_files_properties(csrc/level_topk.cpp csrc/level_maxsim_codes.cpp PROPERTIES COMPILE_OPTIONS -ffp-contract=off)

function(simtile_add_level level)
  if(SIMTILE_LEVELS AND SIMTILE_LEVEL_TARGETS AND NOT level IN_LIST SIMTILE_LEVELS)
    return()
  endif()
  set(target simtile_${level})
  add_library(${target} OBJECT csrc/level.cpp csrc/level_maxsim.cpp csrc/level_maxsim_backward.cpp
    csrc/level_maxsim_codes.cpp csrc/level_pairwise.cpp csrc/level_pool.cpp csrc/level_quantize.cpp
    csrc/level_siglip.cpp csrc/level_topk.cpp)
  target_link_libraries(${target} PUBLIC simtile_options)
  target_compile_definitions(${target} PRIVATE SIMTILE_ISA=${level} SIMTILE_ISA_NAME="${level}")
  target_compile_options(${target} PRIVATE $<$<NOT:$<CONFIG:Debug>>:${kernel_flags}> ${level_warnings} ${ARGN})
  if(SIMTILE_SANITIZE)
    target_compile_options(${target} PRIVATE -O1)  # with the checks in, -O3 compiles for minutes
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
  simtile_add_level(avx2 ${avx2})
  simtile_add_level(avx512 ${avx512})
  simtile_add_level(avx512_vnni ${vnni})
  simtile_add_level(avx512_bf16 ${bf16})
  simtile_add_level(avx512_amx ${bf16} -mamx-tile -mamx-bf16 -mamx-int8)
elseif(processor MATCHES "^(aarch64|arm64)$")
  simtile_add_level(neon)
  simtile_add_level(neon_dot -march=armv8.2-a+dotprod+fp16)
  simtile_add_level(neon_mm -march=armv8.2-a+dotprod+fp16+i8mm+bf16)
else()
  message(FATAL_ERROR "simtile has no kernels for ${processor}: x86-64 or aarch64 is needed")
endif()
