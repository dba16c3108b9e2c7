"""examples/torchrec_dlrm.py: TorchRec's DLRM on two ranks that torchrun starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from folders import ROOT

pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed", exc_type=ImportError)

pytestmark = [pytest.mark.torch, pytest.mark.torchrec, pytest.mark.filterwarnings("ignore")]
LINE = re.compile(
    r"^rank (\d): loss (\d\.\d+) -> (\d\.\d+), tables (\d+\.\d+) MB, in FP32 (\d+\.\d+)$", re.M
)


def test_it_learns_in_less_memory(tmp_path: Path) -> None:
    example = str(ROOT / "examples" / "torchrec_dlrm.py")
    launch = [sys.executable, "-P", "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launch, "--nproc-per-node", "2", example, "100"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = LINE.findall(done.stdout)
    assert [rank for rank, *_ in found] == ["0", "1"]
    for _, first, last, own, fp32 in found:
        assert float(last) < float(first) - 0.08
        assert float(own) < 0.4 * float(fp32)
