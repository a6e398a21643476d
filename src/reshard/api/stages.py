"""Steps of a round trip: a source, or a target that is read back without being written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from reshard import formats
from reshard.api.converting import Prepared, prepare_source, write_output
from reshard.api.pairing import in_names_of, same_names
from reshard.api.request import Request
from reshard.api.source import Naming, OpenedSource, open_source
from reshard.api.target_source import open_for_target
from reshard.dtypes import DType
from reshard.errors import Exit, ReshardError, source_error
from reshard.language.layout import Layout
from reshard.plan.environment import environment
from reshard.plan.output import FileBytes, Output, PlacedSpec, Written
from reshard.plan.placed import as_placed
from reshard.plan.plan import Placed, Plan
from reshard.plan.prove import prove_sources
from reshard.plan.target import Target
from reshard.store.source import LocalSource

if TYPE_CHECKING:
    from reshard.store.source_files import SourceFiles

KEPT_NBYTES = 4096
"""Arrays up to this size are written even where tensors are not: readers look at numbers."""

NO_DIGEST = "xxh3-128:" + 32 * "0"
"""What stands for the digest of bytes that nobody read."""

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Work:
    """How a round trip is done.

    Args:  folder: for what is written.  materialize: write every target whole.
           request: what is asked of the source; its bounds, settings and model are of every step.
    """

    folder: Path
    materialize: bool = False
    request: Request = field(default_factory=Request)

    @property
    def model(self) -> Request:
        """What the user says of the model, which holds for every step."""
        return Request(settings=self.request.settings, model=self.request.model)


class ReadBackError(Exception):
    """A target that was made could not be read back, which is no fault of the source."""

    def __init__(self, error: ReshardError) -> None:
        super().__init__(str(error))
        self.diagnostics = error.diagnostics


@dataclass(frozen=True, slots=True)
class Stage:
    """A checkpoint on the way.

    Args:  title: what it is called in the report.  files: read its bytes; close them.
           prepared: the conversion that made it; None for the source.
           is_written: all of it is on disk.
           is_read: a reader of its format read it; else it was taken as its plan placed it.
    """

    title: str
    source: OpenedSource
    files: SourceFiles
    prepared: Prepared | None = None
    is_written: bool = True
    is_read: bool = True


def first_stage(source: OpenedSource) -> Stage:
    """The source itself."""
    return Stage(str(source.path), source, source.files())


def next_stage(
    before: Stage,
    target: Target,
    folder: str,
    work: Work,
    *,
    request: Request | None = None,
    digests: bool = False,
) -> Stage:
    """A target of a stage, read back.

    Args:  folder: its name.  request: which part of the stage; all of it if not given.
           digests: read every tensor to digest it, as writing would.
    Raises: ReshardError of the conversion; ReadBackError of the reader of the target's format.
    """
    bounds = Request(threads=work.request.threads, max_memory=work.request.max_memory)
    prepared = prepare_source(_in_names_for(before, target, work), target, request or bounds)
    path = work.folder / folder
    if work.materialize:
        return _written(before, prepared, path, work)
    holes = _holes(prepared.plan)
    _sketch(before, prepared, path, holes, work, digests)
    try:
        return _planned(before, prepared, path, holes, work)
    except ReadBackError:
        # Some readers hold tensors against each other at once, and so need them.
        return _written(before, prepared, path.with_name(f"{path.name}-written"), work)


def _in_names_for(before: Stage, target: Target, work: Work) -> OpenedSource:
    """A stage in the names that a target has for its tensors, if it has its own."""
    form = formats.TARGETS[target.format]
    names, facts = form.names_of(target)
    described = target.described
    is_renamed = names or (described and (described.names or described.model))
    if not before.is_read or not is_renamed:
        return before.source
    if described is not None:
        return open_for_target(before.source.path, target, work.model)
    naming = Naming(names, mesh=form.mesh_of(target), facts=facts, keep="always")
    return open_source(before.source.path, work.model, naming)


def _written(before: Stage, prepared: Prepared, path: Path, work: Work) -> Stage:
    from reshard.store.output import OutputFolder

    path.parent.mkdir(parents=True, exist_ok=True)
    with OutputFolder.create(path) as folder:
        _, last = write_output(prepared, folder, before.files, work.request.on_progress)
        folder.commit(last)
    opened, is_read = _read_back(before, prepared, path, work)
    return Stage(str(prepared.target), opened, opened.files(), prepared, is_read=is_read)


def _planned(
    before: Stage,
    prepared: Prepared,
    path: Path,
    holes: dict[str, list[Range]],
    work: Work,
) -> Stage:
    from reshard.engine.made_files import MadeFiles

    opened, is_read = _read_back(before, prepared, path, work)
    root = Path(opened.catalog.root)
    files = MadeFiles(
        prepared.plan,
        before.files,
        folder=path,
        root=root,
        holes=holes,
        files=opened.catalog.files,
    )
    return Stage(str(prepared.target), opened, files, prepared, is_written=False, is_read=is_read)


def _read_back(
    before: Stage, prepared: Prepared, path: Path, work: Work
) -> tuple[OpenedSource, bool]:
    """What was made, and whether a reader of its format read it.

    A form of which a reader says that it does not read it is taken as its plan placed it.
    """
    try:
        file, name = prepared.target.layout_file or (None, None)
        opened = open_source(path, Request(layout=file, layout_name=name))
        if opened.catalog.withheld:
            raise ReshardError(opened.catalog.withheld, Exit.SOURCE)
    except ReshardError as error:
        if any(not item.code.startswith("unsupported-") for item in error.diagnostics):
            raise ReadBackError(error) from error
    else:
        return _named(before, prepared, path, opened, work), True
    try:
        return placed_source(prepared, path), False
    except ReshardError as error:
        raise ReadBackError(error) from error


def _named(
    before: Stage, prepared: Prepared, path: Path, opened: OpenedSource, work: Work
) -> OpenedSource:
    """What was made, in the names of the stage that it was made of."""
    family, names_before = prepared.source.family, before.source.arrangement.layout.name
    if (
        family is None
        or names_before not in family.layout_names
        or same_names(before.source, opened)
    ):
        return in_names_of(before.source, path, opened, work.model)
    sizes = {**_sizes(before.source, family.layout(names_before)), **work.model.settings}
    kindred = [name for name in family.layout_names if name.startswith(f"{names_before}_")]
    # Some models are alike to their names, and some layouts differ in how layers are stacked.
    for names, name in product((names_before, *kindred), (work.model.model, family.name)):
        with contextlib.suppress(ReshardError):
            source = open_source(path, Request(settings=sizes, model=name, names=names))
            if same_names(before.source, source):
                return source
    return opened


def _sizes(source: OpenedSource, layout: Layout) -> dict[str, int]:
    """The sizes of the model that a source tells, which not every target keeps."""
    with contextlib.suppress(ReshardError):
        values = environment(layout, source.catalog, {}, {})
        names = set(layout.config) | set(source.catalog.config or {})
        return {
            name: value
            for name, value in values.items()
            if name in names and isinstance(value, int) and name not in layout.mesh
        }
    return {}


def _sketch(
    before: Stage,
    prepared: Prepared,
    path: Path,
    holes: dict[str, list[Range]],
    work: Work,
    digests: bool,
) -> None:
    """Write what a target's reader looks at; large arrays are holes."""
    from reshard.store.sparse import SparseFolder

    path.mkdir(parents=True)
    with SparseFolder(path, holes) as folder:
        if digests:
            write_output(prepared, folder, before.files, work.request.on_progress)
            return
        arrays = [item for item in prepared.plan.placed if not _is_hole(item)]
        output = prepared.output
        small = replace(
            prepared,
            plan=Plan(prepared.plan.root, tuple(arrays)),
            output=replace(output, finish=lambda results: _finish(output, prepared.plan, results)),
        )
        write_output(small, folder, before.files)


