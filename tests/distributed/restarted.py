"""A job of two ranks that torchrun starts: rank 1 kills itself once, and all resume.

Arguments: a folder, and the step at which rank 1 is killed in its first life.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from sharded_plans import make, parts, train, whole_state
from sharded_saves import ALL_STEPS, SMALL
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from mpembed.torch import sharded

EVERY = 4


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint: its metadata is written last."""
    whole = [one.parent for one in folder.glob("step*/.metadata")]
    return max(whole, key=lambda one: int(one.name.removeprefix("step")), default=None)


def main() -> None:
    """Train to the end, saving every few steps."""
    folder, fatal = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    rank, world = dist.get_rank(), dist.get_world_size()
    life = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    some, begin = parts("rw", rank, world), 0
    emb = make(some, "adam", SMALL)

    def state() -> dict[str, Any]:
        return {"tables": sharded.state_dict(emb, group=dist.group.WORLD), "step": step}

    step = 0
    last = last_checkpoint(folder)
    if last is not None:
        held = state()
        dcp_load(held, checkpoint_id=last, planner=sharded.LoadPlanner())
        sharded.load_state_dict(emb, held["tables"])
        begin = held["step"]
    (folder / f"life{life}.rank{rank}").write_text(str(begin))
    for step in range(begin + 1, ALL_STEPS + 1):
        if life == 0 and rank == 1 and step == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        train(emb, some, step - 1, step)
        if step % EVERY == 0:
            dcp_save(state(), checkpoint_id=folder / f"step{step}")
    emb.flush()
    (folder / f"end{rank}.json").write_text(json.dumps(whole_state(emb, some)))
    dist.barrier()
    os._exit(0)  # a thread of gloo may abort an orderly end


if __name__ == "__main__":
    main()
