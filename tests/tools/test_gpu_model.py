"""The model behind docs/gpu_model.md: bytes, paths through machine code, waits, times."""

from __future__ import annotations

import random

import pytest

from mpembed import registry
from mpembed._bindings import contract, kernels
from mpembed_gpu import flow, latency, sass, traffic
from mpembed_gpu.devices import DEVICES
from mpembed_gpu.flow import Trips
from mpembed_gpu.latency import Waits
from mpembed_gpu.model import Path, estimate
from mpembed_gpu.registry import FORMATS, KINDS, OPTIMIZERS, POLICIES
from mpembed_gpu.scenarios import BATCH, DIMS, SCENARIOS
from mpembed_gpu.traffic import Bytes, sectors

H100 = DEVICES[0]


def code(text: str) -> list[sass.Instruction]:
    """Return instructions of nvdisasm's form; a line that ends in a colon is a label."""
    lines = [line.strip() for line in text.strip().splitlines()]
    listing = [".text.kernel:"]
    listing += [f"{x}" if x.endswith(":") else f"        /*0010*/   {x} ;" for x in lines]
    return sass.functions("\n".join(listing))["kernel"]


LOOP = """
S2R R0, SR_TID.X
@P0 BRA `(.L_x_2)
.L_x_1:
LDG.E R1, desc[UR4][R2.64]
FFMA R4, R1, R1, R4
FFMA R4, R1, R1, R4
IADD3 R2, R2, 0x4, RZ
@P1 BRA `(.L_x_1)
.L_x_2:
STG.E desc[UR4][R6.64], R4
EXIT
"""


def opcodes(text: str, *rules: Trips, **how: str) -> list[str]:
    return [one.opcode for one in flow.longest(flow.blocks_of(code(text)), rules, **how)]


def test_formats_are_those_of_the_registry() -> None:
    assert [fmt.name for fmt in FORMATS] == list(registry.FORMATS)
    for fmt in FORMATS:
        for dim in (1, 3, *DIMS):
            assert fmt.row(dim) == registry.row_bytes(fmt.name, dim)


def test_optimizers_and_policies_are_those_of_the_registry() -> None:
    assert [optimizer.name for optimizer in OPTIMIZERS] == list(registry.OPTIMIZERS)
    assert [policy.name for policy in POLICIES] == list(registry.POLICIES)
    for optimizer in OPTIMIZERS:
        declared = kernels.optimizer_states(registry.OPTIMIZERS[optimizer.name])
        shapes = [(name, shape == contract.STATE_ELEMENT) for name, shape, _ in declared]
        assert [(state.name, state.element) for state in optimizer.states] == shapes


def test_there_is_one_optimizer_for_each_list_of_states() -> None:
    assert [optimizer.name for optimizer in KINDS] == [
        "sgd",
        "rowwise_adagrad",
        "adagrad",
        "rowwise_adam",
        "adam",
    ]
    assert {optimizer.shapes for optimizer in KINDS} == {o.shapes for o in OPTIMIZERS}


def test_a_row_and_its_states_are_a_record_where_padding_is_small() -> None:
    formats = {fmt.name: fmt for fmt in FORMATS}
    optimizers = {optimizer.name: optimizer for optimizer in OPTIMIZERS}
    rowwise, adam = optimizers["rowwise_adagrad"], optimizers["adam"]
    assert traffic.stored(formats["int4"], 64, optimizers["sgd"]) == (36,)
    assert traffic.stored(formats["int4"], 64, rowwise) == (40,)
    assert traffic.stored(formats["fp32"], 64, rowwise) == (256, 4)
    assert traffic.stored(formats["fp32"], 64, adam) == (256, 512)
    assert traffic.stored(formats["int8"], 16, adam) == (24, 128)


def test_a_hit_is_free_of_the_bus() -> None:
    for fmt in FORMATS:
        for optimizer in OPTIMIZERS:
            row, kept = fmt.row(64), sum(state.size(64) for state in optimizer.states)
            assert traffic.bus(fmt, 64, optimizer, cached=True) == 0
            assert traffic.bus(fmt, 64, optimizer, cached=False) >= 3 * row + 2 * kept


