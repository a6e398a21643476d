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


def assert_same(
    one: Path, other: Path, tmp_path: Path, names: str, sizes: Mapping[str, int] | None = None
) -> None:
    """Two checkpoints of one model are equal in the names of one layout, bit for bit."""
    folders = []
    for source in (one, other):
        folder = tmp_path / f"whole{len(list(tmp_path.glob('whole*')))}"
        folders.append(converted(source, folder, "universal", names=names, settings=sizes))
    found = api.verify(*folders)
    assert found.ok, found.to_text()


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
