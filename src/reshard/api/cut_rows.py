"""Rows that a size which the user states takes for padding: how many, and whether they are zero."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reshard.algebra.box import Box
from reshard.errors import Diagnostic, ReshardError
from reshard.language.expression import names
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.bind import bind
from reshard.plan.build import build_array
from reshard.plan.catalog import Catalog
from reshard.plan.slice import slice_spec

if TYPE_CHECKING:
    from reshard.store.source_files import SourceFiles


@dataclass(frozen=True, slots=True)
class CutRows:
    """Whole tensors as the source stores them, of which the last rows are not used.

    Args:  arrangement: through the source's own layout.  boxes: what is cut of each tensor.
           settings: those that say so.
    """

    arrangement: Arrangement
    boxes: tuple[tuple[Whole, Box], ...]
    settings: tuple[str, ...]

    def warning(self, files: SourceFiles) -> Diagnostic:
        """How many rows are cut, and how many of them are not zero; reads them.

        Args:  files: of the source.
        """
        from reshard.engine.compare import read_array

        notes = [
            f"`--set {' --set '.join(self.settings)}` states that the rows after it are padding"
        ]
        used = 0
        for whole, box in self.boxes:
            array = build_array(self.arrangement, slice_spec(whole, box))
            rows = read_array(array, files).tobytes()
            step = max(len(rows) // box.size[0], 1)
            count = sum(any(rows[at : at + step]) for at in range(0, len(rows), step))
            used += count > 0
            if count:
                notes.append(
                    f"{count:,} of the {box.size[0]:,} rows of `{whole.name}` ({whole.state}) "
                    "are not zero"
                )
        first, box = self.boxes[0]
        return Diagnostic(
            "padded-vocabulary",
            f"{box.size[0]:,} of {first.shape[0]:,} rows of the vocabulary are removed as padding",
            level="warning",
            notes=(*notes, *([] if used else ["all of them are zero"])),
            helps=("if these rows are used, omit the setting or state a larger size",)
            if used
            else (),
        )


def cut_rows(
    catalog: Catalog, arrangement: Arrangement, settings: Mapping[str, float | None]
) -> CutRows | None:
    """The rows that settings cut from tensors; None where they cut nothing.

    Args:  arrangement: as the source is read with the settings.
    """
    sizes = _sizes(arrangement, settings)
    if not sizes:
        return None
    try:
        as_stored = bind(catalog.layout, catalog)
    except ReshardError:
        return None
    wholes = {(whole.name, whole.state): whole for whole in as_stored.wholes}
    boxes = []
    for whole in arrangement.wholes:
        other = wholes.get((whole.name, whole.state))
        if other is None or not whole.shape or other.shape[1:] != whole.shape[1:]:
            continue
        more = other.shape[0] - whole.shape[0]
        if more > 0:
            lo = (whole.shape[0], *(0 for _ in whole.shape[1:]))
            boxes.append((other, Box(lo, (more, *whole.shape[1:]))))
    return CutRows(as_stored, tuple(boxes), sizes) if boxes else None


def _sizes(arrangement: Arrangement, settings: Mapping[str, float | None]) -> tuple[str, ...]:
    """Settings that give the size of an axis which has padding."""
    model = arrangement.layout.model
    if model is None:
        return ()
    padded = [axis for axis, split in arrangement.layout.places.items() if split.pad_to is not None]
    sizes: Collection[str] = {
        name
        for axis in padded
        if axis in model.axes and (size := model.axes[axis].size) is not None
        for name in names(size)
    }
    return tuple(
        f"{name}={value}" for name, value in settings.items() if name in sizes and value is not None
    )
