"""Conversions into Megatron's forms, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reshard import api
from reshard.storage.inert import Record
from reshard.storage.torch_file import open_torch_file

LLAMA = {"num_attention_heads": 4, "num_key_value_heads": 2}
"""Sizes of the Llama of fixtures/ that its checkpoints do not tell."""


def converted(source: Path, target: Path, to: str, **settings: Any) -> Path:
    """The new folder."""
    api.convert(source, target, to, **settings)
    return target


def assert_same(one: Path, other: Path, sizes: Mapping[str, int] | None = None) -> None:
    """Two checkpoints of one model are equal, bit for bit, whatever they call their tensors."""
    found = api.verify(one, other, settings=sizes)
    assert found.ok, found.to_text()
    assert found.tensors > 0


def root(folder: Path, rank: str = "mp_rank_00") -> dict[Any, Any]:
    """What the file of a rank holds."""
    (iteration,) = [path for path in folder.iterdir() if path.is_dir()]
    found = open_torch_file(iteration / rank / "model_optim_rng.pt").root
    assert isinstance(found, dict)
    return found


def arguments(folder: Path, rank: str = "mp_rank_00") -> dict[str, Any]:
    """The arguments in the file of a rank."""
    args = root(folder, rank)["args"]
    assert isinstance(args, Record)
    assert (args.module, args.name) == ("argparse", "Namespace")
    return {str(key): value for key, value in args.attributes.items()}


def files(folder: Path) -> list[str]:
    """Every file, relative to the folder."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not path.name.startswith(".reshard"))
