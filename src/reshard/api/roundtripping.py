"""`roundtrip`: proves that a conversion to a target and back loses nothing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path

from reshard import formats
from reshard.api.arguments import checked
from reshard.api.coming_back import WEIGHTS, Comparer, made_from, remake
from reshard.api.comparing import Mismatch, Pair, pair_tensors, pairs_nbytes
from reshard.api.masters import check_masters
from reshard.api.request import PathLike, Request
from reshard.api.roundtrip_proof import Held, Lost, RoundTrip, StateProof, WayProof, case_names
from reshard.api.source import open_source
from reshard.api.stages import ReadBackError, Stage, Work, first_stage, next_stage
from reshard.api.states import select_states
from reshard.api.target_source import read_target
from reshard.api.training_facts import compare_facts
from reshard.engine.progress import Meter, OnProgress, Progress
from reshard.errors import Diagnostic, Exit, ReshardError, output_error
from reshard.plan.arrangement import Whole
from reshard.plan.build import OnDrift
from reshard.plan.target import Target
from reshard.run.states import MASTER

UNIVERSAL = "universal"

Key = tuple[str, str]
"""(name, state) of a tensor."""


@dataclass(frozen=True, slots=True)
class _Start:
    """The source, and the universal form of it that every way begins with."""

    source: Stage
    universal: Stage
    sample: tuple[Key, ...] | None
    on_drift: OnDrift
    allow_loss: bool
    strict: bool


@checked
def roundtrip(
    src: PathLike,
    via: str | Sequence[str],
    *,
    step: str | None = None,
    layout: PathLike | None = None,
    layout_name: str | None = None,
    settings: Mapping[str, float | None] | None = None,
    model: str | None = None,
    states: str | Iterable[str] = "all",
    on_drift: OnDrift = "error",
    sample: int | None = None,
    allow_loss: bool = False,
    strict: bool = False,
    materialize: bool = False,
    work: PathLike | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    keep_going: bool = False,
) -> RoundTrip:
    """Prove, bit for bit, that a checkpoint comes back from other forms as it was.

    For each target: source -> universal -> target -> universal, and from there every stored piece
    of the source again.  Each target is tried alone; several are tried one after the other too.

    Args:  src, step, layout, layout_name, settings, model, states, on_drift: as for `convert`.
           via: targets, e.g. `deepspeed:zero=2,dp=4`.
           sample: compare so many tensors, chosen evenly; all of them if None.
           allow_loss: what a target cannot hold is told and does no harm.
           strict: a value besides tensors that a target does not keep is a failure too, not only
                   one that it changes.
           materialize: write every target to disk and read it from there.  Without it nothing but
                        what readers look at is written: the targets' tensors are made while they
                        are read.
           work: a folder for what is written; one for temporary files if not given.  What is
                 written is removed.
           threads, max_memory, on_progress: as for `convert`.
           keep_going: a target that is not possible is the `error` of its way in the result, and
                       the other ways are tried.
    Raises: ReshardError when the source cannot be read, or a target is not possible; what does not
            come back is in the result.
    """
    if not via:
        raise _no_target()
    targets = [read_target(text) for text in via]
    if sample is not None and sample < 1:
        raise ValueError(f"sample must be at least 1, not {sample}")
    began = time.monotonic()
    request = Request.of(locals())
    source = open_source(src, request)
    selected = select_states(source, states)
    check_masters(source, selected.arrangement, on_drift)
    keys = _sample([(w.name, w.state) for w in selected.arrangement.wholes], sample)
    with _work_folder(work) as folder:
        how = Work(folder, materialize, request)
        with ExitStack() as stack:
            first = _entered(stack, first_stage(source))
            universal = _entered(
                stack,
                next_stage(
                    first,
                    Target(UNIVERSAL, {}),
                    "universal",
                    how,
                    request=request,
                    digests=sample is None,
                ),
            )
            start = _Start(first, universal, keys, on_drift, allow_loss, strict)
            ways = [
                _tried(start, [target], how, f"way-{number}", keep_going)
                for number, target in enumerate(targets, 1)
            ]
            if len(targets) > 1 and not any(way.error for way in ways):
                ways.append(_tried(start, targets, how, "chain", keep_going))
            first.files.check_unchanged()
    return RoundTrip(
        str(source.path),
        formats.SOURCES[source.catalog.format].title,
        dict(source.catalog.mesh),
        _held(first),
        selected.kinds,
        tuple(dict.fromkeys(whole.state for whole in selected.left_out)),
        keys,
        materialize,
        on_drift,
        tuple(ways),
        time.monotonic() - began,
    )


@checked
def roundtrip_cases(
    src: PathLike, via: str | Sequence[str], *, states: str | Iterable[str] = "all"
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The title of each way of a round trip with its test cases, before it is made.

    Raises: ReshardError[unknown-target], and where the source cannot be read.
    """
    targets = [str(read_target(text)) for text in via]
    selected = select_states(open_source(src), states)
    kinds = dict.fromkeys(whole.state for whole in selected.arrangement.wholes)
    ways = [*targets, ", then ".join(targets)] if len(targets) > 1 else targets
    return tuple((way, case_names(kinds)) for way in ways)


