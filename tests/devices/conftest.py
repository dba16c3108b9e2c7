"""What the tests of devices share."""

from collections.abc import Iterator

import pytest
from fake_backend import Fake

from mpembed._bindings.device import Device


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    yield made
    assert made.device == 3


@pytest.fixture
def device(fake: Fake) -> Device:
    return Device(fake.capsule, 1)
