"""What is asked of a checkpoint: how it is read, and how the work on it is done."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reshard.engine.progress import Progress
from reshard.plan.build import OnDrift

PathLike = str | Path


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a public function, made once of its arguments; a function takes some of these.

    Args:  step: which one of several that the folder holds.
           layout: a UCL file that is used instead of what the source says about itself;
                   layout_name: which layout of it.
           settings: sizes that win over the source's.
           model: of which the source is; found by its names if not given.
           names: the layout of the model that gives the names of the tensors; `source` for the
                  names that they have.
           places: `axis=mesh:how`, how axes lie on the target's ranks.
           states: `all`, `weights`, or kinds of state.
           dtype: an element type for the weights, or types by state.
           on_drift: what becomes of copies that differ where they should not.
           check: whether the source is first held to its own digests or checksums.
           config: a `config.json`, or a folder that holds it, for a source without one.
           leave_out: tensors that are not wanted, as names with `*` in them.
           threads, max_memory (bytes): bounds of the work.  max_file_size: in bytes.
           on_progress: is called now and then, from any thread.
    """

    step: str | None = None
    layout: PathLike | None = None
    layout_name: str | None = None
    settings: Mapping[str, float | None] = field(default_factory=dict)
    model: str | None = None
    names: str | None = None
    places: tuple[str, ...] = ()
    states: str | tuple[str, ...] = "all"
    dtype: str | None = None
    on_drift: OnDrift = "error"
    check: bool = False
    config: PathLike | None = None
    leave_out: tuple[str, ...] = ()
    threads: int | None = None
    max_memory: int | None = None
    max_file_size: int | None = None
    on_progress: Callable[[Progress], None] | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, object]) -> Request:
        """The request of a function's arguments, by name; those of other names are passed over.

        Args:  arguments: as `arguments.checked` has made them.
        """
        names = set(cls.__match_args__)
        values = {name: value for name, value in arguments.items() if name in names}
        values["settings"] = values.get("settings") or {}
        return cls(**values)  # type: ignore[arg-type]

    def verify_options(self) -> str:
        """The options of `reshard verify` that read a source in this way."""
        layout = None if self.layout is None else str(self.layout)
        if layout is not None and self.layout_name is not None:
            layout = f"{layout}#{self.layout_name}"
        pairs = [
            ("--step", self.step),
            ("--layout", layout),
            *(
                ("--set", f"{name}={'null' if value is None else value}")
                for name, value in self.settings.items()
            ),
            ("--model", self.model),
            ("--dtype", self.dtype),
            ("--config", None if self.config is None else str(self.config)),
            *(("--leave-out", pattern) for pattern in self.leave_out),
        ]
        return "".join(f" {option} {shlex.quote(value)}" for option, value in pairs if value)
