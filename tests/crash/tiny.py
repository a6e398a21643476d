"""A source of a few hundred bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from made_sources import make_catalog
from reshard.dtypes import DType
from reshard.engine.run import execute
from reshard.formats.universal.write import prepare
from reshard.language import load_layout
from reshard.plan.bind import bind
from reshard.plan.build import build_plan
from reshard.plan.catalog import Fragment, LocalTensor
from reshard.plan.target import Target
from reshard.store.output import OutputFolder
from reshard.store.source_files import SourceFiles

LAYOUT = 'layout tiny {\n    mesh tp\n    "**" = [...]\n}\n'

NAMES = ("a.weight", "b.weight", "c.weight")
STATES = ("param", "exp_avg")


def make_tiny(root: Path, rows: int = 5) -> Path:
    """A universal checkpoint of three tensors `[rows, 2]` in two states, one file a state."""
    root.mkdir()
    stored = root / "stored"
    stored.mkdir()
    values = np.arange(12 * rows, dtype=np.float32)
    (stored / "data").write_bytes(values.tobytes())
    tensors = [
        LocalTensor(
            *(name, state, (), (rows, 2), DType.F32),
            (Fragment(0, 2 * rows, "data", 8 * rows * index),),
        )
        for index, (name, state) in enumerate((n, s) for n in NAMES for s in STATES)
    ]
    catalog = make_catalog(LAYOUT, {}, tensors, root=str(stored))
    arrangement = bind(load_layout(LAYOUT), catalog)
    output = prepare(arrangement, Target("universal", {}))
    plan = build_plan(arrangement, output.placed)
    with SourceFiles(stored) as files, OutputFolder.create(root / "source") as folder:
        for item in output.head:
            nbytes = output.files.get(item.file, len(item.data))
            folder.open_file(item.file, nbytes)
            folder.write(item.file, item.byte_offset, item.data)
        (last,) = output.finish(execute(plan, folder, files, threads=1))
        folder.open_file(last.file, len(last.data))
        folder.write(last.file, 0, last.data)
        folder.commit(last.file)
    return root / "source"


def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every tensor be a piece of work of its own."""
    monkeypatch.setattr("reshard.engine.units.MAX_TOGETHER", 1)
