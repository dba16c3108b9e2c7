#!/usr/bin/env bash
# Does all that needs a GPU, offline, in one command: build, tests, compute-sanitizer, benchmarks.
#
#   bash bench/gpu.sh [--dry-run] [--out DIR]
#
# Installs mpembed, built with the system's nvcc, into the Python of $PYTHON (python3), which must
# have what the build and the tests need. DIR (build/gpu) gets a log of each part, and after each
# part results.json and results.txt of all so far. A part that fails does not stop the others. The
# exit status is 1 if any part failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

dry_run=
out=build/gpu
while (($#)); do
  case $1 in
    --dry-run) dry_run=1 ;;
    --out)
      out=${2:?--out needs a folder}
      shift
      ;;
    *)
      sed -n 's/^#   //p' "${BASH_SOURCE[0]}" >&2
      exit 2
      ;;
  esac
  shift
done

python=${PYTHON:-python3}
jobs=${MPEMBED_GPU_JOBS:-4} # tests at a time; they share the GPU
export PYTHONPATH=$PWD/tools
export MPEMBED_CUDA=1 MPEMBED_TEST_CUDA=installed MAX_JOBS="${MAX_JOBS:-$(nproc)}"

if [[ -z $dry_run ]]; then
  rm -rf "$out"
  mkdir -p "$out" || exit 2
fi
out=$(realpath -m "$out")
parts=$out/parts.tsv
worst=0

# part NAME LIMIT COMMAND...: runs the command with a time limit in seconds; logs output and status.
part() {
  local name=$1 limit=$2 status start=$SECONDS
  shift 2
  if [[ -n $dry_run ]]; then
    printf '%s: %s\n' "$name" "${*@Q}"
    return
  fi
  printf '== %s\n' "$name"
  timeout --kill-after=30 "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  printf '%s\t%d\t%d\n' "$name" "$status" "$((SECONDS - start))" >>"$parts"
  # Now, as the machine may be taken away before the end.
  "$python" -P bench/gpu/gpu_report.py "$out" >/dev/null 2>&1
  if ((status)); then
    worst=1
    printf '   failed with status %d; the end of %s:\n' "$status" "$out/$name.log"
    tail -n 5 "$out/$name.log" | sed 's/^/   /'
  fi
}

part device 60 nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv
if [[ -z ${MPEMBED_CUDA_ARCHS:-} && -z $dry_run ]]; then
  # Machine code for this GPU alone: the default list takes several times as long.
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
  if [[ $capability =~ ^[0-9]+\.[0-9]+$ ]]; then
    export MPEMBED_CUDA_ARCHS=${capability/./}
  fi
fi
part build 3600 "$python" -m pip install --no-build-isolation --no-deps --no-index \
  --force-reinstall --verbose .
part info 60 env -C "$(dirname "$out")" "$python" -P -m mpembed info
part tests 5400 "$python" -P -m pytest -q -n "$jobs" -m "" "--junitxml=$out/tests.xml"

# A short training on the device, whose bytes must equal the CPU's: alone, then under each tool.
part training 600 "$python" -P bench/gpu/gpu_training.py
for tool in memcheck racecheck initcheck synccheck; do
  part "$tool" 1800 compute-sanitizer "--tool=$tool" --error-exitcode=86 --target-processes=all \
    "$python" -P bench/gpu/gpu_training.py --short
done

part benchmarks 3600 "$python" -P -m pytest -q bench/test_gpu.py "--benchmark-json=$out/benchmarks.json"

if [[ -n $dry_run ]]; then
  printf 'report: %s\n' "'$python' bench/gpu/gpu_report.py '$out'"
  exit 0
fi
"$python" -P bench/gpu/gpu_report.py "$out" || worst=1
exit "$worst"
