"""`simulate`: a conversion of a model that nobody has saved, by its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from reshard.api.arguments import checked
from reshard.api.converting import Prepared, prepare_source
from reshard.api.request import PathLike, Request
from reshard.api.simulated_model import SimulatedModel
from reshard.api.target_source import read_target
from reshard.dtypes import DType
from reshard.plan.arrangement import SCALAR
from reshard.plan.fate import Fate
from reshard.plan.placed import as_placed
from reshard.plan.report import not_written_lines
from reshard.plan.shown import Shown
from reshard.plan.text import facts, show_count, show_nbytes, show_seconds, table

_MOST_LINES = 12
_NUMBERS = re.compile(r"(?<![A-Za-z0-9])[0-9]+")


@dataclass(frozen=True, slots=True)
class FileGroup:
    """Files of one kind: their names differ in numbers alone.

    Args:  files: every one with its size in bytes.
    """

    pattern: str
    files: tuple[tuple[str, int], ...]

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.files)

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return sum(nbytes for _, nbytes in self.files)

    @property
    def smallest(self) -> int:
        """Bytes of the smallest."""
        return min(nbytes for _, nbytes in self.files)

    @property
    def largest(self) -> int:
        """Bytes of the largest."""
        return max(nbytes for _, nbytes in self.files)

    @property
    def skew(self) -> float:
        """The largest file, as a multiple of the mean."""
        return self.largest * self.count / self.nbytes if self.nbytes else 1.0

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return {
            "pattern": self.pattern,
            "count": self.count,
            "nbytes": self.nbytes,
            "smallest": self.smallest,
            "largest": self.largest,
            "skew": round(self.skew, 4),
        }


@dataclass(frozen=True, slots=True, repr=False)
class Simulation(Shown):
    """What a conversion of a model would be.

    Args:  model: its type.  parameters: elements of its weights.
           states: kinds of state with their types.
           source, target: as `--from` and `--to` say.
           source_files, target_files: groups of files; only those with tensors.
           segments: contiguous places that are read, or one for each strided copy.
           nbytes_read, nbytes_written: of tensors; of all files.
           peak_nbytes: an upper estimate of resident memory.
           fates: of every tensor, in the order of the source.
           seconds: the time that reading and writing take at `bandwidth` bytes a second, one after
                    the other; None where no bandwidth is given.
    """

    model: str
    parameters: int
    states: Mapping[str, DType]
    source: str
    target: str
    source_files: tuple[FileGroup, ...]
    target_files: tuple[FileGroup, ...]
    segments: int
    nbytes_read: int
    nbytes_written: int
    peak_nbytes: int
    bandwidth: int | None
    fates: tuple[Fate, ...]

    @property
    def seconds(self) -> float | None:
        """The least time that moving the bytes takes."""
        if self.bandwidth is None:
            return None
        return (self.nbytes_read + self.nbytes_written) / self.bandwidth

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "states": {state: str(dtype) for state, dtype in self.states.items()},
            "source": {
                "target": self.source,
                "files": [item.to_json() for item in self.source_files],
            },
            "target": {
                "target": self.target,
                "files": [item.to_json() for item in self.target_files],
            },
            "segments": self.segments,
            "nbytes_read": self.nbytes_read,
            "nbytes_written": self.nbytes_written,
            "peak_nbytes": self.peak_nbytes,
            "bandwidth": self.bandwidth,
            "seconds": self.seconds,
            "not_written": [fate.to_json() for fate in self.fates if not fate.is_written],
        }

    def to_text(self) -> str:
        """For people, 80 columns wide."""
        states = ", ".join(f"{state} {dtype}" for state, dtype in self.states.items())
        rows = [
            ("model", f"{self.parameters:,} parameters"),
            ("states", states),
            (
                "reads",
                f"{show_nbytes(self.nbytes_read)} of tensors "
                f"in {show_count(self.segments, 'segment')}",
            ),
            ("writes", show_nbytes(self.nbytes_written)),
            ("memory", f"at most {show_nbytes(self.peak_nbytes)}"),
        ]
        if self.seconds is not None and self.bandwidth is not None:
            pace = f"{show_nbytes(self.bandwidth)}/s"
            rows.append(("time", f"at least {show_seconds(self.seconds)} at {pace}"))
        lines = [f"simulated: {self.model}, {self.source} to {self.target}", *facts(rows)]
        for title, groups in (("source", self.source_files), ("target", self.target_files)):
            files = sum(group.count for group in groups)
            nbytes = sum(group.nbytes for group in groups)
            lines += ["", f"{title}: {show_nbytes(nbytes)} in {show_count(files, 'file')}"]
            lines += _group_lines(groups)
        missing = not_written_lines(self.fates)
        if missing:
            lines += ["", *missing]
        return "\n".join(lines)


def _group_lines(groups: Iterable[FileGroup]) -> list[str]:
    rows = [("files", "count", "each", "largest / mean")]
    ordered = sorted(groups, key=lambda group: -group.nbytes)
    for group in ordered[:_MOST_LINES]:
        each = show_nbytes(group.largest)
        if group.smallest != group.largest:
            each = f"{show_nbytes(group.smallest)} to {each}"
        rows.append((group.pattern, f"{group.count:,}", each, f"{group.skew:.2f}"))
    lines = [f"  {line}" for line in table(rows, right="lrrr", width=78)]
    rest = sum(group.count for group in ordered[_MOST_LINES:])
    return [*lines, f"  and {show_count(rest, 'file')} more"] if rest else lines


@checked
def simulate(
    config: PathLike,
    to: str,
    *,
    source: str = "universal",
    layout: PathLike | None = None,
    settings: Mapping[str, float | None] | None = None,
    places: Iterable[str] = (),
    states: str | Iterable[str] = "all",
    dtype: str | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    max_file_size: int | None = None,
    bandwidth: int | None = None,
) -> Simulation:
    """What converting a training checkpoint of a model would read and write; there is no data.

    The checkpoint is one of Adam: weights in bf16, master weights and both moments in fp32.

    Args:  config: the model's `config.json`, or a folder that holds it.
           to: as for `convert`.  source: what the checkpoint is, in the same form.
           layout: a UCL file that describes the model, if it does not ship.
           settings: sizes that win over the configuration's.  places: as for `convert`.
           states: `all`, or `weights`.  dtype: other types, `bf16` or `param=fp16,exp_avg=bf16`.
           bandwidth: bytes a second, for an estimate of the time.
    Raises: ReshardError; what it says is in docs/errors/.
    """
    request = Request.of(locals())
    simulated = SimulatedModel.read(Path(config), request)
    before, target = read_target(source), read_target(to)
    stored = simulated.opened(before, Request(settings=request.settings))
    made = prepare_source(stored, before, Request(states=request.states))
    # Not every format has an array for the number of steps: it is taken as known.
    numbers = {
        pair: parts for pair, parts in simulated.atoms.parts.items() if pair[0].endswith(SCALAR)
    }
    placed = as_placed(stored.arrangement, made.output.placed)
    atoms = replace(simulated.atoms, parts={**placed.parts, **numbers})
    wanted = replace(simulated, atoms=atoms).opened(target, request)
    prepared = prepare_source(wanted, target, request)
    return _simulation(simulated, made, prepared, bandwidth)


def _simulation(
    simulated: SimulatedModel, made: Prepared, prepared: Prepared, bandwidth: int | None
) -> Simulation:
    report = prepared.report
    atoms = simulated.atoms
    states = {state: parts[0].dtype for (_, state), parts in atoms.parts.items()}
    return Simulation(
        simulated.kind,
        simulated.parameters,
        states,
        str(made.target),
        str(prepared.target),
        _file_groups(made),
        _file_groups(prepared),
        sum(len(item.array.copies) for item in prepared.plan.placed),
        report.nbytes_read,
        report.nbytes_written,
        report.peak_nbytes,
        bandwidth,
        report.fates,
    )


def _file_groups(prepared: Prepared) -> tuple[FileGroup, ...]:
    """Of the files that hold tensors."""
    groups: dict[str, list[tuple[str, int]]] = {}
    for name, nbytes in prepared.output.files.items():
        groups.setdefault(_NUMBERS.sub("#", name), []).append((name, nbytes))
    return tuple(FileGroup(pattern, tuple(files)) for pattern, files in groups.items())
