"""Optimizers of the user's own through the C API: what is registered, and what is refused."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import collection, train
from own_optimizers import lion

import mpembed as mpe
from mpembed._bindings.contract import MAX_PARAMETERS, MAX_STATES, STATE_ELEMENT, STATE_ROW

OK, VALUE = 0, 3  # an mpe_status
LIBRARY = Path(mpe.__file__).parent / "lib" / "libmpembed.so"

pytestmark = pytest.mark.skipif(not LIBRARY.is_file(), reason="the library has another name")


class OwnOptimizer(ctypes.Structure):
    """mpe_own_optimizer."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("num_states", ctypes.c_int32),
        ("state_names", ctypes.c_char_p * MAX_STATES),
        ("state_shapes", ctypes.c_int32 * MAX_STATES),
        ("state_initials", ctypes.c_float * MAX_STATES),
        ("num_parameters", ctypes.c_int32),
        ("parameters", ctypes.c_char_p * MAX_PARAMETERS),
        ("coefficients", ctypes.c_void_p),
        ("step", ctypes.c_void_p),
    )


def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.mpe_state_initial.restype = ctypes.c_float
    loaded.mpe_slot_floats.restype = loaded.mpe_slot_values.restype = ctypes.c_int64
    loaded.mpe_slot_floats.argtypes = [ctypes.c_int32, ctypes.c_int64]
    loaded.mpe_state_name.restype = loaded.mpe_parameter_name.restype = ctypes.c_char_p
    loaded.mpe_checkpoint_open.restype = ctypes.c_void_p
    loaded.mpe_checkpoint_error.argtypes = loaded.mpe_checkpoint_close.argtypes = [ctypes.c_void_p]
    loaded.mpe_checkpoint_error.restype = ctypes.c_char_p
    return loaded


def register(name: bytes, states: list[tuple[bytes, int, float]], parameters: int) -> int:
    """Return the number of an optimizer without functions, or the negative status."""
    one = OwnOptimizer(name, len(states), num_parameters=parameters)
    for i, (state, shape, initial) in enumerate(states[:MAX_STATES]):
        one.state_names[i], one.state_shapes[i], one.state_initials[i] = state, shape, initial
    for i in range(min(max(parameters, 0), MAX_PARAMETERS)):
        one.parameters[i] = b"own%d" % i
    number = ctypes.c_int32(-1)
    status = library().mpe_register_optimizer(ctypes.byref(one), ctypes.byref(number))
    return number.value if status == OK else -int(status)


def test_it_answers_as_those_of_the_registry_do() -> None:
    c = library()
    number = register(b"InC", [(b"slow", STATE_ROW, 0.5), (b"fast", STATE_ELEMENT, 0.25)], 2)
    assert number >= len(mpe.registry.OPTIMIZERS)
    assert c.mpe_num_states(number) == 2
    assert [c.mpe_state_name(number, i) for i in range(3)] == [b"slow", b"fast", None]
    assert [c.mpe_state_shape(number, i) for i in range(3)] == [STATE_ROW, STATE_ELEMENT, 0]
    assert [c.mpe_state_initial(number, i) for i in range(2)] == [0.5, 0.25]
    names = [c.mpe_parameter_name(number, i) for i in range(5)]
    assert names == [b"lr", b"weight_decay", b"own0", b"own1", None]
    assert (c.mpe_slot_floats(number, 10), c.mpe_slot_values(number)) == (20, 1)
    assert c.mpe_num_states(number + 1) == 0
    assert c.mpe_parameter_name(number + 1, 0) is None


ROW, ELEMENT = (b"a", STATE_ROW, 0.0), (b"b", STATE_ELEMENT, 0.0)


@pytest.mark.parametrize(
    ("name", "states", "parameters"),
    [
        (b"adam", [], 0),
        (b"Twice", [ROW], 1),
        (b"Twice", [(b"a", STATE_ROW, 1.0)], 0),
        (b"C1", [ROW, ROW], 0),
        (b"C2", [ELEMENT, ELEMENT, ELEMENT], 0),
        (b"C3", [(b"a", 3, 0.0)], 0),
        (b"C4", [], MAX_PARAMETERS - 1),
        (b"C5", [], -1),
    ],
)
def test_what_kernels_cannot_bear(
    name: bytes, states: list[tuple[bytes, int, float]], parameters: int
) -> None:
    if name == b"Twice":
        assert register(name, [ROW], 0) == register(name, [ROW], 0)
    assert register(name, states, parameters) == -VALUE


READ = """
import ctypes, sys
sys.path[:0] = sys.argv[3:]
import test_own_in_c as own
def error():
    c = own.library()
    opened = c.mpe_checkpoint_open(sys.argv[2].encode())
    found = c.mpe_checkpoint_error(opened)
    c.mpe_checkpoint_close(opened)
    return found and found.decode()
print(error())
own.register(b"Lion", [(b"exp_avg", own.STATE_ELEMENT, 0.0)], 2)
print(error())
"""


def test_a_program_reads_checkpoints_of_optimizers_that_it_registers(tmp_path: Path) -> None:
    emb = collection(optimizer=lion(mode="l2"))
    train(emb)
    emb.save(tmp_path / "there")
    done = subprocess.run(
        [sys.executable, "-c", READ, "", tmp_path / "there", Path(__file__).parent, *sys.path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{tmp_path / 'there'}: there is no optimizer 'Lion' in this process: "
        "mpe_register_optimizer adds those of your own",
        "None",
    ]
