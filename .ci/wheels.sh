#!/usr/bin/env bash
# Builds the source archive and the wheels, checks them, and tests each wheel without a compiler.
#
#   bash .ci/wheels.sh [PYTHON...]      # by default python3; results in build/wheels/dist
#
# The source archive and the first Python's wheel are built twice, in different folders, and must have
# the same bytes. The wheels are for the CPU alone; MPEMBED_CUDA=auto or 1 builds them with CUDA. This
# needs git, a C++ compiler and a package index. CONTRIBUTING.md says more under "Release".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pythons=("${@:-python3}")
root=$PWD/build/wheels
policy=manylinux_2_28_$(uname -m)

export MPEMBED_CUDA=${MPEMBED_CUDA:-0} PIP_DISABLE_PIP_VERSION_CHECK=1
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export LDFLAGS=${LDFLAGS:--Wl,-s}  # without symbol tables, a fifth of the size

step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }
same() { cmp "$1" "$2" || { echo "wheels.sh: two builds differ: $1 $2" >&2; exit 1; }; }

rm -rf "$root"
mkdir -p "$root/dist"

step "tools"
"${pythons[0]}" -m venv "$root/tools"
tools=$root/tools/bin
"$tools/pip" install --quiet -r tools/mpembed_dist/requirements.txt
check() { PYTHONPATH=tools "$tools/python" -m mpembed_dist --path "$root" "$@"; }

step "source archive"
for i in 1 2; do
  "$tools/python" -m build --sdist --outdir "$root/sdist$i" . &>"$root/sdist.log" ||
    { cat "$root/sdist.log"; exit 1; }
done
same "$root"/sdist1/*.tar.gz "$root"/sdist2/*.tar.gz
cp "$root"/sdist1/*.tar.gz "$root/dist"
sdist=$(echo "$root"/dist/*.tar.gz)
check "$sdist"

# wheel PYTHON FOLDER: build from the source archive; pip builds in a temporary folder
wheel() { "$1" -m pip wheel --quiet --no-deps --no-cache-dir --wheel-dir "$2" "$sdist"; }

# test_wheel NUMBER PYTHON WHEEL: run the tests with only Python's programs on PATH
test_wheel() {
  local venv=$root/venv-$1 bin
  "$2" -m venv "$venv"
  bin=$venv/bin
  "$bin/pip" install --quiet --only-binary :all: "$3" "pytest>=8.2" "hypothesis>=6.100" jax
  (
    export PATH=$bin MPEMBED_TEST_CUDA=none
    unset LDFLAGS CXX CC
    for compiler in cc c++ gcc g++ clang clang++ nvcc; do
      ! command -v "$compiler" || { echo "wheels.sh: $compiler is on PATH" >&2; exit 1; }
    done
    mpembed info
    pytest -q -p no:cacheprovider -m "not gpu" @tests/wheel.txt
  )
}

for i in "${!pythons[@]}"; do
  python=${pythons[$i]}
  step "wheel for $("$python" --version)"
  wheel "$python" "$root/raw$i"
  if ((i == 0)); then
    wheel "$python" "$root/again"
    same "$root"/raw0/*.whl "$root"/again/*.whl
  fi
  raw=$(echo "$root/raw$i"/*.whl)
  PATH=$tools:$PATH "$tools/auditwheel" show "$raw"
  PATH=$tools:$PATH "$tools/auditwheel" repair --plat "$policy" --only-plat -w "$root/repaired$i" "$raw"
  repaired=$(echo "$root/repaired$i"/*.whl)
  mv "$repaired" "$root/dist"
  repaired=$root/dist/${repaired##*/}
  check "$repaired"
  step "tests of ${repaired##*/}, no compiler"
  test_wheel "$i" "$python" "$repaired"
done

step "metadata"
"$tools/twine" check --strict "$root"/dist/*
"$tools/check-wheel-contents" "$root"/dist/*.whl

step "all passed"
ls -l "$root/dist"
