"""Settings of the test suite: the installed package is tested, never the source tree."""

import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import ROOT

# The source folder has no compiled modules unless the package is installed in editable mode, which
# puts it on the path by other means than the current directory.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

# Shells let background jobs ignore Ctrl-C, and Python keeps that; some tests interrupt themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

HAS_HYPOTHESIS = importlib.util.find_spec("hypothesis") is not None
if HAS_HYPOTHESIS:
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    """Say at once what is wrong where the package or what the tests need is not installed."""
    if importlib.util.find_spec("mpembed") is None:
        pytest.exit("mpembed is not installed: pip install '.[test]'", returncode=4)
    if importlib.util.find_spec("mpembed._bindings.memory") is None:
        pytest.exit("mpembed was found without its compiled modules: pip install '.[test]'", 4)
    if not HAS_HYPOTHESIS and not of_a_device(config):
        pytest.exit(
            "Hypothesis is not installed: pip install '.[test]'; without it, run the tests of a "
            "device alone: pytest -m gpu",
            returncode=4,
        )


def of_a_device(config: pytest.Config) -> bool:
    """Whether the tests of a device were asked for, and no others."""
    return re.fullmatch(r"gpu( and .*)?", config.option.markexpr) is not None


def pytest_report_header() -> list[str]:
    """Say which compilers the tests have found, and which files are left out."""
    import compilers
    import device_files

    found = compilers.versions()
    if not HAS_HYPOTHESIS:
        names = ", ".join(device_files.without_hypothesis())
        found.append(f"left out, because Hypothesis is not installed: {names}")
    return found


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of a run of the tests of a device, leave out the other files, and those that need more."""
    import device_files

    if not of_a_device(config) or collection_path.suffix != ".py":
        return None
    if not device_files.has_tests_of_a_device(collection_path):
        return True
    return True if not HAS_HYPOTHESIS and device_files.needs_hypothesis(collection_path) else None


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what not every run needs, and skip what this machine cannot run."""
    import device_files
    import pairwise

    for path in {item.path for item in items if item.get_closest_marker("gpu")}:
        if not device_files.has_tests_of_a_device(path):
            raise pytest.UsageError(f"{path} has tests of a device, but names no mark.gpu")
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


@pytest.fixture(autouse=True, scope="session")
def compiled_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what mpembed compiles in a folder of this run, which all its workers share."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        patch.setenv("MPEMBED_CACHE_DIR", str(shared / "compiled"))
        yield


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
