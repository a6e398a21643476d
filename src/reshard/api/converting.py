"""`plan` and `convert`: from a source to a target, and what that came to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reshard import formats
from reshard.api.apart import check_apart, check_files_apart
from reshard.api.arguments import checked
from reshard.api.drifting import drift_warnings
from reshard.api.masters import with_versions
from reshard.api.memory import Resident, fit_memory, refuse_beforehand
from reshard.api.promises import next_step, refuse_unfinished
from reshard.api.request import PathLike, Request
from reshard.api.source import OpenedSource
from reshard.api.states import Selected, select_states
from reshard.api.target_source import open_for_target, read_target
from reshard.engine.progress import Progress
from reshard.errors import Diagnostic, target_error
from reshard.models.adapters import is_complete_adapter
from reshard.plan.build import OnDrift, build_plan
from reshard.plan.collector import uncollected
from reshard.plan.fate import fates
from reshard.plan.kept_states import without_kept_states
from reshard.plan.left_text import left_warnings
from reshard.plan.output import FileBytes, Output, Written
from reshard.plan.plan import Plan
from reshard.plan.prove_target import prove_target
from reshard.plan.report import PlanReport, SourceFacts, not_written_lines
from reshard.plan.shown import Shown
from reshard.plan.target import Target, parse_target
from reshard.plan.text import show_count, show_nbytes, show_pace
from reshard.store.regular_file import as_source_error

if TYPE_CHECKING:
    from reshard.store.source_files import SourceFiles
    from reshard.store.store import Destination


@dataclass(frozen=True, slots=True)
class Resumed:
    """What an earlier run of the same conversion had written, read again and found right.

    Args:  arrays: pieces of the target.  nbytes: of them.
    """

    arrays: int
    nbytes: int

    def to_text(self) -> str:
        """In a few words."""
        arrays = show_count(self.arrays, "array")
        return f"reused from an interrupted run: {arrays}, {show_nbytes(self.nbytes)}"


@dataclass(frozen=True, slots=True, repr=False)
class Converted(Shown):
    """What `convert` did.

    Args:  path: of the new folder.  report: the plan that was followed.
           seconds: from the first look at the source to the last byte in place.
           dry_run: nothing was written.
           resumed: what an earlier run had written, and was not written again.
           next_step: what to do with the folder.
    """

    path: Path
    report: PlanReport
    seconds: float
    dry_run: bool = False
    resumed: Resumed = field(default_factory=lambda: Resumed(0, 0))
    next_step: str = ""

    def summary(self) -> str:
        """In a line."""
        verb = "would write" if self.dry_run else "wrote"
        return f"{verb} {self.path}, {show_nbytes(self.report.nbytes_written)}"

    def to_text(self) -> str:
        """What was written, and what to do next."""
        report = self.report
        tensors = sum(fate.is_written for fate in report.fates)
        missing = not_written_lines(report.fates)
        files = f"{show_nbytes(report.nbytes_written)} in {show_count(len(report.files), 'file')}"
        target = formats.TARGETS[
            parse_target(report.target, formats.TARGETS, formats.described_names()).format
        ]
        lines = [f"wrote a {target.title} to {self.path}"]
        lines.append(f"  {show_count(tensors, 'tensor')}, {files}")
        if self.resumed.arrays:
            lines.append(f"  {self.resumed.to_text()}")
        lines.append(f"  {show_pace(report.nbytes_written, self.seconds)}")
        if missing:
            lines += ["", *missing]
        return "\n".join([*lines, "", f"next: {self.next_step}"])

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        return {
            "path": str(self.path),
            "dry_run": self.dry_run,
            "seconds": round(self.seconds, 3),
            "resumed": {"arrays": self.resumed.arrays, "nbytes": self.resumed.nbytes},
            **self.report.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is decided before any byte is moved."""

    source: OpenedSource
    target: Target
    output: Output
    plan: Plan
    report: PlanReport
    threads: int
    buffer_nbytes: int


@checked
def plan(
    src: PathLike,
    to: str,
    *,
    step: str | None = None,
    layout: PathLike | None = None,
    layout_name: str | None = None,
    settings: Mapping[str, float | None] | None = None,
    model: str | None = None,
    names: str | None = None,
    places: Iterable[str] = (),
    states: str | Iterable[str] = "all",
    dtype: str | None = None,
    on_drift: OnDrift = "error",
    check: bool = False,
    threads: int | None = None,
    max_memory: int | None = None,
    max_file_size: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    config: PathLike | None = None,
    leave_out: Iterable[str] = (),
) -> PlanReport:
    """What `convert` would do with the same arguments; nothing is written.

    Args and Raises: as for `convert`.
    """
    return _prepare(src, to, Request.of(locals())).report


