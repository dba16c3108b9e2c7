"""Settings of the test suite: the installed package is tested, never the source tree."""

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import ROOT
from hypothesis import HealthCheck, settings

# The source folder has no compiled modules unless the package is installed in editable mode, which
# puts it on the path by other means than the current directory.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

# Shells let background jobs ignore Ctrl-C, and Python keeps that; some tests interrupt themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    """Say at once what is wrong where the package is not installed."""
    if importlib.util.find_spec("mpembed") is None:
        pytest.exit("mpembed is not installed: pip install '.[test]'", returncode=4)
    if importlib.util.find_spec("mpembed._bindings.memory") is None:
        pytest.exit("mpembed was found without its compiled modules: pip install '.[test]'", 4)


def pytest_report_header() -> list[str]:
    """Say which compilers the tests of headers and C++ programs have found."""
    import compilers

    return compilers.versions()


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what not every run needs, and skip what this machine cannot run."""
    import pairwise

    pairwise.mark(items)
    if importlib.util.find_spec("torch") is None:
        for item in items:
            if item.get_closest_marker("torch"):
                item.add_marker(pytest.mark.skip(reason="PyTorch is not installed"))


@pytest.fixture(scope="session")
def package_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds what the package's wheel installs, and nothing else."""
    import wheel

    base = tmp_path_factory.getbasetemp()
    return wheel.alone((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheel")


@pytest.fixture
def umask() -> Iterator[None]:
    """Let new files be readable by their owner and group, writable by their owner."""
    old = os.umask(0o027)
    yield
    os.umask(old)


@pytest.fixture(scope="session")
def cuda() -> str:
    """Return the name of a CUDA device, real or emulated; tests that ask for it skip without."""
    import cuda_backend

    reason = cuda_backend.missing()
    if reason is not None:
        pytest.skip(f"gpu: {reason}")
    return "cuda:0"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def each_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on every device; see on_device.py."""
    import on_device

    name = request.getfixturevalue("cuda") if request.param == "cuda" else "cpu"
    on_device.use(name)
    yield name
    on_device.use("cpu")
