"""Benchmarks take one thread by default; MPEMBED_NUM_THREADS gives more, to PyTorch too."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def same_threads() -> int:
    """Give PyTorch as many threads as mpembed has."""
    import mpembed as mpe

    try:
        import torch
    except ModuleNotFoundError:
        return mpe.get_num_threads()
    torch.set_num_threads(mpe.get_num_threads())
    return mpe.get_num_threads()