@checked
def convert(
    src: PathLike,
    dst: PathLike,
    to: str,
    *,
    step: str | None = None,
    layout: PathLike | None = None,
    layout_name: str | None = None,
    settings: Mapping[str, float | None] | None = None,
    model: str | None = None,
    names: str | None = None,
    places: Iterable[str] = (),
    states: str | Iterable[str] = "all",
    dtype: str | None = None,
    on_drift: OnDrift = "error",
    check: bool = False,
    force: bool = False,
    threads: int | None = None,
    max_memory: int | None = None,
    max_file_size: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    dry_run: bool = False,
    config: PathLike | None = None,
    leave_out: Iterable[str] = (),
) -> Converted:
    """Write a checkpoint in another form, or at another size; bit for bit, or not at all.

    Args:  src: the folder of a run (with its `latest` file) or of one step; step: which one.
           dst: the new folder; its parent must exist.  It appears when all of it is written.
           to: `format[:key=value,...]`, e.g. `universal` or `deepspeed:zero=2,dp=4`.
           layout: a UCL file that is used instead of what the source says about itself;
                   layout_name: which layout of it.  settings: sizes that win over the source's.
           model: of which the source is; found by its names if not given.
           names: call the tensors as this layout of the model does, e.g. `hf`; a target with names
                  of its own chooses them.
           places: `axis=mesh:how`, e.g. `layer=pp:8,9,9,6`: how axes lie on the target's ranks.
           states: `all`, `weights`, or kinds of state.
           dtype: an element type for the weights, `bf16`; or by state, `param=bf16,exp_avg=fp32`.
           on_drift: what to do where copies differ that should not: "error", "average", "first".
           check: read all of the source first, and hold it to its own digests or checksums.
           force: replace what is at `dst`, if reshard wrote all of it.
           config: the model's `config.json`, or a folder that holds it, for a source without one.
           leave_out: tensors that are not wanted, as names with `*` in them.
           threads, max_memory (bytes): bounds of the work.  max_file_size: in bytes, of universal.
           on_progress: is called now and then, from any thread.  dry_run: plan only.
    Raises: ReshardError; what it says is in docs/errors/.
    """
    from time import perf_counter

    from reshard.store.destination import check_beforehand

    start = perf_counter()
    request = Request.of(locals())
    target_path = Path(dst)
    check_apart(Path(src), target_path, files=[Path(request.layout)] if request.layout else ())
    check_beforehand(target_path, force)
    prepared = _prepare(src, to, request)
    catalog = prepared.source.catalog
    read = (file.path for file in catalog.files)
    with as_source_error(Path(src)):
        is_folder = Path(src).is_dir()
    check_files_apart(target_path, catalog.root, read, is_folder=is_folder)
    report, resumed = prepared.report, Resumed(0, 0)
    if not dry_run:
        files, resumed, notes = _write(prepared, target_path, force, on_progress)
        report = replace(
            report,
            files=tuple(files.items()),
            nbytes_written=sum(files.values()),
            warnings=(*report.warnings, *notes),
        )
    seconds = perf_counter() - start
    return Converted(
        target_path,
        report,
        seconds,
        dry_run,
        resumed,
        next_step(
            prepared.target.format,
            prepared.source.named,
            report.source.path,
            target_path,
            request,
            report=report,
            makes_weights=prepared.output.makes_weights,
            described=prepared.target.layout if prepared.target.layout_file is not None else None,
            adapter=is_complete_adapter(prepared.source.catalog),
            has_code="auto_map" in (prepared.source.catalog.config or {}),
        ),
    )


def _prepare(src: PathLike, to: str, request: Request) -> Prepared:
    before = Resident.now()
    target = read_target(to)
    source = open_for_target(src, target, request)
    refuse_beforehand(len(source.catalog.tensors), request.max_memory, before)
    if source.cut is not None:
        with source.files() as files:
            source = source.with_warnings([source.cut.warning(files)])
    prepared = prepare_source(source, target, request, before)
    refuse_unfinished(source, target, prepared.output)
    return prepared


@uncollected
def prepare_source(
    source: OpenedSource, target: Target, request: Request, before: Resident | None = None
) -> Prepared:
    """All that is decided of a conversion before any byte is moved.

    Args:  before: what the process held in memory before it opened the source.
    Raises: as for `convert`.
    """
    selected = select_states(source, request.states)
    warnings = tuple(drift_warnings(source, selected.arrangement, request.on_drift))
    if warnings:
        source = source.with_warnings(warnings)
        selected = select_states(source, request.states)
    arrangement = selected.arrangement
    output = _output(source, selected, target, request.max_file_size)
    array_plan = build_plan(arrangement, output.placed, on_drift=request.on_drift)
    work = fit_memory(
        array_plan, threads=request.threads, max_nbytes=request.max_memory, before=before
    )
    files = file_sizes(output)
    source, output = with_versions(source, arrangement, output)
    excused = {(name, state) for name, state, _ in (*output.dropped, *output.folded)}
    left = formats.left_by(target.format, source.catalog)
    title = formats.SOURCES[source.catalog.format].title
    report = PlanReport(
        SourceFacts.of(source.catalog, title, str(source.path)),
        str(target),
        fates(
            arrangement,
            array_plan,
            dropped=output.dropped,
            folded=output.folded,
            left_out=selected.left_out,
        ),
        tuple(files.items()),
        array_plan.bytes_read,
        sum(files.values()),
        work.peak_nbytes,
        source.proof,
        prove_target(arrangement, output.placed, excused),
        (*source.catalog.oddities, *output.warnings, *left_warnings(left)),
        left,
    )
    return Prepared(source, target, output, array_plan, report, work.threads, work.buffer_nbytes)


