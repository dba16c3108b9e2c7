"""Without TorchRec the other modules work, and the error says what to install."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from programs import finish, start

pytestmark = pytest.mark.torch
PROGRAM = """
    import sys

    sys.modules["torchrec"] = None  # an import fails, whether it is installed or not
    import torch
    import mpembed as mpe
    from mpembed import torch as mt

    tables = mt.EmbeddingBag(4, 2, optimizer=mpe.SGD(lr=0.1))
    tables(torch.tensor([[1, 2]])).sum().backward()
    try:
        import mpembed.torch.torchrec
    except ImportError as error:
        assert "pip install --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0" in str(error), error
        print("trained")
"""


def test_torch_works_without_torchrec(tmp_path: Path) -> None:
    finish(start(tmp_path, PROGRAM))
