# Stages of test_deep.sh, which sources this: what is published, built and tried as a stranger would.

# From another directory, so that what is imported is what is installed.
smoke() {  # interpreter, options
  local interpreter=$1 script=$PWD/tests/smoke.py checkout=$PWD/python
  shift
  (cd / && "$interpreter" "$script" --not-under "$checkout" "$@")
}

# As it is published; the architectures of a build from source are configured only: gpu_report compiles the kernels for each.
wheel() {
  venv wheel
  rm -rf "$build/wheel-dist"
  "$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$build/wheel-dist" \
    --config-settings=build-dir="$build/wheel-build" --config-settings=cmake.define.SIMTILE_CUDA_ARCHITECTURES=80 .
  pip_into wheel "$build"/wheel-dist/simtile-*.whl
  smoke "$PWD/$build/wheel/bin/python"
  "$build/wheel/bin/python" -m pytest -q -p no:cacheprovider tests/test_cuda_module.py
  if [[ ${SIMTILE_EXPECT_CUDA:-} == 1 ]]; then
    [[ $("$build/wheel/bin/python" -c "from simtile import _cuda; print(*_cuda.architectures())") == 80 ]]
    cmake "${python_build[@]}" -B "$build/cuda-all" | tee "$build/cuda-all.log"
    grep -q "the CUDA module is built by .* for 80 86-real 89-real 90-real 100-real 120$" "$build/cuda-all.log"
  fi
}

# The wheel with the tag of the C library that its symbols need, in an environment with nothing but NumPy.
manylinux() {
  rm -rf "$build/manylinux"
  "$python" -m auditwheel repair --wheel-dir "$build/manylinux" "$build"/wheel-dist/simtile-*.whl
  "$python" tools/check_packages.py "$build"/manylinux/simtile-*-manylinux_*.whl
  "$python" -m venv --clear "$build/clean"
  "$build/clean/bin/python" -m pip install --quiet --constraint build/constraints-dev.txt "$build"/manylinux/simtile-*.whl
  [[ $("$build/clean/bin/python" -m pip freeze | sed 's/[= ].*//' | xargs) == "numpy simtile" ]]
  smoke "$PWD/$build/clean/bin/python"
}

# Where there is no AVX: never an illegal instruction.
old_cpus() {
  local driver
  # x86-64 with SSE2 and little else: the kernels' own drivers.
  {
    echo "qemu-x86_64 -cpu qemu64 $build/release/tests/cpp/test_threads --no-fork"
    for driver in "${drivers[@]}"; do echo "qemu-x86_64 -cpu qemu64 $build/release/tests/cpp/$driver --threads 3"; done
  } | in_pairs
  # NumPy's wheels need x86-64-v2: Nehalem is the oldest CPU with that, and has no AVX.
  local smoke=$PWD/tests/smoke.py interpreter=$PWD/$build/clean/bin/python
  # OPENBLAS_CORETYPE would have NumPy run instructions of this machine's own CPU.
  (cd / && env -u OPENBLAS_CORETYPE qemu-x86_64 -cpu Nehalem "$interpreter" "$smoke" --level baseline)
}

# Every Python that is supported and found, oldest first; pyenv's need not be on PATH.
pythons() {
  local version found
  for version in 3.{10..19}; do
    for found in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
      if "$found" -c "" 2>/dev/null; then
        echo "$found"
        break
      fi
    done
  done
}

# A wheel built by pip alone, in an environment of its own with simtile, a NumPy and nothing else.
from_source() {  # environment, interpreter, source, NumPy
  local name=$1 interpreter=$2 source=$3 numpy=$4
  "$interpreter" -m venv --clear "$build/$name"
  interpreter=$PWD/$build/$name/bin/python
  rm -rf "$build/$name-dist"
  "$interpreter" -m pip wheel --quiet --no-deps --wheel-dir "$build/$name-dist" \
    --config-settings=build-dir="$PWD/$build/$name-build" --config-settings=cmake.define.SIMTILE_LEVELS=baseline \
    --config-settings=cmake.define.CMAKE_IGNORE_PATH="$no_nvcc" "$source"
  "$interpreter" -m pip install --quiet "$numpy" "$build/$name-dist"/simtile-*.whl
  "$interpreter" -c 'import sys, numpy; print("Python", sys.version.split()[0], "NumPy", numpy.__version__)'
  [[ $("$interpreter" -m pip freeze | sed 's/[= ].*//' | xargs) == "numpy simtile" ]]
  smoke "$interpreter" --level baseline
  "$interpreter" -c 'import importlib.util as i; assert i.find_spec("simtile._cuda") is None, "nvcc was found"'
}

# Of the tests those that need neither torch nor pybind11.
numpy_tests=(tests/test_{batches,contrastive_numpy,files,known_cases,mining_errors,multi_vector_file,pool,storage}.py)

