"""What `roundtrip` proved, as values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from reshard.api.comparing import Mismatch, mismatch_lines
from reshard.api.junit import Case, Suite
from reshard.api.training_facts import FactChange
from reshard.errors import Diagnostic, Exit, ReshardError, render_all
from reshard.plan.prove import Proof
from reshard.plan.shown import Plain, Shown


@dataclass(frozen=True, slots=True)
class Held(Plain, json_keys={"proof": None}):
    """A checkpoint on the way, and what was proved of it without its data.

    Args:  title: path or target.  layout: its name.  rules: each uses every axis exactly once.
           proof: that it stores all that it claims to.
           placed: (tensor, state) pairs with a place for each of their elements; 0 for the source.
           is_read: a reader of its format read it back; else its tensors were found in its files
                    where its plan placed them, and nothing else of it was looked at.
           is_written: all of it was on disk; else its tensors were made while they were read.
    """

    title: str
    layout: str
    rules: int
    proof: Proof
    placed: int = 0
    is_read: bool = True
    is_written: bool = True

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        return {**Plain.to_json(self), **self.proof.to_json()}


@dataclass(frozen=True, slots=True)
class Lost(Plain, json_keys={"derived": "derived_from"}):
    """A tensor that a target does not hold.

    Args:  why: in the words of the target.
           derived: None; or the state of which it is the rounding, element by element.
    """

    name: str
    state: str
    why: str
    derived: str | None = None


@dataclass(frozen=True, slots=True)
class StateProof(Plain):
    """What was compared of one kind of state.

    Args:  tensors, elements, nbytes: that came back.
    """

    state: str
    tensors: int
    elements: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class WayProof(Plain, json_keys=dict.fromkeys(("allow_loss", "strict", "error"))):
    """One way there and back.

    Args:  via: the targets, in order.
           held: every checkpoint on the way, the source left out.
           states: what was compared.
           mismatches: tensors that came back different (A is the source, B what came back).
           places, places_nbytes: stored pieces of the source that were made again from what came
                                  back, and compared with its files.
           settled: pieces of the source that were not, because their copies differ and were settled
                    (`averaged over` in the layout, or `--on-drift`).
           back: pieces that were made different (A is the source's file).
           lost: what a target does not hold.
           facts: values besides tensors that are not the same.
           faults: why the target could not be read back, if so.
           warnings: of the targets.
           allow_loss: what is lost is no failure.  strict: values that are not kept are one.
           error: why this way could not be tried at all: its target is impossible, say.
           seconds: what it took.
    """

    via: tuple[str, ...]
    held: tuple[Held, ...] = ()
    states: tuple[StateProof, ...] = ()
    mismatches: tuple[Mismatch, ...] = ()
    places: int = 0
    places_nbytes: int = 0
    settled: int = 0
    back: tuple[Mismatch, ...] = ()
    lost: tuple[Lost, ...] = ()
    facts: tuple[FactChange, ...] = ()
    faults: tuple[Diagnostic, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()
    allow_loss: bool = False
    strict: bool = False
    error: ReshardError | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        return {
            **Plain.to_json(self),
            "ok": self.ok,
            "tensors": self.tensors,
            "nbytes": self.nbytes,
            **({} if self.error is None else {"error": self.error.to_json()}),
        }

    @property
    def title(self) -> str:
        """The targets in order."""
        return ", then ".join(self.via)

    @property
    def missing(self) -> tuple[Lost, ...]:
        """What is lost for good: no other state tells it."""
        return tuple(item for item in self.lost if item.derived is None)

    @property
    def wrong_facts(self) -> tuple[FactChange, ...]:
        """Values that came back as others; with `strict` also those that did not come back."""
        fates = ("changed", "not kept") if self.strict else ("changed",)
        return tuple(item for item in self.facts if item.fate in fates)

    @property
    def ok(self) -> bool:
        """Everything came back, bit for bit; or is lost and may be."""
        bad = self.error or self.faults or self.mismatches or self.back or self.wrong_facts
        return not bad and (self.allow_loss or not self.missing)

    @property
    def tensors(self) -> int:
        """(tensor, state) pairs that came back."""
        return sum(item.tensors for item in self.states)

    @property
    def nbytes(self) -> int:
        """Their bytes."""
        return sum(item.nbytes for item in self.states)

    def failures(self, state: str) -> tuple[Mismatch | Lost, ...]:
        """What is wrong with one kind of state."""
        found: list[Mismatch | Lost] = [
            x for x in (*self.mismatches, *self.back) if x.state == state
        ]
        if not self.allow_loss:
            found += [item for item in self.missing if item.state == state]
        return tuple(found)


@dataclass(frozen=True, slots=True, repr=False)
class RoundTrip(
    Plain, Shown, json_keys=dict.fromkeys(("path", "title", "mesh")) | {"drift": "on_drift"}
):
    """What `roundtrip` proved.

    Args:  path: of the source.  title: of its format.  mesh: of its ranks.
           source: what was proved of it without its data.
           states: kinds that were asked for; None for all.  left_out: that were not.
           sample: (name, state) of the tensors that were compared; None for all of them.
           materialized: the targets were written to disk and read from there.
           drift: what became of copies that differ: "error", "average", "first".
           ways: each target alone, then all of them in order.
           seconds: what all of it took.
    """

    path: str
    title: str
    mesh: Mapping[str, int]
    source: Held
    states: tuple[str, ...] | None
    left_out: tuple[str, ...]
    sample: tuple[tuple[str, str], ...] | None
    materialized: bool
    drift: str
    ways: tuple[WayProof, ...]
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        source = {"path": self.path, "format": self.title, "mesh": dict(self.mesh)}
        return {**Plain.to_json(self), "source": source | self.source.to_json()}

    @property
    def ok(self) -> bool:
        """Every way leads back."""
        return all(way.ok for way in self.ways)

    @property
    def exit_code(self) -> Exit:
        """6 if anything differs or is lost; else the code of the first way that failed; else 0."""
        if any(not way.ok and way.error is None for way in self.ways):
            return Exit.DIFFERENCE
        return next((way.error.exit_code for way in self.ways if way.error is not None), Exit.OK)

    def summary(self) -> str:
        """In a line."""
        ways = [f"{way.title}: {'ok' if way.ok else 'failed'}" for way in self.ways]
        return f"{self.path} via {'; '.join(ways)}"

    def to_text(self) -> str:
        """For people, 80 columns wide."""
        from reshard.api.roundtrip_text import roundtrip_text

        return roundtrip_text(self)

    def to_junit(self) -> str:
        """For continuous integration: one test case for each way and kind of state."""
        from reshard.api.junit import junit

        return junit("reshard roundtrip", self.suites())

    def suites(self, seconds: float = 0.0) -> tuple[Suite, ...]:
        """For continuous integration: a suite for each way; each knows what it took itself."""

        return roundtrip_suites(self)


TARGET = "target"
READ_BACK = "read back"
VALUES = "training state"


def case_names(states: Iterable[str]) -> tuple[str, ...]:
    """The test cases of one way."""
    return (READ_BACK, *states, VALUES)


def case_failure(way: WayProof, case: str) -> tuple[str, str] | None:
    """Why a test case fails: a headline, and everything else; None if it does not."""
    if way.faults:
        if case != READ_BACK:
            return f"{way.title} could not be read back", ""
        return way.faults[0].headline, render_all(way.faults)
    if case == READ_BACK:
        return None
    if case == VALUES:
        wrong = [f"{item.fate}: {item}" for item in way.wrong_facts]
        return (f"{len(wrong)} values changed or not kept", "\n".join(wrong)) if wrong else None
    found = way.failures(case)
    if not found:
        return None
    different = [item for item in found if isinstance(item, Mismatch)]
    lost = [item for item in found if isinstance(item, Lost)]
    parts = [f"{len(different)} of {case} differ"] if different else []
    parts += [f"{len(lost)} of {case} are lost"] if lost else []
    lines = [f"{item.name} ({item.state}) is lost: {item.why}" for item in lost]
    return ", ".join(parts), "\n".join([*lines, *mismatch_lines(different)]).strip("\n")


def roundtrip_suites(found: RoundTrip) -> tuple[Suite, ...]:
    """A suite for each way; one that could not be tried has a single case, its target."""
    return tuple(
        Suite(f"via {way.title}", found.path, tuple(_cases(way)), way.seconds) for way in found.ways
    )


def _cases(way: WayProof) -> Iterator[Case]:
    if way.error is not None:
        yield Case(TARGET, error=way.error)
        return
    for case in case_names(_states(way)):
        yield Case(case, case_failure(way, case))


def _states(way: WayProof) -> tuple[str, ...]:
    """Every kind of state of a way, whether it came back or not."""
    states = [item.state for item in way.states]
    states += [item.state for item in (*way.mismatches, *way.back)]
    states += [item.state for item in way.lost]
    return tuple(dict.fromkeys(states))