def _finish(output: Output, plan: Plan, results: Iterable[Written]) -> tuple[FileBytes, ...]:
    """The end of an output of which only some arrays were made."""
    by_array = {id(item.placed): item for item in results}
    return output.finish(
        [by_array.get(id(item)) or Written(item, NO_DIGEST, 0) for item in plan.placed]
    )


def _holes(plan: Plan) -> dict[str, list[Range]]:
    """The byte ranges of the arrays that are not written, by file."""
    out: dict[str, list[Range]] = {}
    for item in plan.placed:
        if _is_hole(item):
            stop = item.byte_offset + item.array.spec.nbytes
            out.setdefault(item.file, []).append((item.byte_offset, stop))
    return out


def _is_hole(item: Placed) -> bool:
    return item.array.spec.nbytes > KEPT_NBYTES


def placed_source(prepared: Prepared, path: Path) -> OpenedSource:
    """A folder as a source: the pieces of its arrays, where its plan placed them.

    Every array must be a tensor of a file, of its type and shape: each torch file is opened, and
    tells where its tensors are.  What the tensors are called there is not looked at.

    Raises: ReshardError[not-stored] for an array that no file tells of.
    """
    _check_placed(prepared, path)
    source = prepared.source
    catalog = replace(
        source.catalog,
        format=formats.TARGETS[prepared.target.format].run_of or prepared.target.format,
        root=str(path),
        tensors=(),
        side_files={},
        files=tuple(map(LocalSource(path).stat, dict(prepared.report.files))),
    )
    placed = as_placed(source.arrangement, prepared.output.placed)
    arrangement = replace(placed, catalog=catalog)
    proof = prove_sources(arrangement)
    return OpenedSource(path, arrangement, proof, source.document, source.family)


def _check_placed(prepared: Prepared, path: Path) -> None:
    from reshard.storage.torch_file import TensorRef, open_torch_file, walk

    tensors: dict[tuple[str, int], set[tuple[DType, tuple[int, ...]]]] = {}
    files = dict.fromkeys(item.file for item in prepared.output.placed)
    for name in files:

        def note(_: object, ref: TensorRef, name: str = name) -> None:
            tensors.setdefault((name, ref.byte_offset), set()).add((ref.dtype, ref.shape))

        walk(open_torch_file(path / name).root, note)
    for item in prepared.output.placed:
        spec = item.spec
        shape = (spec.numel,) if spec.shape is None else spec.shape
        if (spec.dtype, shape) not in tensors.get((item.file, item.byte_offset), ()):
            raise _untold(item)


def _untold(item: PlacedSpec) -> ReshardError:
    return source_error(
        "not-stored",
        f"no tensor of `{item.file}` is the array `{item.spec.label}`",
        notes=[f"it was placed at byte {item.byte_offset}"],
    )
