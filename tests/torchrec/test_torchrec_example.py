"""examples/torchrec_dlrm.py: TorchRec's DLRM on two ranks that torchrun starts."""

from __future__ import annotations

import re
from pathlib import Path

import last_threads
import pytest
from folders import ROOT
from programs import torchrun

pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed", exc_type=ImportError)

pytestmark = [pytest.mark.torch, pytest.mark.torchrec, pytest.mark.filterwarnings("ignore")]
LINE = re.compile(
    r"^rank (\d): loss (\d\.\d+) -> (\d\.\d+), tables (\d+\.\d+) MB, in FP32 (\d+\.\d+)$", re.M
)


def test_it_learns_in_less_memory(tmp_path: Path) -> None:
    example = str(ROOT / "examples" / "torchrec_dlrm.py")
    done = torchrun(tmp_path, last_threads.PROGRAM, example, "100")
    assert done.returncode == 0, done.stderr
    assert last_threads.left(done) == ["0", "0"]
    found = LINE.findall(done.stdout)
    assert [rank for rank, *_ in found] == ["0", "1"]
    for _, first, last, own, fp32 in found:
        assert float(last) < float(first) - 0.08
        assert float(own) < 0.4 * float(fp32)
