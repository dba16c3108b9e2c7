"""Captured steps mark what they write; what is captured before the tracking would not."""

from __future__ import annotations

from typing import Any

import pytest
from changed_bits import changed, track
from reference.pair import assert_same
from twins import Twins, mixed

import mpembed as mpe

pytestmark = pytest.mark.gpu


def test_launches_mark_what_the_cpu_marks(runtime: Any) -> None:
    twins = Twins(runtime, mixed(), cache=mpe.CacheConfig(num_sets=1, ways=32))
    for emb in (twins.there, twins.here):
        track(emb)
    graph = twins.captured()
    for step in range(4):
        if step == 2:  # forgotten, while the graph has the bitmaps' addresses
            for emb in (twins.there, twins.here):
                track(emb)
        twins.draw()
        graph.launch(twins.stream)
        twins.step_here()
        assert_same(changed(twins.there), changed(twins.here), "bitmaps")
    assert any(bitmap.any() for bitmap in changed(twins.here).values())


def test_it_starts_before_a_capture(runtime: Any) -> None:
    twins = Twins(runtime, mixed(), cache=mpe.CacheConfig(num_sets=1, ways=32))
    twins.captured()
    with pytest.raises(RuntimeError, match="start before the capture"):
        track(twins.there)
