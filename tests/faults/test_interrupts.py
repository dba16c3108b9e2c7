"""Ctrl-C at any point of a call: it has happened or it has not, and nothing is left behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import on_device
import pytest
from helpers import digest, pinned
from interrupts import Interrupt

import mpembed as mpe
from mpembed._bindings.contract import PIN_MASK
from mpembed.collection import collection_state

OFFSETS = np.array([0, 2, 3, 5, 6])
INDICES, OTHERS = np.array([1, 2, 1, 3, 8, 3]), np.array([5, 6, 7, 0, 4, 8])
WEIGHTS = np.linspace(0.5, 1, 6, dtype=np.float32)
GRAD = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
IDS, ROWS = np.array([1, 4]), np.full((2, 4), 0.25, np.float32)


class Scene:
    """A collection with a prefetch and three open forwards, and what a call of it returned."""

    def __init__(self, folder: Path, *, cached: bool) -> None:
        precision = "int4" if cached else "fp32"
        tables = [mpe.TableConfig(name, 9, 4, precision) for name in "ab"]
        cache = mpe.CacheConfig(num_sets=1, ways=8, policy="lru") if cached else None
        self.emb: Any = on_device.make(tables, cache=cache, optimizer=mpe.Adagrad(0.1))
        self.path = folder / "saved"
        self.emb.forward(OTHERS, OFFSETS)
        self.emb.backward(GRAD)
        self.prefetched: Any = self.emb.prefetch(OTHERS, OFFSETS)
        self.first: Any = self.emb.forward(INDICES, OFFSETS, WEIGHTS, ticket=True)[1]
        self.second: Any = self.emb.forward(INDICES[::-1].copy(), OFFSETS, ticket=True)[1]
        self.emb.forward(INDICES, OFFSETS, WEIGHTS)
        self.result: Any = None

    def state(self) -> dict[str, bytes]:
        """Return all state, without the pins of open batches."""
        found = dict(self.emb.state_arrays())
        for name in [name for name in found if "tags" in name]:
            found[name] = found[name] & ~np.uint64(PIN_MASK)
        return {name: array.tobytes() for name, array in found.items()}

    def let_go(self) -> None:
        """Drop all that the caller holds; the next step uses or drops what the collection holds."""
        self.result = self.prefetched = self.first = self.second = None
        self.emb.drop_prefetched()
        self.emb.forward(INDICES, OFFSETS)
        self.emb.backward(GRAD)


Act = Callable[[Scene], Any]
CALLS: dict[str, Act] = {
    "prefetch": lambda s: s.emb.prefetch(INDICES, OFFSETS),
    "forward": lambda s: s.emb.forward(INDICES, OFFSETS, WEIGHTS),
    "forward of a dict": lambda s: s.emb.forward(
        {"a": (IDS, np.array([0, 1, 2])), "b": (IDS, np.array([0, 0, 2]))}
    ),
    "forward with ticket": lambda s: s.emb.forward(INDICES, OFFSETS, ticket=True),
    "forward of a prefetch": lambda s: s.emb.forward(OTHERS, OFFSETS, WEIGHTS),
    "evaluation": lambda s: s.emb.forward(INDICES, OFFSETS, training=False),
    "backward": lambda s: s.emb.backward(GRAD),
    "backward of a ticket": lambda s: s.emb.backward(GRAD, s.first),
    "backward of several": lambda s: s.emb.backward([(GRAD, s.first), (GRAD, s.second)]),
    "weight_grad": lambda s: s.emb.weight_grad(GRAD, s.first),
    "drop": lambda s: s.first.drop(),
    "drop_prefetched": lambda s: s.emb.drop_prefetched(),
    "flush": lambda s: s.emb.flush(),
    "set_rows": lambda s: s.emb.set_rows("a", IDS, ROWS),
    "rows": lambda s: s.emb.rows("a", IDS),
    "step": lambda s: s.emb.step,
    "stats": lambda s: s.emb.stats(),
    "rounding_report": lambda s: s.emb.rounding_report(),
    "memory_report": lambda s: s.emb.memory_report(),
    "check": lambda s: s.emb.check(),
    "export": lambda s: s.emb.export("a"),
    "state_arrays": lambda s: s.emb.state_arrays(),
    "save": lambda s: s.emb.save(s.path),
    "save and track": lambda s: s.emb.save(s.path, track=True),
    "set_state": lambda s: s.emb.set_state("a", IDS, {"sum": ROWS}),
    "set_updates": lambda s: s.emb.set_updates(1000),
}
# What says whether a call has happened, besides the state.
SIGNS: dict[str, Act] = {
    "drop": lambda s: s.first.open,
    "drop_prefetched": lambda s: (s.prefetched.open, s.emb.drop_prefetched() == 0),
}


def no_sign(_: Scene) -> Any:
    """Return what says no more than the state."""
    return None


# What a second try says where the first has happened; of others it is a call like any other.
USED = {
    "backward": "used already",
    "backward of a ticket": "used already",
    "backward of several": "used already",
}


def is_free(emb: mpe.EmbeddingBagCollection) -> bool:
    """Return whether another thread can call the collection."""
    steps: list[int] = []
    thread = threading.Thread(target=lambda: steps.append(emb.step), daemon=True)
    thread.start()
    thread.join(20)
    return bool(steps)


def check_interrupts(
    name: str, folder: Path, *, cached: bool, opcodes: bool, stride: int = 1
) -> int:
    """Interrupt a call at every `stride`-th point; return how many there were."""
    call, sign = CALLS[name], SIGNS.get(name, no_sign)
    whole = Scene(folder, cached=cached)
    before = whole.state()
    call(whole)
    after = whole.state()
    unchanged, changed = sign(Scene(folder, cached=cached)), sign(whole)
    n = 1
    while True:
        scene = Scene(folder, cached=cached)
        interrupt = Interrupt(n, opcodes=opcodes)
        scene.result = interrupt.run(lambda: call(scene))  # noqa: B023 (called at once)
        if not interrupt.happened:
            assert scene.state() == after
            return n // stride
        assert is_free(scene.emb), f"the lock is held after point {n}"
        state = scene.state()
        assert state in (before, after), f"half a call after point {n}"
        if name in SIGNS:
            assert sign(scene) in (unchanged, changed)
        elif state == before:
            call(scene)
            assert scene.state() == after, f"the second try differs after point {n}"
        elif name in USED:
            with pytest.raises(RuntimeError, match=USED[name]):
                call(scene)
            assert scene.state() == after
        scene.let_go()
        assert not cached or pinned(scene.emb) == 0, f"rows stay pinned after point {n}"
        assert collection_state(scene.emb).engine.num_open == 0
        n += stride


# Lines and bytecodes of what takes long.
STRIDES = {"save": 23, "save and track": 41, "export": 5, "set_state": 3}
CODE_STRIDES = {"save": 97, "save and track": 397, "set_state": 23}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_has_happened_or_not(name: str, cached: bool, tmp_path: Path) -> None:
    stride = STRIDES.get(name, 1)
    assert check_interrupts(name, tmp_path, cached=cached, opcodes=False, stride=stride) > 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CALLS)
def test_at_every_bytecode(name: str, tmp_path: Path) -> None:
    stride = CODE_STRIDES.get(name, 1)
    assert check_interrupts(name, tmp_path, cached=True, opcodes=True, stride=stride) > 5


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("prefetch", 1),
        ("forward of a prefetch", 3),
        ("backward of several", 3),
        ("drop", 1),
        ("drop_prefetched", 1),
        ("flush", 1),
        ("set_rows", 3),
        ("check", 1),
    ],
)
@pytest.mark.usefixtures("each_device")
def test_on_a_device(name: str, stride: int, tmp_path: Path) -> None:
    assert check_interrupts(name, tmp_path, cached=True, opcodes=False, stride=stride) > 1


def test_a_sparse_update_has_happened_or_not() -> None:
    rows, grads = np.array([2, 0, 2]), np.ones((3, 4), np.float32)
    weights, sums = np.ones((5, 4), np.float32), np.zeros((5, 4), np.float32)
    expected = weights.copy(), sums.copy()
    mpe.ops.adagrad_(expected[0], rows, grads, expected[1], lr=0.1)
    n, outcomes = 0, set()
    while True:
        n += 1
        found, interrupt = (weights.copy(), sums.copy()), Interrupt(n)
        interrupt.run(lambda: mpe.ops.adagrad_(found[0], rows, grads, found[1], lr=0.1))  # noqa: B023
        if not interrupt.happened:
            break
        changed = not np.array_equal(found[0], weights)
        for array, other in zip(found, expected if changed else (weights, sums), strict=True):
            np.testing.assert_array_equal(array, other)
        outcomes.add(changed)
    assert outcomes == {True, False}


def test_a_report_comes_later_if_not_now() -> None:
    table, grad = mpe.TableConfig("t", 4, 4), np.full((1, 4), np.inf, np.float32)
    n, later = 0, 0
    while True:
        n += 1
        emb = mpe.EmbeddingBagCollection([table], optimizer=mpe.SGD(1.0))
        emb.forward(np.array([2]), np.array([0, 1]))
        interrupt, told = Interrupt(n), False
        try:
            interrupt.run(lambda: emb.backward(grad))  # noqa: B023
        except mpe.NonFiniteUpdateError:
            told = True
        if not interrupt.happened:
            break
        if told or interrupt.before is mpe.NonFiniteUpdateError:  # which was on its way
            emb.check()
        elif collection_state(emb).engine.num_open == 0:
            with pytest.raises(mpe.NonFiniteUpdateError, match="row 2 of table 't'"):
                emb.check()
            later += 1
    assert told
    assert later


# ---- signals -------------------------------------------------------------------------------------

LONG_IDS = np.arange(60_000)


def long_scene() -> tuple[mpe.EmbeddingBagCollection, dict[str, Callable[[], Any]]]:
    """Return a collection whose calls take a while, and these calls."""
    table = mpe.TableConfig("t", len(LONG_IDS), 64, "int4")
    emb = mpe.EmbeddingBagCollection(
        [table], optimizer=mpe.SGD(1.0), cache=mpe.CacheConfig(load_factor=0.5)
    )
    out = emb.forward(LONG_IDS, np.arange(len(LONG_IDS) + 1))
    grad, values = np.ones_like(out), np.zeros((len(LONG_IDS), 64), np.float32)
    return emb, {
        "backward": lambda: emb.backward(grad),
        "flush": lambda: emb.flush(),
        "set_rows": lambda: emb.set_rows("t", LONG_IDS, values),
    }


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("name", ["backward", "flush", "set_rows"])
def test_a_signal_in_a_long_kernel(name: str) -> None:
    whole, calls = long_scene()
    before = digest(whole)
    begin = time.perf_counter()
    calls[name]()
    takes, after = time.perf_counter() - begin, digest(whole)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    outcomes = set()
    try:
        for share in (0.05, 0.3, 0.6, 0.9):
            emb, calls = long_scene()
            step = emb.step
            try:
                signal.setitimer(signal.ITIMER_REAL, takes * share)
                calls[name]()
            except KeyboardInterrupt:
                outcomes.add("interrupted")
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert digest(emb) == (after if emb.step > step else before)
            if emb.step == step:
                calls[name]()
                assert digest(emb) == after
            elif name == "backward":
                with pytest.raises(RuntimeError, match="used already"):
                    calls[name]()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert outcomes  # the machine was not so fast that none came in time


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
def test_signals_in_a_training_loop_train_each_batch_once() -> None:
    """Each batch adds one to each row, whatever is tried again."""
    table = mpe.TableConfig("t", 16, 8, init="zeros")
    emb = mpe.EmbeddingBagCollection([table], optimizer=mpe.SGD(1.0))
    indices, offsets, grad = np.arange(16), np.arange(17), np.full((16, 8), -1, np.float32)
    rng, interrupted = np.random.default_rng(0), 0
    meant = [False]  # a signal may still come after its timer was stopped

    def interrupt(*_: object) -> None:
        if meant[0]:
            raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(400):
            _, ticket = emb.forward(indices, offsets, ticket=True)
            try:
                meant[0] = True
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 3e-5))
                emb.backward(grad, ticket)
                meant[0] = False
            except KeyboardInterrupt:
                meant[0] = False
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            if ticket.open:
                emb.backward(grad, ticket)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert interrupted
    np.testing.assert_array_equal(emb.rows("t", indices), np.full((16, 8), 400, np.float32))
    assert emb.step == 800
