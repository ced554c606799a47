#!/usr/bin/env bash
# The deep tier: sanitizers, every ISA level, symbols, the aarch64 levels under emulation, the wheel
# on an emulated CPU with nothing newer than NumPy itself needs. make test-deep installs first.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
build=build/deep
source tools/deep_packages.sh
mkdir -p "$build"

missing=()
for tool in cmake ninja g++ qemu-x86_64 qemu-aarch64 aarch64-linux-gnu-g++; do
  command -v "$tool" >/dev/null || PATH=$PWD/.venv/bin:$PATH command -v "$tool" >/dev/null || missing+=("$tool")
done
if ((${#missing[@]})); then
  echo "test-deep: not found: ${missing[*]}"
  echo "Debian, Ubuntu: apt install cmake ninja-build g++ qemu-user g++-aarch64-linux-gnu libc6-dev-arm64-cross"
  exit 1
fi
PATH=$PWD/.venv/bin:$PATH

kernel_tests=(tests/test_info_nce.py tests/test_contrastive.py tests/test_maxsim.py tests/test_maxsim_backward.py tests/test_maxsim_codes.py
  tests/test_maxsim_topk.py tests/test_quantize.py tests/test_batch_hard_triplet.py tests/test_uniformity.py
  tests/test_siglip.py tests/test_pool.py)

# Those of kernels that multiply bytes or bfloat16.
dot_tests=(tests/test_maxsim.py tests/test_maxsim_codes.py tests/test_info_nce.py)

# A build with Python outside pip.
python_build=(-G Ninja -S . -DPython_EXECUTABLE="$python" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)")

drivers=(test_info_nce test_maxsim test_maxsim_backward test_maxsim_codes test_pool test_quantize test_siglip test_topk)

# The levels that run here.
levels=($("$python" -c 'import simtile; print(*simtile.cpu_info()["detected"])'))
# Builds with sanitizers have those of another vector width, and no levels that do not run: they find nothing.
sanitized_levels=()
for level in "${levels[@]}"; do
  case $level in
    avx2 | neon | "${levels[0]}" | "${levels[-1]}") sanitized_levels+=("$level") ;;
  esac
done

# pytest runs on two workers (-n 2): most tests are one thread's work, compiling mutants or the oracle's.
names=() seconds=() results=()
stage() {
  local name=$1 start=$SECONDS result=passed
  shift
  printf '\n== %s\n' "$name"
  # In a shell of its own: set -e holds inside, and a failure does not stop the other stages.
  set +e
  (
    set -e
    "$@"
  )
  (($? == 0)) || result=FAILED
  set -e
  names+=("$name") seconds+=($((SECONDS - start))) results+=("$result")
}

# Commands, one a line, two at a time: most use one core. What a command prints comes whole, at its end.
in_pairs() {
  xargs -P 2 -I{} bash -c 'output=$({} 2>&1); result=$?; echo "$output"; ((result == 0)) || { echo "FAILED ($result): {}"; exit 1; }'
}

configure() {  # preset, directory, options
  local preset=$1 directory=$2
  shift 2
  cmake --preset "$preset" -B "$build/$directory" "$@" >"$build/$directory.log" || { cat "$build/$directory.log"; return 1; }
  cmake --build "$build/$directory" >>"$build/$directory.log" || { tail -n 60 "$build/$directory.log"; return 1; }
}

# A virtual environment of its own that sees the packages of .venv, but not its simtile.
venv() {
  local directory=$build/$1
  "$python" -m venv --clear --without-pip "$directory"
  "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$("$directory/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/of_dot_venv.pth"
}

pip_into() {
  local directory=$build/$1
  shift
  "$python" -m pip --python "$directory/bin/python" install --quiet --no-deps --no-index "$@"
}

symbols() {
  configure release release
  # Unoptimised, where inline functions are emitted. Objects alone, and as all levels are the same sources: the lowest, the
  # highest that runs here, and the highest there is.
  configure debug debug -DSIMTILE_BUILD_CPP_TESTS=OFF -DSIMTILE_LEVELS="${levels[0]};${levels[-1]};avx512_amx"
  "$python" tools/check_symbols.py "$build/release" "$build/debug"
}

run_drivers() {
  local driver
  for driver in test_threads "${drivers[@]}"; do echo "$build/release/tests/cpp/$driver"; done | in_pairs
}

# The quick tests of some files. Python's own allocations look like leaks, and a test asks for more
# memory than there is. libstdc++ is there because the runtime wants to see it at start. capture=sys:
# a report reaches the terminal although it ends the process.
with_libasan() {
  local interpreter=$1
  shift
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 HYPOTHESIS_PROFILE=fewest \
    LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so.6)" \
    "$interpreter" -m pytest -q -n 2 --capture=sys -p no:cacheprovider -m "not gpu and not slow and not deep" "$@"
}

address_sanitizer() {
  venv sanitized
  "$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$build/sanitized-dist" \
    --config-settings=build-dir="$build/sanitized-build" \
    --config-settings=cmake.define.SIMTILE_BUILD_CPP_TESTS=ON \
    --config-settings=cmake.define.SIMTILE_LEVELS="$(IFS=';'; echo "${sanitized_levels[*]}")" \
    --config-settings=cmake.define.SIMTILE_SANITIZE=address,undefined .
  local driver
  for driver in test_threads "${drivers[@]}"; do echo "$build/sanitized-build/tests/cpp/$driver"; done | in_pairs
  pip_into sanitized --force-reinstall "$build"/sanitized-dist/simtile-*.whl
  with_libasan "$build/sanitized/bin/python" "${kernel_tests[@]}" tests/test_info_nce_errors.py tests/test_threads.py
  with_libasan "$build/sanitized/bin/python" tests/test_info_nce_backends.py tests/test_search_backends.py -k "cpu["
}

cuda_on_host() {
  SIMTILE_CUDA_HOST_SANITIZE=1 with_libasan "$python" tests/test_cuda_host.py tests/test_topk.py \
    tests/test_info_nce_cuda_host.py tests/test_info_nce_cuda.py
}

# Threads are shared out the same way at every level: the lowest and the highest.
thread_sanitizer() {
  configure release tsan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSIMTILE_SANITIZE=thread -DSIMTILE_LEVELS="${levels[-1]}"
  # -R: GCC 12's runtime does not know the wider address randomisation of newer kernels.
  local driver
  for driver in test_threads "${drivers[@]}"; do
    echo "TSAN_OPTIONS=die_after_fork=0 setarch -R $build/tsan/tests/cpp/$driver --threads 3"
  done | in_pairs
}

# make test has run the highest. Levels of another vector width are other code throughout; those of the same width differ
# in what multiplies bytes and bfloat16, and the C++ drivers have run all of each.
every_level() {
  local level failed=0 widest=${levels[-1]}
  for level in "${levels[@]:0:${#levels[@]}-1}"; do
    echo "SIMTILE_ISA=$level"
    if [[ ${level%%_*} == "${widest%%_*}" ]]; then
      at_level "$level" "${dot_tests[@]}" || failed=1
    else
      at_level "$level" "${kernel_tests[@]}" || failed=1
    fi
  done
  return "$failed"
}

at_level() {
  local level=$1
  shift
  SIMTILE_ISA=$level HYPOTHESIS_PROFILE=few "$python" -m pytest -q -n 2 -m "not gpu and not deep" "$@"
}

deep_tests() {
  "$python" -m pytest -q -n 2 -m "deep and not gpu" --durations=20
}

# Whole numbers, and what is computed like them, have the same bits at every level of both processors.
same_digests() {  # driver
  "$build/release/tests/cpp/$1" --threads 3 >"$build/release-$1.out"
  local found expected=$((3 + ${#levels[@]}))
  found=$(grep -h "^digest " "$build/release-$1.out" "$build/aarch64-$1.out")
  printf '%s\n%s\n' "$1" "$found"
  [[ $(wc -l <<<"$found") == "$expected" ]] || { echo "$1: expected the digests of $expected levels"; return 1; }
  [[ $(cut -d " " -f 3- <<<"$found" | sort -u | wc -l) == 1 ]] || { echo "$1: digests differ"; return 1; }
}

aarch64() {
  configure aarch64 aarch64
  "$python" tools/check_symbols.py --prefix aarch64-linux-gnu- "$build/aarch64"
  local emulate="qemu-aarch64 -L /usr/aarch64-linux-gnu"
  $emulate "$build/aarch64/tests/cpp/test_threads" --no-fork
  local driver level
  for driver in "${drivers[@]}"; do
    echo "$emulate $build/aarch64/tests/cpp/$driver --threads 3 >$build/aarch64-$driver.out"
  done | in_pairs
  for driver in "${drivers[@]}"; do
    for level in neon neon_dot neon_mm; do
      grep -qx "$level" "$build/aarch64-$driver.out" || { echo "$driver: level $level was not run"; return 1; }
    done
  done
  for driver in test_maxsim_codes test_quantize test_topk; do same_digests "$driver"; done
}

# Where .ci/run found nvcc, the CUDA half may not be left out.
gpu_report() {
  local require=triton
  [[ ${SIMTILE_EXPECT_CUDA:-} != 1 ]] || require=triton,cuda
  "$python" tools/gpu_report.py --check --require "$require"
}

stage "symbols of every ISA object, Release and Debug" symbols
stage "C++ drivers" run_drivers
stage "drivers and Python tests with AddressSanitizer and UBSan" address_sanitizer
stage "C++ drivers with ThreadSanitizer" thread_sanitizer
stage "Python tests of the kernels at every other ISA level" every_level
stage "aarch64 levels under qemu, and their bits against those of this machine" aarch64
stage "wheel" wheel
stage "manylinux wheel, alone with NumPy" manylinux
stage "CPUs without AVX under qemu" old_cpus
stage "sdist: oldest and newest Python, no git, no nvcc" sdist
stage "oldest torch and Triton" oldest_torch
stage "no CUDA compiler, or one that does not work" without_cuda
stage "CUDA kernels on the host with AddressSanitizer and UBSan" cuda_on_host
stage "GPU kernels compiled, against docs/gpu-report.md" gpu_report
stage "tests marked deep" deep_tests

echo
failed=0
for i in "${!names[@]}"; do
  printf '%-72s %5d s  %s\n' "${names[i]}" "${seconds[i]}" "${results[i]}"
  [[ ${results[i]} == passed ]] || failed=$((failed + 1))
done
echo "test-deep: $((${#names[@]} - failed)) stages passed, $failed failed"
((failed == 0))
