"""Round trips as tests: `pytest --reshard SRC --via TARGET`, and the fixture `reshard_roundtrip`.

docs/ci.md shows both.  Nothing of reshard is imported until one of them is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from _pytest._code.code import TerminalRepr

    from reshard.api import RoundTrip, WayProof
    from reshard.errors import ReshardError

READ_BACK = "read back"
"""The first test of every way."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("reshard", "round trips of checkpoints")
    group.addoption(
        "--reshard",
        action="append",
        default=[],
        metavar="SRC",
        help="test that this checkpoint comes back from every --via, bit for bit",
    )
    group.addoption(
        "--via",
        action="append",
        default=[],
        metavar="TARGET",
        help="a form that it goes through, e.g. deepspeed:zero=2,dp=4",
    )
    group.addoption(
        "--reshard-states", default="all", metavar="KINDS", help="which states; all if left out"
    )
    group.addoption(
        "--reshard-sample", type=int, metavar="N", help="compare N tensors alone, evenly chosen"
    )
    group.addoption(
        "--reshard-allow-loss",
        action="store_true",
        help="what a target cannot hold is no failure",
    )
    group.addoption(
        "--reshard-strict",
        action="store_true",
        help="a setting that a target does not keep is a failure",
    )


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add one test for each way and kind of state."""
    sources, via = config.getoption("--reshard"), config.getoption("--via")
    if bool(sources) != bool(via):
        missing = "--via TARGET" if sources else "--reshard SRC"
        raise pytest.UsageError(f"a round trip needs {missing} too")
    for source in sources:
        name = f"reshard {source}"
        collector = SourceCollector.from_parent(session, name=name, nodeid=name)
        collector.begin(source, via)
        items.extend(collector.collect())


class SourceCollector(pytest.Collector):
    """A checkpoint, and the round trip of it that all of its tests share."""

    _source: str
    _via: Sequence[str]
    _found: RoundTrip | None = None

    def begin(self, source: str, via: Sequence[str]) -> None:
        """Say what is tested."""
        self._source = source
        self._via = via

    def collect(self) -> Iterator[RoundTripItem]:
        """The tests; the source is looked at, and no tensor of it is read.

        A source that cannot be read is one test, which fails.
        """
        from reshard.api import roundtrip_cases
        from reshard.errors import Exit, ReshardError

        try:
            cases = roundtrip_cases(
                self._source, self._via, states=self.config.getoption("--reshard-states")
            )
        except ReshardError as error:
            if error.exit_code == Exit.TARGET:
                raise pytest.UsageError(str(error)) from None  # the text of a target is wrong
            item = RoundTripItem.from_parent(self, name="read")
            item.begin(0, "read", error)
            yield item
            return
        for way, (title, names) in enumerate(cases):
            for case in names:
                item = RoundTripItem.from_parent(self, name=f"via {title}: {case}")
                item.begin(way, case)
                yield item

    def way(self, number: int) -> WayProof | None:
        """One way, proved; the first that is asked for proves all.

        None is the way through all targets, where one of them is not possible.
        """
        if self._found is None:
            from reshard.api import roundtrip

            option = self.config.getoption
            self._found = roundtrip(
                self._source,
                self._via,
                states=option("--reshard-states"),
                sample=option("--reshard-sample"),
                allow_loss=option("--reshard-allow-loss"),
                strict=option("--reshard-strict"),
                keep_going=True,
            )
        ways = self._found.ways
        return ways[number] if number < len(ways) else None


class RoundTripItem(pytest.Item):
    """One kind of state that went one way."""

    _way: int
    _case: str
    _error: ReshardError | None = None

    def begin(self, way: int, case: str, error: ReshardError | None = None) -> None:
        """Say what is tested, or why it cannot be."""
        self._way = way
        self._case = case
        self._error = error

    def runtest(self) -> None:
        """Fail if something did not come back.

        A target that is not possible fails the first of its tests, and the others are skipped.
        """
        from reshard.api import case_failure

        if self._error is not None:
            raise self._error
        assert isinstance(self.parent, SourceCollector)
        way = self.parent.way(self._way)
        if way is None:
            pytest.skip("a target of this way is not possible")
        if way.error is not None:
            if self._case != READ_BACK:
                pytest.skip("the target is not possible")
            raise way.error
        failure = case_failure(way, self._case)
        if failure is not None:
            raise NotTheSameError("\n\n".join(filter(None, failure)))

    def repr_failure(
        self,
        excinfo: pytest.ExceptionInfo[BaseException],
        style: object = None,
    ) -> str | TerminalRepr:
        """What differs, without a traceback."""
        from reshard.errors import ReshardError

        if isinstance(excinfo.value, NotTheSameError | ReshardError):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where and what, for reports."""
        return self.path, None, f"{getattr(self.parent, 'name', '')} {self.name}"


class NotTheSameError(AssertionError):
    """What came back is not what set out."""


class RoundTripCheck(Protocol):
    """What the fixture gives: a function that fails the test if something does not come back."""

    def __call__(self, src: str | Path, *via: str, **options: object) -> RoundTrip:
        """Args: as for `reshard.roundtrip`."""


@pytest.fixture
def reshard_roundtrip(tmp_path: Path) -> RoundTripCheck:
    """A function `(src, *via, **options)` that fails if the checkpoint does not come back.

    Its options are those of `reshard.roundtrip`, and it returns what that does.
    """

    def check(src: str | Path, *via: str, **options: object) -> RoundTrip:
        from reshard.api import roundtrip

        options.setdefault("work", tmp_path)
        found = roundtrip(src, via, **options)  # type: ignore[arg-type]
        if not found.ok:
            pytest.fail(found.to_text(), pytrace=False)
        return found

    return check
