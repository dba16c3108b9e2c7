#!/usr/bin/env bash
# Does all that needs a GPU, offline, in one command: build, tests, compute-sanitizer, benchmarks.
#
#   bash bench/gpu.sh [--first | --second] [--dry-run] [--out DIR] [--wheels DIR]
#                     [--after RESULTS] [--minutes N]
#
# Without --first and --second it takes hours: it installs mpembed, built with the system's nvcc,
# into the Python of $PYTHON (python3), which must have what the build and the tests need.
#
# --first is for a machine that is there for minutes: nine in all, the most important answers first.
#   It installs the wheels in build/gpu_wheels (--wheels) for itself alone, and builds mpembed where
#   none of them is one that runs.
# --second, four minutes: what failed in the first by its results.json (--after), ncu's counters,
#   what was cut short, the other tests and tools.
#
# DIR (build/gpu) gets log.txt, what the parts print; lines of JSON that grow as they run:
# parts.jsonl, figures.jsonl, tests.jsonl; after each part results.json and results.txt of all so
# far; at the end archive.tar.gz, of at most 16 MiB, with these and what was built. A part that
# fails, or reaches its limit, does not stop the others. The exit status is 1 if any part failed.
programs=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/gpu
export PYTHONPATH="$programs${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -P "$programs/gpu_visit.py" "$@"
