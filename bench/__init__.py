"""Benchmarks. The modules import each other by bare name, even when run as ``bench.report``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