def test_sectors_of_a_row_are_the_mean_over_a_table() -> None:
    assert sectors(32) == 32
    assert sectors(36) == 64
    assert sectors(12) == 40
    rng = random.Random(0)
    for size in (rng.randrange(1, 600) for _ in range(20)):
        touched = [len({b // 32 for b in range(i * size, (i + 1) * size)}) for i in range(32)]
        assert sectors(size) == pytest.approx(32 * sum(touched) / 32)


def test_nothing_moves_less_than_its_floor() -> None:
    for fmt in FORMATS:
        for dim in DIMS:
            for scenario in (*SCENARIOS, *BATCH):
                moved = scenario.bytes(fmt, dim)
                # The gradient of a bag is read once for all its lookups, in both counts.
                assert moved.floor <= moved.memory + 1e-9
                assert moved.memory > 0


def test_the_floor_of_an_update_counts_the_row_twice() -> None:
    int4 = next(fmt for fmt in FORMATS if fmt.name == "int4")
    optimizers = {optimizer.name: optimizer for optimizer in OPTIMIZERS}
    sgd, adagrad = (traffic.update(int4, 64, optimizers[n]).floor for n in ("sgd", "adagrad"))
    assert adagrad - sgd == pytest.approx(2 * 4 * 64)
    empty = traffic.update(int4, 0, optimizers["sgd"]).floor
    assert sgd - empty == pytest.approx(2 * 32 + 4 * 64 / traffic.POOL)


def test_units_and_widths() -> None:
    assert [sass.unit(o) for o in ("FFMA", "IMAD.WIDE.U32", "LOP3.LUT", "LD.E.U8", "BRA")] == [
        "fma",
        "imad",
        "alu",
        "lsu",
        "control",
    ]
    mix = sass.mix(["LDG.E.128", "LDG.E", "LD.E.U8", "STG.E.U16", "ATOMG.E.ADD", "SHFL.IDX", "NOP"])
    assert mix.loads == (1, 0, 1, 0, 1)
    assert mix.stores == (0, 0, 0, 1, 0)
    assert (mix.atomics, mix.shuffles, mix.total) == (1, 1, 6)


def test_a_loop_is_taken_as_often_as_there_is_work() -> None:
    once = opcodes(LOOP)
    assert once.count("FFMA") == 2
    assert once[-2:] == ["STG.E", "EXIT"]
    ten = opcodes(LOOP, Trips(20, "FFMA", needs="LDG"))
    assert ten.count("LDG.E") == 10
    assert "LDG.E" not in opcodes(LOOP, Trips(1, "FFMA", needs="LDG"))
    assert opcodes(LOOP, Trips(20, "FFMA", needs="SHFL")) == once


def test_what_a_wide_loop_leaves_goes_to_the_narrow_one() -> None:
    wide = ["FADD R1, R1, R2"] * 4
    text = [".L_x_1:", *wide, "@P0 BRA `(.L_x_1)", ".L_x_2:", "FADD R1, R1, R2", "NOP"]
    found = opcodes("\n".join([*text, "@P0 BRA `(.L_x_2)", "EXIT"]), Trips(11, "FADD"))
    assert found.count("FADD") == 11
    assert found.count("BRA") == 2 + 3


def test_the_longer_side_counts_unless_another_is_preferred() -> None:
    text = """
    @P0 BRA `(.L_x_1)
    MUFU.RCP R0, R0
    BRA `(.L_x_2)
    .L_x_1:
    IADD3 R0, R0, R0, RZ
    LOP3.LUT R0, R0, R0, RZ
    ATOM.E.ADD R1, [R2.64], R0
    .L_x_2:
    EXIT
    """
    assert "ATOM.E.ADD" in opcodes(text)
    assert "MUFU.RCP" in opcodes(text, prefer="MUFU")
    assert "MUFU.RCP" in opcodes(text, avoid="ATOM")


def test_codes_that_are_computed_anew_count_by_their_share() -> None:
    text = """
    @P0 BRA `(.L_x_2)
    .L_x_1:
    FCHK P1, R4, R0
    MUFU.RCP R0, R0
    @P0 BRA `(.L_x_1)
    .L_x_2:
    STG.E desc[UR4][R6.64], R4
    EXIT
    """
    quantize = next(one for one in SCENARIOS if one.title == "quantize")
    units = quantize.path(FORMATS[-1], 64, code(text)).units
    assert units["lsu"] == 1
    assert units["xu"] == pytest.approx(1 - (2047 / 2048) ** 256)


def test_copies_of_bytes_are_not_taken_where_there_is_a_wide_access() -> None:
    text = """
    @P0 BRA `(.L_x_1)
    LDG.E R0, [R2.64]
    BRA `(.L_x_2)
    .L_x_1:
    LDG.E.U8 R0, [R2.64]
    LDG.E.U8 R1, [R2.64+0x1]
    PRMT R0, R0, R1, RZ
    .L_x_2:
    EXIT
    """
    assert opcodes(text) == ["BRA", "LDG.E", "BRA", "EXIT"]


def test_a_barrier_leads_where_it_was_set_to() -> None:
    text = """
    BSSY B0, `(.L_x_1)
    IADD3 R0, R0, R0, RZ
    BSYNC B0
    MUFU.RCP R1, R1
    .L_x_1:
    EXIT
    """
    assert opcodes(text) == ["BSSY", "IADD3", "BSYNC", "EXIT"]


def test_loads_that_do_not_depend_on_one_another_are_one_wait() -> None:
    parallel = """
    LDG.E R0, desc[UR4][R10.64]
    LDG.E R1, desc[UR4][R12.64]
    FADD R2, R0, R1
    """
    chain = """
    LDG.E.64 R0, desc[UR4][R10.64]
    LDG.E R2, desc[UR4][R0.64]
    FADD R2, R2, R2
    """
    assert latency.waits(code(parallel)) == Waits(1, 0)
    assert latency.waits(code(chain)) == Waits(2, 0)


def test_a_sector_that_was_read_before_is_near() -> None:
    text = """
    IMAD.WIDE R10, R0, 0x4, R8
    LDG.E R1, desc[UR4][R10.64]
    FADD R2, R1, R1
    IMAD.WIDE R12, R0, 0x4, R8
    LDG.E R3, desc[UR4][R12.64+0x8]
    FADD R2, R2, R3
    """
    assert latency.waits(code(text)) == Waits(1, 1)
    assert latency.waits(code(text.replace("+0x8", "+0x80"))) == Waits(2, 0)
    assert latency.waits(code(text.replace("IMAD.WIDE R12, R0", "IMAD.WIDE R12, R5"))).far == 2


def test_the_slowest_part_bounds() -> None:
    moved = Bytes(floor=100, memory=200, l2=200)
    bytes_alone = estimate(H100, moved)
    assert bytes_alone.bound == "memory"
    assert bytes_alone.ratio == pytest.approx(2)
    units = {"alu": 6400.0}
    busy = estimate(H100, moved, Path(units, Waits(0, 0), rows=32), warps=64)
    assert busy.bound == "issue"
    assert busy.seconds == pytest.approx(6400 * 2 / 32 / (4 * 132 * 1.755e9))
    few = {w: estimate(H100, moved, Path({}, Waits(100, 0), 32), w) for w in (8, 16)}
    assert few[8].bound == "latency"
    assert few[8].seconds == pytest.approx(2 * few[16].seconds)
    near_by = estimate(H100, moved, Path({}, Waits(100, 0), 32, memory=0), 8)
    assert near_by.seconds == pytest.approx(few[8].seconds * H100.cached / H100.far)


def test_multiplications_and_conversions_cost_more_than_their_issue() -> None:
    for unit, cycles in (("control", 1), ("imad", 2), ("lsu", 4), ("xu", 8)):
        assert H100.issue({unit: 1.0}) == pytest.approx(cycles * H100.issue({"control": 1.0}))
    assert DEVICES[1].fp32_lanes == 16
