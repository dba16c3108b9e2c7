"""What the tests of graphs share."""

from collections.abc import Iterator

import graphs
import pytest


@pytest.fixture
def runtime(cuda: str) -> Iterator[graphs.Runtime]:
    with graphs.runtime() as made:
        yield made
