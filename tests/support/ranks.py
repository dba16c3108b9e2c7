"""Functions run by several processes at once, the ranks of a gloo group.

The processes are forked from one that has imported what they need, so that they start at once. Each
leaves by `os._exit`: gloo's threads may abort an orderly end.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

PRELOADED = [
    "mpembed.torch.distributed",
    "torchrec.distributed.model_parallel",
    "mpembed.torch.torchrec",
    "mpembed.cli",
    "mpembed.train.job",
]


class Failed(NamedTuple):
    """What a rank raised."""

    kind: str
    message: str
    trace: str


def context() -> Any:
    """Return what starts processes from one that has imported PyTorch."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(PRELOADED)
    # Its imports are the installed package's, not those of the folder that the tests run in.
    with mock.patch.dict(os.environ, PYTHONSAFEPATH="1"):
        forkserver.ensure_running()
    return made


def run(
    function: Callable[..., Any],
    world_size: int,
    folder: Path,
    *arguments: Any,
    timeout: float = 120.0,
    group_timeout: float = 20.0,
) -> list[Any]:
    """Return what each rank's call of `function(rank, world_size, *arguments)` returns.

    A rank that raises gives `Failed`, one that dies None. AssertionError after `timeout` seconds.
    `group_timeout` is that of the process group's collectives, in seconds.
    """
    processes = context()
    given = pickle.dumps((function, arguments))  # not by torch's way, which shares memory
    store = folder / f"store-{time.monotonic_ns()}"
    started = []
    for rank in range(world_size):
        here, there = processes.Pipe(duplex=False)
        process = processes.Process(
            target=_rank,
            args=(there, sys.path, given, rank, world_size, store, group_timeout),
            daemon=True,
        )
        process.start()
        there.close()
        started.append((process, here))
    end = time.monotonic() + timeout
    try:
        return [_result(here, end) for _, here in started]
    finally:
        for process, here in started:
            process.kill()
            process.join(10)
            here.close()


def succeed(results: list[Any]) -> list[Any]:
    """Return the results; AssertionError with the trace of a rank that raised or died."""
    for rank, one in enumerate(results):
        assert not isinstance(one, Failed), f"rank {rank}: {one.trace}"
        assert one is not None, f"rank {rank} died"
    return results


def _result(here: Connection, end: float) -> Any:
    assert here.poll(max(end - time.monotonic(), 0.0)), "the ranks hang"
    try:
        return pickle.loads(here.recv_bytes())
    except EOFError:
        return None


def _rank(
    there: Connection,
    path: list[str],
    given: bytes,
    rank: int,
    world_size: int,
    store: Path,
    group_timeout: float,
) -> None:
    sys.path[:] = path
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
        GLOO_SOCKET_IFNAME="lo",
    )
    result: Any
    try:
        function, arguments = pickle.loads(given)
        _join(rank, world_size, store, group_timeout)
        result = function(rank, world_size, *arguments)
    except BaseException as error:
        result = Failed(type(error).__name__, str(error), traceback.format_exc())
    there.send_bytes(pickle.dumps(result))
    there.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _join(rank: int, world_size: int, store: Path, group_timeout: float) -> None:
    import torch
    from torch import distributed as dist

    import mpembed

    torch.set_num_threads(1)
    mpembed.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=store.as_uri(),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=group_timeout),
    )
