"""Runs programs of plain_training and plain_faults as a rank of a gloo group, for `ranks.run`."""

from __future__ import annotations

import io
import os
import traceback
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import plain_faults
import plain_training
from torch import distributed as dist


def all_of(rank: int, world_size: int, folder: Path, names: Sequence[str]) -> str:
    """Run programs in turn; return what they print. The first that fails is the last."""
    os.chdir(folder)
    warnings.simplefilter("error")
    told = io.StringIO()
    with redirect_stdout(told):
        try:
            for name in names:
                home = plain_training if hasattr(plain_training, name) else plain_faults
                getattr(home, name)()
                dist.barrier()
                print(name, "passed")
        except Exception:
            traceback.print_exc(file=told)
    return told.getvalue()


def alone(rank: int, world_size: int, name: str) -> Any:
    """Run a program of plain_faults whose ranks do not meet at its end; return its answer."""
    warnings.simplefilter("error")
    return getattr(plain_faults, name)()


def assert_passed(told: Sequence[str], name: str) -> None:
    """Fail, with what all ranks have printed, where a program has not ended well on each."""
    lines = [text.splitlines() for text in told]
    assert all(f"{name} passed" in one for one in lines), "\n".join(told)
