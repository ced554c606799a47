#!/usr/bin/env bash
# Every check that needs no test run; with --fix, rewrites what can be rewritten first.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
mapfile -t cpp < <(git ls-files --cached --others --exclude-standard '*.cpp' '*.hpp' '*.cu' '*.cuh')

if [[ "${1:-}" == --fix ]]; then
  "$bin/ruff" check --quiet --fix-only .
  "$bin/ruff" format --quiet .
  "$bin/clang-format" -i "${cpp[@]}"
fi

failed=()
check() {
  local name=$1
  shift
  printf '%s\n' "-- $name"
  "$@" || failed+=("$name")
}

check "ruff" "$bin/ruff" check --quiet .
check "ruff format" "$bin/ruff" format --quiet --check .
check "clang-format" "$bin/clang-format" --dry-run --Werror "${cpp[@]}"
check "mypy" "$bin/mypy"
check "stubs" "$bin/python" tools/stubs.py --check
check "symbols" "$bin/python" tools/check_symbols.py build/editable
check "clang-tidy" "$bin/python" tools/clang_tidy.py

if ((${#failed[@]})); then
  printf 'lint: failed: %s\n' "${failed[*]}"
  exit 1
fi
echo "lint: clean"