def _output(
    source: OpenedSource, selected: Selected, target: Target, max_file_size: int | None
) -> Output:
    if target.format == "universal":
        # It records in its provenance what was left out.
        settings: dict[str, object] = {"states": selected.kinds}
        if max_file_size is not None:
            settings["max_file_nbytes"] = max_file_size
        whole = source.arrangement
        arrangement = whole if selected.kinds is None else without_kept_states(whole)
        return formats.prepare(arrangement, target, settings)
    described = target.described
    if described is not None:
        return formats.prepare(selected.arrangement, target, {"layout": described})
    if target.format == "hf":
        return formats.prepare(
            selected.arrangement,
            target,
            {} if max_file_size is None else {"max_file_nbytes": max_file_size},
        )
    if max_file_size is not None:
        raise target_error(
            "unused-setting",
            f"target `{target.format}` does not support a maximum file size",
            notes=["the size of its files follows from its ranks"],
            helps=["omit `--max-file-size`"],
        )
    return formats.prepare(selected.arrangement, target, {})


def _write(
    prepared: Prepared,
    dst: Path,
    force: bool,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[dict[str, int], Resumed, tuple[Diagnostic, ...]]:
    """Make the folder, or end what an earlier run began.

    Returns: every file with its size in bytes, what was there already, and what to tell of it.
    """
    from reshard.engine.fingerprint import fingerprint, identities
    from reshard.engine.resume import go_on
    from reshard.storage.program import program
    from reshard.store.journal import Making
    from reshard.store.output import OutputFolder

    array_plan = prepared.plan
    sizes = file_sizes(prepared.output)
    with prepared.source.files() as files:
        digest = fingerprint(array_plan, prepared.output.head, files)
        sources = identities(array_plan, files)
        making = Making(program(), str(prepared.target), digest, sizes, sources)
        with OutputFolder.create(dst, force, making) as folder:
            if folder.is_in_place:
                folder.close()
                return folder.sizes(), Resumed(len(array_plan.placed), array_plan.bytes_written), ()
            finished = (
                go_on(array_plan, folder, sizes, prepared.threads, files) if folder.claims else {}
            )
            sizes, last = write_output(prepared, folder, files, on_progress, finished=finished)
            folder.commit(last, receipt=prepared.target.format != "universal")
    resumed = Resumed(
        len(finished), sum(item.placed.array.spec.nbytes for item in finished.values())
    )
    return sizes, resumed, _restarted(folder.restarted)


def _restarted(why: str) -> tuple[Diagnostic, ...]:
    if not why:
        return ()
    return (
        Diagnostic(
            "started-anew",
            "the partial output of an earlier run was not reused",
            level="note",
            notes=(why,),
        ),
    )


def write_output(
    prepared: Prepared,
    folder: Destination,
    files: SourceFiles,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    finished: Mapping[int, Written] | None = None,
) -> tuple[dict[str, int], str | None]:
    """Write all bytes of a target.

    Args:  finished: arrays that the folder holds already, by their positions in the plan.
    Returns: every file with its size in bytes, and the one that completes the folder.
    """
    from reshard.engine.run import execute

    output = prepared.output
    sizes = file_sizes(output)
    for name, nbytes in sizes.items():
        folder.open_file(name, nbytes)
    _write_bytes(folder, output.head)
    results = execute(
        prepared.plan,
        folder,
        files,
        threads=prepared.threads,
        buffer_bytes=prepared.buffer_nbytes,
        sizes=sizes,
        on_progress=on_progress,
        done=finished,
    )
    tail = output.finish(results)
    for name, nbytes in _sizes(tail).items():
        if name not in sizes:
            sizes[name] = nbytes
            folder.open_file(name, nbytes)
    _write_bytes(folder, tail)
    return sizes, tail[-1].file if tail else None


def _write_bytes(folder: Destination, items: Iterable[FileBytes]) -> None:
    for item in items:
        folder.write(item.file, item.byte_offset, memoryview(item.data))


def file_sizes(output: Output) -> dict[str, int]:
    """Every file that is known before the tensors are written, with its size in bytes."""
    return _sizes(output.head) | dict(output.files)


def _sizes(items: Iterable[FileBytes]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.file] = max(sizes.get(item.file, 0), item.byte_offset + len(item.data))
    return sizes
