"""Conversions into DeepSpeed's forms, and what they hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from deepspeed_oracle import arrange, wholes

from reshard import api
from reshard.errors import Diagnostic
from reshard.formats import TARGETS, prepare
from reshard.formats.deepspeed.read import read
from reshard.plan.arrangement import Arrangement
from reshard.plan.output import Output
from reshard.plan.target import parse_target
from reshard.run.run import Run
from reshard.storage.torch_file import TensorRef, open_torch_file

Tensors = dict[tuple[str, str], np.ndarray]


def converted(source: Path, target: Path, to: str, **settings: Any) -> Path:
    """The new folder."""
    api.convert(source, target, to, **settings)
    return target


def held(folder: Path) -> Tensors:
    """Every whole tensor of a DeepSpeed checkpoint, by name and state."""
    return wholes(arrange(read(folder)))


def arranged(folder: Path, training: Run | None = None) -> Arrangement:
    """A checkpoint through its own layout, with another state of training."""
    catalog = read(folder)
    return arrange(catalog if training is None else replace(catalog, training=training))


def prepared(arrangement: Arrangement, to: str) -> Output:
    """What a target wants of it."""
    return prepare(arrangement, parse_target(to, TARGETS), {})


def with_framework(arrangement: Arrangement, **entries: object) -> Arrangement:
    """The same source with other things that only DeepSpeed understands."""
    training = arrangement.catalog.training
    framework = {**(training.framework or {}), **entries}
    catalog = replace(arrangement.catalog, training=replace(training, framework=framework))
    return replace(arrangement, catalog=catalog)


def rendered(items: tuple[Diagnostic, ...]) -> str:
    """Messages as they are printed."""
    return "\n\n".join(item.render() for item in items)


def tree(path: Path) -> Any:
    """What a torch file holds, with its checksums verified."""
    file = open_torch_file(path)
    file.check_all_crcs()
    return file.root


def array(ref: TensorRef) -> np.ndarray:
    """The elements of a dense tensor, as unsigned numbers of their size."""
    data = Path(ref.file).read_bytes()[ref.byte_offset : ref.byte_offset + ref.nbytes]
    return np.frombuffer(data, dtype=f"<u{ref.dtype.itemsize}").reshape(ref.shape)


def bits(values: np.ndarray) -> np.ndarray:
    """The same elements as unsigned numbers."""
    return np.ascontiguousarray(values).view(f"<u{values.dtype.itemsize}").reshape(values.shape)


def same(first: Tensors, second: Tensors) -> None:
    """Assert that both hold the same tensors, bit for bit."""
    assert sorted(first) == sorted(second)
    for key, values in first.items():
        assert values.dtype == second[key].dtype, key
        assert values.shape == second[key].shape, key
        assert values.tobytes() == second[key].tobytes(), key
