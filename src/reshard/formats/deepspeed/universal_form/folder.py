"""The files of a universal folder, by what their names say."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import source_error
from reshard.formats.deepspeed.files import Files
from reshard.formats.deepspeed.model_file import ModelFile, read_model_file
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.step import LATEST_UNIVERSAL
from reshard.storage.regular_file import read_note

ZERO = "zero"
OPTIMIZER = f"{ZERO}/optimizer_state.pt"


@dataclass(frozen=True, slots=True)
class UniversalFolder:
    """One universal checkpoint.

    Args:  states: by parameter, its files by state (`fp32`, `exp_avg`, ..., `step`).
           models: the model files, one for each model-parallel rank; of stage 3, those of the first
                   data-parallel rank.
           optimizer: what `optimizer_state.pt` holds, None where there is none.
    """

    files: Files
    states: dict[str, dict[str, Node]]
    models: tuple[ModelFile, ...]
    optimizer: Node | None


def find_folder(path: Path, step: str | None) -> Path:
    """The folder that holds `zero`: the one given, the one named, or that of `latest_universal`.

    Raises: ReshardError[unknown-step].
    """
    if (path / ZERO).is_dir():
        found, asked = path, step in (None, path.name)
    else:
        tracker = path / LATEST_UNIVERSAL
        tag = step
        if tag is None:
            tag = read_note(tracker)
        inside = tag not in ("", ".", "..") and "/" not in tag and "\0" not in tag
        found, asked = path / tag, inside and (path / tag / ZERO).is_dir()
    if asked:
        return found
    named = sorted(item.name for item in path.iterdir() if (item / ZERO).is_dir())
    listed = ", ".join(f"`{name}`" for name in named) or "none"
    raise source_error(
        "unknown-step",
        f"{path} has no universal checkpoint `{found.name if step is None else step}`",
        notes=[f"it has {listed}"],
        helps=["give the name of one of these folders with `--step`"],
    )


def read_universal_folder(root: Path) -> UniversalFolder:
    """Open every file once.

    Raises: ReshardError[missing-file | missing-rank-file], and what the files raise.
    """
    files = Files(root)
    states: dict[str, dict[str, Node]] = {}
    for name in sorted(os.listdir(root / ZERO)):
        folder = root / ZERO / name
        if not folder.is_dir():
            continue
        own = {
            file.removesuffix(".pt"): files.root_of(f"{ZERO}/{name}/{file}")
            for file in sorted(os.listdir(folder))
            if file.endswith(".pt")
        }
        if "fp32" not in own:
            raise source_error(
                "missing-file",
                f"{root / ZERO / name} has no `fp32.pt`",
                notes=[f"it has {', '.join(f'`{state}.pt`' for state in own) or 'no files'}"],
                helps=["copy the folder again, or convert the checkpoint that it was made from"],
            )
        states[name] = own
    optimizer = files.root_of(OPTIMIZER) if (root / OPTIMIZER).is_file() else None
    return UniversalFolder(files, states, _models(root, files), optimizer)


def _models(root: Path, files: Files) -> tuple[ModelFile, ...]:
    """Those of stages 1 and 2 if there are any; a folder for all stages has both."""
    listed = {name for name in os.listdir(root) if name.startswith("mp_rank_")}
    wanted = listed or {
        name for name in os.listdir(root) if name.startswith("zero_pp_rank_0_mp_rank_")
    }
    names = [name for name in sorted(wanted) if name.endswith("_model_states.pt")]
    if not names:
        raise source_error(
            "missing-rank-file",
            f"{root} has no model file",
            notes=["looked for `mp_rank_*_model_states.pt` and `zero_pp_rank_*_model_states.pt`"],
            helps=["copy the whole folder; DeepSpeed cannot load it without them either"],
        )
    return tuple(read_model_file(files.root_of(name)) for name in names)