@contextmanager
def _work_folder(parent: PathLike | None) -> Iterator[Path]:
    """A folder that is removed at the end.

    Raises: ReshardError[output-parent-missing | output-unwritable].
    """
    if parent is not None and not Path(parent).is_dir():
        raise output_error(
            "output-parent-missing",
            f"the folder {parent} does not exist",
            notes=["temporary files would be written in it"],
            helps=["create it first, or correct the path"],
        )
    try:
        temporary = tempfile.TemporaryDirectory(prefix="reshard-roundtrip-", dir=parent)
    except OSError as error:
        raise output_error(
            "output-unwritable",
            f"{parent or tempfile.gettempdir()} cannot be written",
            notes=[error.strerror or str(error)],
            helps=["choose another folder for temporary files with `--work DIR`"],
        ) from None
    with temporary as folder:
        yield Path(folder).resolve()


def _entered(stack: ExitStack, stage: Stage) -> Stage:
    stack.enter_context(stage.files)
    return stage


def _sample(keys: Sequence[Key], count: int | None) -> tuple[Key, ...] | None:
    """So many of them, as far apart as can be; the same ones each time."""
    if count is None:
        return None
    count = min(count, len(keys))
    return tuple(keys[number * len(keys) // count] for number in range(count))


def _tried(
    start: _Start, targets: Sequence[Target], how: Work, folder: str, keep_going: bool
) -> WayProof:
    """One way; what makes it impossible is in its proof, where the others are to be tried too."""
    began = time.monotonic()
    title = f"via {', then '.join(map(str, targets))}"
    request = how.request
    how = replace(how, request=replace(request, on_progress=_titled(request.on_progress, title)))
    try:
        way = _way(start, targets, how, folder)
    except ReshardError as error:
        if not keep_going:
            raise
        way = WayProof(tuple(map(str, targets)), error=error)
    return replace(way, seconds=time.monotonic() - began)


def _titled(on_progress: OnProgress | None, title: str) -> OnProgress | None:
    """Progress that says of which way it is."""
    if on_progress is None:
        return None
    tell = on_progress
    return lambda progress: tell(replace(progress, title=title))


def _way(start: _Start, targets: Sequence[Target], how: Work, folder: str) -> WayProof:
    """There and back."""
    via = tuple(map(str, targets))
    stages: list[Stage] = []
    with ExitStack() as stack:
        try:
            before = start.universal
            for number, target in enumerate(targets, 1):
                before = next_stage(before, target, f"{folder}/{number}", how)
                stages.append(_entered(stack, before))
            return _back(start, via, stages, how, folder, stack)
        except ReadBackError as error:
            checkpoints = tuple(_held(stage) for stage in stages)
            return WayProof(
                via,
                checkpoints,
                faults=error.diagnostics,
                allow_loss=start.allow_loss,
                strict=start.strict,
            )


_OF_THE_SOURCE = {"source-changed", "source-truncated", "source-unreadable"}


def _back(
    start: _Start,
    via: tuple[str, ...],
    stages: Sequence[Stage],
    how: Work,
    folder: str,
    stack: ExitStack,
) -> WayProof:
    """From the last target to the universal form, and what is the same there.

    Raises: ReadBackError; ReshardError where the source is at fault, or the work folder.
    """
    universal = Target(UNIVERSAL, {})
    try:
        digests = start.sample is None
        last = next_stage(stages[-1], universal, f"{folder}/back", how, digests=digests)
        return _proof(start, via, stages, _entered(stack, last), how)
    except ReshardError as error:
        mine = any(item.code in _OF_THE_SOURCE for item in error.diagnostics)
        if mine or error.exit_code == Exit.OUTPUT:
            raise
        raise ReadBackError(error) from error


def _proof(
    start: _Start, via: tuple[str, ...], stages: Sequence[Stage], last: Stage, how: Work
) -> WayProof:
    """What came back, held to what set out."""
    reasons = _reasons(stages)
    comparer = Comparer(start.source, start.universal, stages[-1], last, start.on_drift)
    cut, cut_warnings = _cut([start.universal, *stages])
    mismatches: list[Mismatch] = []
    losses: list[Lost] = []
    same: list[Whole] = []
    sample = None if start.sample is None else set(start.sample)
    pairs = [*map(_of_one_state, pair_tensors(start.universal.source, last.source))]
    sizes = pairs_nbytes(pairs)
    meter = Meter(how.request.on_progress, 2 * sum(sizes))  # compared, then cut again and compared
    for (one, other), nbytes in zip(pairs, sizes, strict=True):
        meter.add(nbytes)
        here = one or other
        assert here is not None
        if sample is not None and (here.name, here.state) not in sample:
            continue
        mismatch = None
        if other is None:
            why = reasons.get((here.name, here.state)) or reasons.get(("", here.state))
            derived = made_from(start.universal, here, last)
            if derived is None and why is None:
                mismatch = Mismatch(here.name, here.state, "only in A")
            else:
                losses.append(Lost(here.name, here.state, why or "not stored", derived))
        elif one is None:
            if made_from(last, here, start.universal) is None:
                mismatch = Mismatch(here.name, here.state, "only in B")
        else:
            mismatch = comparer.compare(one, other, cut.get((one.name, one.state)))
            if mismatch is None:
                same.append(here)
            elif (
                mismatch.what == "dtype"
                and here.state in WEIGHTS
                and made_from(start.universal, here, last, state=here.state) is not None
            ):
                why = f"stored as {other.dtype}, not {here.dtype}"
                losses.append(Lost(here.name, here.state, why, f"{other.dtype} {here.state}"))
                mismatch = None
        if mismatch is not None:
            mismatches.append(mismatch)
    keys = {(whole.name, whole.state) for whole in same} - cut.keys()
    checkpoints = tuple(_held(stage) for stage in stages)
    facts = compare_facts(start.universal.source.catalog, last.source.catalog)
    remade = remake(start.source, last, keys, start.on_drift, meter)
    return WayProof(
        via,
        checkpoints,
        _states(same),
        tuple(mismatches),
        remade.places,
        remade.nbytes,
        remade.settled,
        remade.mismatches,
        tuple(losses),
        facts if all(item.is_read for item in checkpoints) else (),
        warnings=(*cut_warnings, *_warnings(stages)),
        allow_loss=start.allow_loss,
        strict=start.strict,
    )


def _cut(stages: Sequence[Stage]) -> tuple[dict[Key, int], list[Diagnostic]]:
    """Rows that are left of tensors of which settings cut some, with the warnings."""
    rows: dict[Key, int] = {}
    warnings: list[Diagnostic] = []
    for before, stage in pairwise(stages):
        cut = None if stage.prepared is None else stage.prepared.source.cut
        if cut is not None:
            rows.update({(w.name, w.state): box.lo[0] for w, box in cut.boxes})
            warnings.append(cut.warning(before.files))
    return rows, warnings


def _of_one_state(pair: Pair) -> Pair:
    """A pair without the side that only stands in for master weights which it does not store."""
    one, other = pair
    if one is None or other is None or one.state == other.state:
        return pair
    return (one, None) if one.state == MASTER else (None, other)


def _reasons(stages: Iterable[Stage]) -> dict[Key, str]:
    """Why tensors have no place, in the words of the first target that has none."""
    out: dict[Key, str] = {}
    for stage in stages:
        if stage.prepared is not None:
            for name, state, why in stage.prepared.output.dropped:
                out.setdefault((name, state), why)
                out.setdefault(("", state), why)  # where the target calls its tensors otherwise
    return out


def _warnings(stages: Iterable[Stage]) -> dict[Diagnostic, None]:
    out: dict[Diagnostic, None] = {}
    for stage in stages:
        if stage.prepared is not None:
            out |= dict.fromkeys(stage.prepared.output.warnings)
    return out


def _held(stage: Stage) -> Held:
    source, prepared = stage.source, stage.prepared
    return Held(
        stage.title,
        source.arrangement.layout.name,
        len(source.arrangement.layout.rules),
        source.proof,
        0 if prepared is None else prepared.report.covered,
        stage.is_read,
        stage.is_written,
    )


def _states(wholes: Iterable[Whole]) -> tuple[StateProof, ...]:
    by_state: dict[str, list[Whole]] = {}
    for whole in wholes:
        by_state.setdefault(whole.state, []).append(whole)
    return tuple(
        StateProof(
            state,
            len(items),
            sum(prod(item.shape) for item in items),
            sum(prod(item.shape) * item.dtype.itemsize for item in items),
        )
        for state, items in by_state.items()
    )


def _no_target() -> ReshardError:
    return ReshardError(
        Diagnostic(
            "usage",
            "a round trip needs a target",
            helps=("name one: `--via deepspeed:zero=2,dp=4`",),
        ),
        Exit.USAGE,
    )
