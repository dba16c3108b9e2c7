#!/usr/bin/env bash
# Builds the package with sanitizers, in build/sanitize, and runs tests of the CPU on it.
#
#   bash .ci/sanitize.sh address,undefined|thread [--all] [--record] [PYTEST_ARGUMENT...]
#
# The tests are those of tests/sanitize.txt, or with --all many more of those that need neither
# PyTorch nor a compiler; with pytest's arguments, what these name. Then tests/faults/soak.py runs
# for SOAK seconds (60; 0: not at all). --record writes the result into CONTRIBUTING.md.
#
# PYTHON names a Python that has what building and testing need; without it, an environment is made.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sanitizers=${1:?which sanitizers: address,undefined or thread}
shift
tests=() all= record=
for word in "$@"; do
  case $word in
    --all) all=1 ;;
    --record) record=1 ;;
    *) tests+=("$word") ;;
  esac
done
if [[ ${#tests[@]} == 0 && -n $all ]]; then
  tests=(tests/{arguments,bindings,collection,ops} tests/fuzz/test_fuzz{,_calls,_ops}.py
    tests/kernels/test_{float_environment,formats,range,rounding}.py)
elif [[ ${#tests[@]} == 0 ]]; then
  tests=(@tests/sanitize.txt)
  export MPEMBED_FUZZ_EXAMPLES=${MPEMBED_FUZZ_EXAMPLES:-300}
fi
base=$PWD/build/sanitize/${sanitizers//,/-}

python=${PYTHON:-}
if [[ -z $python ]]; then
  python=$PWD/build/sanitize/venv/bin/python
  python3 -m venv build/sanitize/venv
  "$python" -m pip install --quiet --upgrade -c constraints.txt setuptools cython numpy \
    safetensors pytest hypothesis
fi

mkdir -p "$base/lib"
echo "building with $sanitizers"
env -u MPEMBED_WERROR MPEMBED_CUDA=0 MPEMBED_SANITIZE="$sanitizers" \
  "$python" -P setup.py -q egg_info --egg-base "$base/lib" \
  build --build-base "$base" --build-lib "$base/lib" >"$base/build.log" 2>&1 ||
  { tail -n 40 "$base/build.log"; exit 1; }

# The program is Python, which is not instrumented: it must load the runtime first. So must
# libstdc++ be, or AddressSanitizer does not see how exceptions are thrown.
runtime=libtsan.so
[[ $sanitizers == *thread* ]] || runtime=libasan.so
[[ $sanitizers == *thread* || $sanitizers == *address* ]] || runtime=libubsan.so
cxx=${CXX:-g++}
preload="$($cxx -print-file-name=$runtime) $($cxx -print-file-name=libstdc++.so.6)"
[[ $(ldd "$base/lib/mpembed/lib/libmpembed.so") == *"$runtime"* ]] ||
  { echo "sanitize.sh: the build does not use $runtime" >&2; exit 1; }

# These load much of their own, without which the tests skip.
without=$base/without
mkdir -p "$without"
for module in torch jax; do
  echo "raise ModuleNotFoundError('$module is not loaded beside a sanitizer')" >"$without/$module.py"
done

reports=$base/reports
rm -rf "$reports"
mkdir "$reports"
common=log_path=$reports/report:halt_on_error=1:allocator_may_return_null=1
run() {
  # PYTHONMALLOC: each object in memory of its own. Leaks are not looked for: the interpreter frees
  # little when it ends. die_after_fork: tests fork.
  env LD_PRELOAD="$preload" PYTHONPATH="$base/lib:$without" PYTHONMALLOC=malloc \
    MPEMBED_NUM_THREADS="${MPEMBED_NUM_THREADS:-4}" MPEMBED_TEST_CUDA=none \
    ASAN_OPTIONS="$common:detect_leaks=0" \
    UBSAN_OPTIONS="$common:print_stacktrace=1" \
    TSAN_OPTIONS="$common:die_after_fork=0" \
    "$python" -P "$@"
}

# A run without findings means nothing where a planted fault is not found either.
finding="ERROR: AddressSanitizer|runtime error: |WARNING: ThreadSanitizer"
$cxx -O1 -g -shared -fPIC -pthread "-fsanitize=$sanitizers" -fno-sanitize-recover=all \
  .ci/sanitizer_control.cpp -o "$base/control.so"
for name in ${sanitizers//,/ }; do
  call="import ctypes; ctypes.CDLL('$base/control.so').$name()"
  if run -c "$call" &>"$base/control.log" ||
    ! grep -qsE "$finding" "$base/control.log" "$reports"/*; then
    cat "$base/control.log"
    echo "sanitize.sh: a planted fault is not found: $name" >&2
    exit 1
  fi
  rm -f "$reports"/*
done

failed=
run -c "import mpembed, sys; sys.exit(not mpembed.__file__.startswith('$base/lib'))"
# --capture=sys: UndefinedBehaviorSanitizer writes to standard error, and ends the process.
run -m pytest -q --capture=sys -p no:cacheprovider -m "not exhaustive and not gpu and not torch" \
  "${tests[@]}" | tee "$base/tests.log" || failed=1
soak="not run"
if [[ ${SOAK:-60} != 0 ]]; then
  # --margin: AddressSanitizer keeps 256 MiB of freed memory, to find its use.
  run tests/faults/soak.py --seconds "${SOAK:-60}" --margin 512 | tee "$base/soak.log" || failed=1
  soak=$(tail -n 1 "$base/soak.log" | sed 's/^soak: //')
fi
found=$(grep -lE "$finding" "$reports"/* 2>/dev/null || true)
if [[ -n $found ]]; then
  failed=1
  head -n 60 $found
fi

result="clean" counted=$(tail -n 1 "$base/tests.log" | sed 's/ in .*//; s/=//g')
[[ -z $failed ]] || result="findings or failures"
line="| \`$sanitizers\` | $(date -u +%F) | $counted | $soak | $result |"
echo "$line"
if [[ -n $record ]]; then
  LINE=$line awk -v key="| \`$sanitizers\` |" \
    'index($0, key) == 1 { print ENVIRON["LINE"]; next } { print }' CONTRIBUTING.md >"$base/new.md"
  cp "$base/new.md" CONTRIBUTING.md
fi
[[ -z $failed ]]
