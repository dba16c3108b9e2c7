"""``python -m bench.models``, in the project's root."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The installed package is tried, which need not be the source folder beside this one.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != ROOT]

if __name__ == "__main__":
    from models.cli import app

    app(prog_name="python -m bench.models")
