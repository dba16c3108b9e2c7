"""``python -m bench.distributed``, in the project's root."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The installed package is measured, which need not be the source folder beside this one.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != ROOT]

if __name__ == "__main__":
    from distributed.cli import app

    app(prog_name="python -m bench.distributed")
