"""What a collection will take is what its report counts once it is made."""

from __future__ import annotations

from typing import Any

import kinds
import on_device
import pytest

import mpembed as mpe
from mpembed._collection.memory_plan import memory_plan
from mpembed._collection.settings import Settings

PARTS = ("tables", "caches", "statistics")


def settings(tables: Any, cache: Any, optimizer: Any) -> Settings:
    return Settings.checked(tables, cache, optimizer, "cpu", 0, "stochastic", "raise", "raise")


def tables_of(precision: str) -> list[mpe.TableConfig]:
    return [
        mpe.TableConfig("narrow", 1000, 7, precision=precision),
        mpe.TableConfig("wide", 777, 64, precision=precision, first_row=5, total_rows=2000),
        mpe.TableConfig("other", 50, 64, precision="fp16", optimizer=mpe.SGD(lr=0.1)),
        mpe.TableConfig("frozen", 300, 64, precision=precision, trainable=False),
        mpe.TableConfig("empty", 0, 64, precision=precision),
    ]


@pytest.mark.usefixtures("each_device")
@pytest.mark.pairwise
@pytest.mark.parametrize("policy", [None, *mpe.registry.POLICIES])
@pytest.mark.parametrize("kind", kinds.NAMES)
@pytest.mark.parametrize("precision", mpe.registry.FORMATS)
def test_the_plan_is_the_report_of_the_collection(
    precision: str, kind: str, policy: str | None
) -> None:
    cache = None if policy is None else mpe.CacheConfig(load_factor=0.07, policy=policy)
    tables, optimizer = tables_of(precision), kinds.named(kind)
    report = on_device.make(tables, cache=cache, optimizer=optimizer).memory_report()
    plan = memory_plan(settings(tables, cache, optimizer), aligned=report["descriptors"] > 0)
    assert {name: plan[name] for name in PARTS} == {name: report[name] for name in PARTS}
    assert plan["total"] == report["total"] - report["descriptors"]


def test_the_device_of_the_settings_decides_by_default() -> None:
    given = settings([mpe.TableConfig("t", 100, 33, precision="int8")], None, mpe.Adam(lr=0.1))
    assert memory_plan(given) == memory_plan(given, aligned=False)
    assert memory_plan(given)["tables"]["t"]["padding"] == 0
