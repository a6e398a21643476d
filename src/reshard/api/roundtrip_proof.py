"""What `roundtrip` proved: as values, as text of 80 columns, and as test cases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from reshard.api.comparing import Mismatch, mismatch_lines
from reshard.api.junit import Case, Suite, junit
from reshard.api.training_facts import FactChange
from reshard.errors import Diagnostic, Exit, ReshardError, render_all
from reshard.plan.names import group_names
from reshard.plan.prove import Proof
from reshard.plan.report import proved, show_mesh
from reshard.plan.shown import Plain, Shown
from reshard.plan.text import WIDTH, facts, show_count, show_nbytes, show_seconds, wrap

_MAX_FACTS = 12
_INNER = re.compile(r"[.]?[$[]")  # where a value of several parts begins
_WRITTEN = "from a temporary folder, because opening this format compares tensors"
_BY_PLAN = (
    "not read back, because reshard cannot read this format: the planned files store every tensor, "
    "but their other contents were not compared"
)


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
        failures: list[Mismatch | Lost] = [
            x for x in (*self.mismatches, *self.back) if x.state == state
        ]
        if not self.allow_loss:
            failures += [item for item in self.missing if item.state == state]
        return tuple(failures)


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
        return roundtrip_text(self)

    def to_junit(self) -> str:
        """For continuous integration: one test case for each way and kind of state."""
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
    failures = way.failures(case)
    if not failures:
        return None
    different = [item for item in failures if isinstance(item, Mismatch)]
    losses = [item for item in failures if isinstance(item, Lost)]
    parts = [f"{len(different)} of {case} differ"] if different else []
    parts += [f"{len(losses)} of {case} are lost"] if losses else []
    lines = [f"{item.name} ({item.state}) is lost: {item.why}" for item in losses]
    return ", ".join(parts), "\n".join([*lines, *mismatch_lines(different)]).strip("\n")


def roundtrip_suites(result: RoundTrip) -> tuple[Suite, ...]:
    """A suite for each way; one that could not be tried has a single case, its target."""
    return tuple(
        Suite(f"via {way.title}", result.path, tuple(_cases(way)), way.seconds)
        for way in result.ways
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


def roundtrip_text(result: RoundTrip) -> str:
    """The answer of `reshard roundtrip`."""
    lines = [f"round trip of {result.path}"]
    states = None if result.states is None else ", ".join(result.states)
    if result.left_out:
        states = f"{states}; not {', '.join(result.left_out)}"
    lines += facts(
        [
            ("source", f"{result.title}, {show_mesh(result.mesh)}"),
            ("layout", _layout(result.source)),
            ("stored", _stored(result.source)),
            ("states", states or "all"),
            ("sample", _sample(result)),
            ("drift", "" if result.drift == "error" else f"resolved by: {result.drift}"),
        ]
    )
    for way in result.ways:
        lines += ["", *_way(way, result.materialized)]
    failed = [way for way in result.ways if not way.ok]
    if failed:
        impossible = sum(way.error is not None for way in failed)
        end = f"failed: {len(failed)} of {_ways(result)}"
        end += f", {impossible} of them not possible" if impossible else ""
    elif any(way.missing for way in result.ways):
        end = f"proved: {_ways(result)}, every tensor that a target stores comes back"
    else:
        of = "" if result.sample is None else " of the sample"
        end = f"proved: {_ways(result)}, every tensor{of} comes back"
    return "\n".join([*lines, "", end, f"  in {show_seconds(result.seconds)}"])


def _ways(result: RoundTrip) -> str:
    return show_count(len(result.ways), "round trip")


def _way(way: WayProof, materialized: bool) -> list[str]:
    if way.error is not None:
        head = "not possible"
    elif way.faults:
        head = "cannot be read back"
    elif way.ok:
        head = "equal bit for bit"
    else:
        bad = len(way.mismatches) + len(way.back)
        parts = [f"{show_count(bad, 'tensor')} different"] if bad else []
        if way.missing and not way.allow_loss:
            parts.append(f"{len(way.missing):,} lost")
        if way.wrong_facts:
            parts.append(f"{show_count(len(way.wrong_facts), 'value')} changed or not kept")
        head = ", ".join(parts)
    lines = wrap(f"via {way.title}: {head}", WIDTH, indent="    ")
    if way.error is not None:
        return [*lines, "", str(way.error)]
    if way.faults:
        return [*lines, "", render_all(way.faults)]
    pairs = []
    for checkpoint in way.held:
        pairs.append(("placed", f"every element of {show_count(checkpoint.placed, 'tensor')}"))
        pairs.append(("layout", _layout(checkpoint)))
        pairs.append(("stored", _stored(checkpoint)))
        if not checkpoint.is_read:
            pairs.append(("read", _BY_PLAN))
        elif checkpoint.is_written and not materialized:
            pairs.append(("read", _WRITTEN))
    how = ", read from disk" if materialized else ""
    back = f"{show_count(way.tensors, 'tensor')}, {show_nbytes(way.nbytes)}{how}"
    pairs.append(("returned", back))
    pairs.append(("rebuilt", _source(way)))
    derived = [item for item in way.lost if item.derived is not None]
    if derived:
        kinds = ", ".join(dict.fromkeys(item.state for item in derived))
        why = f"{kinds} of {show_count(len(derived), 'tensor')} is not stored; every element of it"
        pairs.append(("derived", f"{why} equals the rounded {derived[0].derived}"))
    lines += facts(pairs)
    lines += _lost(way.missing)
    lines += _facts(way)
    if way.mismatches:
        lines += ["", "A is the source, B what came back", *mismatch_lines(way.mismatches)]
    if way.back:
        lines += ["", "A is the source, B the same array rebuilt", *mismatch_lines(way.back)]
    return lines


def _source(way: WayProof) -> str:
    text = f"{show_count(way.places, 'array')} of the source, {show_nbytes(way.places_nbytes)}"
    if way.settled:
        text += f"; not {way.settled:,} whose copies differ (see --on-drift)"
    return text


def _layout(checkpoint: Held) -> str:
    return f"{checkpoint.layout}: {show_count(checkpoint.rules, 'rule')}, one to one"


def _stored(checkpoint: Held) -> str:
    return proved(checkpoint.proof, copies=True)


def _sample(result: RoundTrip) -> str:
    if result.sample is None:
        return ""
    names = ", ".join(f"{name} ({state})" for name, state in result.sample[:3])
    more = "" if len(result.sample) <= 3 else ", ..."
    return f"only {show_count(len(result.sample), 'tensor')}: {names}{more}"


def _lost(losses: Sequence[Lost]) -> list[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for item in losses:
        groups.setdefault((item.state, item.why), []).append(item.name)
    lines = []
    for (state, why), names in groups.items():
        head = f"lost: {state} of {show_count(len(names), 'tensor')}: {why}"
        lines += [f"  {line}" for line in wrap(head, WIDTH - 2, indent="  ")]
        patterns = group_names(names)
        lines += [f"      {pattern}" for pattern, _ in patterns[:_MAX_FACTS]]
        if len(patterns) > _MAX_FACTS:
            lines.append(f"      and {len(patterns) - _MAX_FACTS:,} more")
    return lines


def _facts(way: WayProof) -> list[str]:
    lines = []
    changed = [item for item in way.facts if item.fate == "changed"]
    for item in changed[:_MAX_FACTS]:
        lines += _fact(f"changed: {item}")
    if len(changed) > _MAX_FACTS:
        lines.append(f"  changed: {len(changed) - _MAX_FACTS:,} more")
    for fate in ("not kept", "added"):
        groups: dict[str, list[str]] = {}
        for item in way.facts:
            if item.fate == fate:
                groups.setdefault(_INNER.split(item.path)[0], []).append(str(item))
        values = [
            items[0] if len(items) == 1 else f"{path} ({len(items):,} values)"
            for path, items in groups.items()
        ]
        if values:
            lines += _fact(f"{fate}: {', '.join(values)}")
    return lines


def _fact(text: str) -> list[str]:
    return [f"  {line}" for line in wrap(text, WIDTH - 2, indent="  ")]
