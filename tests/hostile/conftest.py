"""The tables of messages, and a process in which everything is imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from expected_messages import Expected
from limited import warm_up


@pytest.fixture(scope="session")
def expected(request: pytest.FixtureRequest) -> Iterator[Expected]:
    """The tables of messages."""
    tables = Expected(bool(request.config.getoption("--update-golden")))
    yield tables
    tables.write()


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one conversion has been done: what is forked from now on starts quickly."""
    folder = tmp_path_factory.mktemp("warm")
    warm_up(folder)
    return folder
