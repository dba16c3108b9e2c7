"""Runs programs of plain_training and plain_faults as a rank of a gloo group."""

from __future__ import annotations

import os
import sys
import traceback
from datetime import timedelta

import plain_faults
import plain_training
from torch import distributed as dist


def main() -> None:
    names, size, store, seconds, rank = sys.argv[1:]
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=int(rank),
        world_size=int(size),
        timeout=timedelta(seconds=float(seconds)),
    )
    try:
        for name in names.split(","):
            home = plain_training if hasattr(plain_training, name) else plain_faults
            getattr(home, name)()
            dist.barrier()
            print(name, "passed", flush=True)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(1)
    os._exit(0)  # a thread of gloo that wants the interpreter while it ends aborts the process


if __name__ == "__main__":
    main()
