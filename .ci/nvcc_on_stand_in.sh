#!/usr/bin/env bash
# The CUDA extension as nvcc builds it, run on a stand-in for the CUDA runtime library: no GPU is needed.
#
#   bash .ci/nvcc_on_stand_in.sh [short|full]
#
# short, the selection of .ci/run: the tests of devices, the C++ example and two long trainings.
# full: every test of a device; then hundreds of steps of each training, the C API and the devices
# under random schedules with several seeds.
#
# This needs nvcc, and the stand-in in MPEMBED_STAND_IN (../shared/tools/vgpu). It installs mpembed
# into the Python of $PYTHON (python3), which must have what the tests need. A copy of the stand-in
# and its translations of kernels stay in build/stand_in.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  sed -n 's/^#   //p' "${BASH_SOURCE[0]}" >&2
  exit 2
}
(($# <= 1)) || usage
selection=${1:-short}
[[ $selection == short || $selection == full ]] || usage

python=${PYTHON:-python3}
stand_in=${MPEMBED_STAND_IN:-../shared/tools/vgpu}
work=$PWD/build/stand_in
if [[ ! -d $stand_in ]]; then
  echo "$0: there is no stand-in in $stand_in; set MPEMBED_STAND_IN to its folder" >&2
  exit 1
fi

mkdir -p "$work"
cp -r "$stand_in/." "$work/runtime" # the original may be read-only
chmod -R u+w "$work/runtime"
"$work/runtime/build.sh"
MPEMBED_CUDA=1 MPEMBED_CUDART=shared MPEMBED_CUDA_ARCHS=compute_80 \
  "$python" -m pip install --quiet --no-deps --force-reinstall .
"$python" -m pip install --quiet --constraint constraints.txt cuda-python cuda-core

# The calls of a step are those that docs/gpu_model.md was made with.
PYTHONPATH=tools "$python" -P -m mpembed_gpu calls
git diff --exit-code -- tools/mpembed_gpu/data/calls.json

export LD_LIBRARY_PATH="$work/runtime/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export VGPU_CACHE="$work/cache" VGPU_RACE=2 VGPU_STRICT=1 VGPU_MEMCHECK=1
export MPEMBED_TEST_CUDA=installed

# On the stand-in this test would fill a table of 6 GB; it runs in pageable host memory, below.
far=tests/c_api/test_replicas.py::test_rows_beyond_4_gib

# run_tests MODE SEED STEPS ARGUMENTS...: pytest, with the kernels scheduled in a mode
run_tests() {
  printf '\n-- %s, seed %s, trainings of %s steps (%d s)\n' "$1" "$2" "$3" "$SECONDS"
  VGPU_MODE=$1 VGPU_SEED=$2 MPEMBED_TEST_STEPS=$3 \
    "$python" -P -m pytest -q -n "${MAX_JOBS:-2}" -m gpu --deselect "$far" "${@:4}"
}

if [[ $selection == short ]]; then
  training=tests/devices/test_long_training.py::test_the_devices_bytes_are_the_cpus
  run_tests lockstep 1 300 tests/devices/test_devices.py tests/devices/test_device_calls.py \
    tests/devices/test_cuda_core.py tests/project/test_examples_cpp.py \
    "${training}[adam_bf16-none-lru-8]" "${training}[rowwise_adagrad-none-lfu-32]"
  exit
fi

run_tests lockstep 1 300
VGPU_PAGEABLE=1 "$python" -P -m pytest -q "$far"
for mode in random its; do
  run_tests "$mode" 1 300 tests/devices/test_long_training.py
  for seed in 2 3; do
    run_tests "$mode" "$seed" 100 tests/devices/test_long_training.py tests/c_api/test_replicas.py \
      tests/devices/test_device*.py tests/ops/test_device_ops.py tests/collection/test_tickets.py
  done
done