# The sdist, and wheels from it in a folder that is no checkout, without nvcc and with a git that does not work: for the
# oldest Python with the oldest NumPy, and for the newest.
sdist() {
  rm -rf "$build/sdist"
  "$python" -c "from scikit_build_core.build import build_sdist; build_sdist('$build/sdist')"
  "$python" tools/check_packages.py "$build"/sdist/simtile-*.tar.gz

  local folder no_nvcc all
  folder=$(mktemp -d)
  trap "rm -rf '$folder'" EXIT
  mkdir "$folder/source" "$folder/bin"
  tar -xf "$build"/sdist/simtile-*.tar.gz -C "$folder/source" --strip-components 1
  printf '#!/bin/sh\necho "$@" >>"%s/git-calls"\nexit 1\n' "$folder" >"$folder/bin/git"
  chmod +x "$folder/bin/git"
  unset CUDACXX
  # CMake looks in /usr/local/bin too, whatever PATH says.
  no_nvcc=$(cd tools && "$python" -c 'import develop, os; print(*map(os.path.dirname, develop.cuda_compilers()), sep=";")')
  mapfile -t all < <(pythons)
  ((${#all[@]})) || all=("$python")
  PATH=$folder/bin:$PATH
  from_source oldest "${all[0]}" "$folder/source" "numpy==1.25.*"
  from_source newest "${all[-1]}" "$folder/source" numpy
  [[ ! -e $folder/git-calls ]] || { echo "the build called git:"; cat "$folder/git-calls"; return 1; }

  "$build/oldest/bin/python" -m pip install --quiet "numpy==1.25.*" pytest hypothesis ml_dtypes
  HYPOTHESIS_PROFILE=few "$build/oldest/bin/python" -m pytest -q -p no:cacheprovider \
    -m "not gpu and not slow and not deep" "${numpy_tests[@]}"
}

# Of the tests those that need torch or Triton, and of other packages none that needs a newer NumPy.
torch_tests=(tests/test_{batch_hard_triplet,cached_loss,contrastive_statistics,contrastive_torch,contrastive_triton,device,distributed}.py
  tests/test_{gathered,index_device,info_nce_autotune,info_nce_backends,info_nce_errors,info_nce_launches,info_nce_torch,matryoshka}.py
  tests/test_{maxsim_api,maxsim_errors,maxsim_launches,maxsim_routes,maxsim_torch,maxsim_triton,pairwise_triton,pool_torch,pool_triton}.py
  tests/test_{quantize_triton,ring,siglip,siglip_triton,triplet,uniformity,xtr}.py)

# The wheel beside the oldest torch and Triton that are supported, with the oldest NumPy that this Python has.
oldest_torch() {
  local interpreter=$PWD/$build/oldest-torch/bin/python
  trap "rm -rf '$build/oldest-torch'" EXIT # more than 5 GB
  "$python" -m venv --clear "$build/oldest-torch"
  "$interpreter" -m pip install --quiet --only-binary :all: torch==2.6.0 triton==3.2.0 "numpy==1.25.*; python_version < '3.12'" \
    "numpy==1.26.*; python_version == '3.12'" "numpy==2.1.*; python_version > '3.12'" \
    pytest pytest-xdist hypothesis ml_dtypes pybind11 "$build"/wheel-dist/simtile-*.whl
  "$interpreter" -c 'import numpy, torch, triton; print("torch", torch.__version__, "Triton", triton.__version__, "NumPy", numpy.__version__)'
  smoke "$interpreter"
  "$interpreter" tools/oldest_triton.py sm90
  # Backends in C++ are the same with every torch.
  HYPOTHESIS_PROFILE=few "$interpreter" -m pytest -q -n 2 -p no:cacheprovider -m "not gpu and not slow and not deep" \
    -k "not cpu[ and not cuda-host" "${torch_tests[@]}"
}

# Where nvcc is found and does not work it is as if there were none, but for SIMTILE_CUDA=ON.
without_cuda() {
  CUDACXX=/bin/false cmake "${python_build[@]}" -B "$build/cuda-auto" -DSIMTILE_CUDA=AUTO | tee "$build/cuda-auto.log"
  grep -q "the CUDA module is not built: /bin/false --version" "$build/cuda-auto.log"
  if CUDACXX=/bin/false cmake "${python_build[@]}" -B "$build/cuda-on" -DSIMTILE_CUDA=ON >"$build/cuda-on.log" 2>&1; then
    echo "SIMTILE_CUDA=ON was configured without a CUDA compiler"
    return 1
  fi
  grep -q "SIMTILE_CUDA=ON: /bin/false --version" "$build/cuda-on.log" || { cat "$build/cuda-on.log"; return 1; }
}
