"""Benchmarks. The modules import each other by bare name, even when run as ``bench.report``."""

import sys
from pathlib import Path

BENCH = Path(__file__).parent
sys.path[:0] = [str(BENCH / folder) for folder in (".", "contenders", "gpu")]
