"""The files of a step: their names, which folder is meant, what lies in it, and opening it.

Source: DeepSpeed 0.19.8 runtime/engine.py `_get_ckpt_name`, `_get_zero_ckpt_name`,
`_get_expert_ckpt_name`; runtime/pipe/module.py `ckpt_layer_path`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import ReshardError, source_error
from reshard.formats.deepspeed.node import Node, missing_rank_file, mixed_runs
from reshard.formats.steps import refuse_another
from reshard.language.place import FileName, Pattern
from reshard.plan.catalog import Left, SourceFile
from reshard.storage.sibling_files import Siblings
from reshard.storage.zip_directory import archive_name
from reshard.store.source import LocalSource

Rank = tuple[int, int]
"""(ZeRO data-parallel rank, model-parallel rank), as file names number them."""


def _name(text: str) -> Pattern:
    return FileName.parse(text).pattern


MODEL = _name("mp_rank_{mp:02}_model_states.pt")
MODEL_ZERO3 = _name("zero_pp_rank_{dp}_mp_rank_{mp:02}_model_states.pt")
OPTIMIZERS = {
    prefix: _name(prefix + "zero_pp_rank_{dp}_mp_rank_{mp:02}_optim_states.pt")
    for prefix in ("", "bf16_", "fp16_")
}
LAYER = _name("layer_{layer:02}-model_states.pt")
LAYER_TP = _name("layer_{layer:02}-model_{tp:02}-model_states.pt")
EXPERT = _name("layer_{layer}_expert_{expert}_mp_rank_{mp:02}_model_states.pt")
EXPERT_OLD = _name("expert_{expert}_mp_rank_{mp:02}_model_states.pt")
EXPERT_OPTIMIZER = _name("expp_rank_{ep}_mp_rank_{mp:02}_optim_states.pt")

LATEST = "latest"
LATEST_UNIVERSAL = "latest_universal"
ZERO = "zero"
OPTIMIZER_STATE = f"{ZERO}/optimizer_state.pt"

_OF_RANK = "_states"
"""What the names of all ranks' files end with, before their suffix."""

# Which folder is meant.


def detect(path: Path) -> bool:
    """Whether a folder is a checkpoint of DeepSpeed, by the names in it; no file is opened."""
    if not path.is_dir() or is_universal(path):
        return False
    source = LocalSource(path)
    is_run = source.has(LATEST) and source.has("zero_to_fp32.py")
    return is_step_folder(path) or bool(_tags(path)) or is_run


def is_step_folder(path: Path) -> bool:
    """Whether a folder directly holds files of a DeepSpeed checkpoint."""
    kinds = (MODEL, MODEL_ZERO3, *OPTIMIZERS.values())
    try:
        return any(kind.match(name) for name in _names(path) for kind in kinds)
    except OSError:
        return False


def _names(folder: Path) -> list[str]:
    """What lies in a folder; one that is called like a rank's file is refused when it is read."""
    source = LocalSource(folder)
    return sorted((*source.files(), *source.folders()))


def is_universal(path: Path) -> bool:
    """Whether a folder is DeepSpeed's universal checkpoint, or holds only such."""
    return bool(_universal_mark(path))


def _universal_mark(path: Path) -> str:
    """What shows it, or nothing."""
    source = LocalSource(path)
    if source.has(OPTIMIZER_STATE):
        return OPTIMIZER_STATE
    if any(source.matching(f"{ZERO}/*/fp32.pt")):
        return "zero/*/fp32.pt"
    return LATEST_UNIVERSAL if source.has(LATEST_UNIVERSAL) and not source.has(LATEST) else ""


def _refuse_universal(path: Path) -> None:
    """Refuse a universal folder among others; by itself it is read as what it is."""
    if mark := _universal_mark(path):
        raise source_error(
            "deepspeed-universal-source",
            f"{path} is a universal checkpoint of DeepSpeed among others",
            notes=[f"found {mark}"],
            helps=["give that folder itself, or convert the checkpoint that it was made from"],
        )


def _tags(path: Path) -> list[str]:
    """Names of the step folders inside a folder, lowest number first."""
    try:
        tags = [name for name in LocalSource(path).folders() if is_step_folder(path / name)]
    except OSError:
        return []
    return sorted(tags, key=lambda name: (_number(name) is None, _number(name) or 0, name))


def find_step(path: Path, step: str | None) -> Path:
    """The folder of one step.

    Args:  path: a step's folder, or the folder that holds several and `latest`.
           step: a folder's name or the number in it; None for what `latest` says.
    Raises: ReshardError[unknown-step | ambiguous-step | deepspeed-universal-source].
    """
    _refuse_universal(path)
    if is_step_folder(path):
        if step is None or not _is_step(path.name, step):
            refuse_another(path, step)
        return path
    tags = _tags(path)
    tracker = path / LATEST
    if step is not None:
        chosen = [name for name in tags if name == step]
        chosen = chosen or [name for name in tags if _is_step(name, step)]
        code, headline = "unknown-step", f"{path} has no step `{step}`"
        advice = "give the name of one of these folders, or the number at its end"
    elif tracker.exists() or tracker.is_symlink():
        tag = LocalSource(path).note(LATEST)
        chosen = [name for name in tags if name == tag]
        code, headline = "unknown-step", f"`latest` in {path} names `{tag}`, which is not there"
        advice = "choose one that is there with `--step`, or copy the missing folder"
    else:
        chosen = tags
        code, headline = "ambiguous-step", f"{path} holds {len(tags)} steps and no file `latest`"
        advice = "choose one with `--step`"
    if len(chosen) != 1:
        raise source_error(code, headline, notes=[f"steps: {_listed(tags)}"], helps=[advice])
    _refuse_universal(path / chosen[0])
    return path / chosen[0]


def find_universal(path: Path, step: str | None) -> Path:
    """The folder that holds `zero`: the one given, the one named, or that of `latest_universal`.

    Raises: ReshardError[unknown-step].
    """
    source = LocalSource(path)
    if source.has_folder(ZERO):
        folder, is_there = path, step in (None, path.name)
    else:
        tag = source.note(LATEST_UNIVERSAL) if step is None else step
        inside = tag not in ("", ".", "..") and "/" not in tag and "\0" not in tag
        folder, is_there = path / tag, inside and source.has_folder(f"{tag}/{ZERO}")
    if is_there:
        return folder
    named = [f"`{name}`" for name in source.folders() if source.has_folder(f"{name}/{ZERO}")]
    raise source_error(
        "unknown-step",
        f"{path} has no universal checkpoint `{folder.name if step is None else step}`",
        notes=[f"it has {', '.join(named) or 'none'}"],
        helps=["give the name of one of these folders with `--step`"],
    )


def _number(name: str) -> int | None:
    digits = re.search(r"([0-9]{1,18})$", name)
    return int(digits[1]) if digits else None


def _is_step(name: str, step: str) -> bool:
    is_number = step.isascii() and step.isdecimal() and len(step) < 20
    return name == step or (is_number and _number(name) == int(step))


def _listed(tags: list[str]) -> str:
    names = [f"`{name}`" for name in tags]
    if len(names) > 6:
        names = [*names[:3], f"{len(names) - 5} more", *names[-2:]]
    return ", ".join(names) or "none"


# What lies in it.


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of a step's folder, by the numbers in their names.

    Args:  models: by rank; of data-parallel rank 0 alone where weights are not partitioned.
           optimizers: by rank; prefix: what their names start with (`bf16_`, `fp16_`, or nothing).
           layers: by (layer, tp rank); tp rank is None where the name has none.
           experts: by (MoE layer or None, global expert, mp rank).
           expert_optimizers: by (ep rank, mp rank), of runs without ZeRO.
           is_zero3: whether weights are partitioned, as the names of the model files tell.
    """

    root: Path
    models: Mapping[Rank, str]
    optimizers: Mapping[Rank, str]
    prefix: str
    layers: Mapping[tuple[int, int | None], str]
    experts: Mapping[tuple[int | None, int, int], str]
    expert_optimizers: Mapping[Rank, str]
    is_zero3: bool


def read_folder(root: Path) -> Folder:
    """Sort the files of a step's folder.

    Raises: ReshardError[mixed-runs] when files of two runs lie side by side.
    """
    names = _names(root)

    def of(kind: Pattern) -> dict[tuple[int, ...], str]:
        numbers = {
            tuple(map(int, match.values())): name
            for name in names
            if (match := kind.match(name)) is not None
        }
        return dict(sorted(numbers.items()))

    def refuse_both(
        one: Mapping[tuple[int, ...], str], two: Mapping[tuple[int, ...], str], *notes: str
    ) -> None:
        if one and two:
            pair = f"{next(iter(one.values()))}, and {next(iter(two.values()))}"
            raise mixed_runs(f"{root.name} holds files of two runs: {pair}", *notes)

    optimizers = {prefix: files for prefix, kind in OPTIMIZERS.items() if (files := of(kind))}
    if len(optimizers) > 1:
        (_, one), (_, two) = sorted(optimizers.items())[:2]
        named = f"{len(one)} optimizer files are named like the first, {len(two)} like the second"
        refuse_both(one, two, named, "DeepSpeed puts `bf16_` before the names of bf16 runs")
    models, zero3 = of(MODEL), of(MODEL_ZERO3)
    refuse_both(models, zero3, "the first name is of ZeRO stages 0 to 2, the second of stage 3")
    plain, cut = of(LAYER), of(LAYER_TP)
    refuse_both(plain, cut, "the first is of a run without tensor parallelism, the second with")
    prefix, files = next(iter(optimizers.items()), ("", {}))
    return Folder(
        root,
        {(0, mp): name for (mp,), name in models.items()} | _by_rank(zero3),
        _by_rank(files),
        prefix,
        {
            **{(layer, None): name for (layer,), name in plain.items()},
            **{(layer, tp): name for (layer, tp), name in cut.items()},
        },
        {
            **{(None, expert, mp): name for (expert, mp), name in of(EXPERT_OLD).items()},
            **{(layer, expert, mp): name for (layer, expert, mp), name in of(EXPERT).items()},
        },
        _by_rank(of(EXPERT_OPTIMIZER)),
        bool(zero3),
    )


def _by_rank(files: Mapping[tuple[int, ...], str]) -> dict[Rank, str]:
    return {(one, two): name for (one, two), name in files.items()}


def no_model_file(root: Path) -> ReshardError:
    """The error for a folder without any model file."""
    looked = "looked for `mp_rank_*_model_states.pt` and `zero_pp_rank_*_model_states.pt`"
    return missing_rank_file(f"{root} has no model file", looked)


# Opening them.


class Files:
    """The files below one folder, each opened once; their names are relative to it.

    Args:  root: the step's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._siblings = Siblings()
        self._seen: dict[str, SourceFile] = {}
        self.left: list[Left] = []

    def root_of(self, name: str) -> Node:
        """The object tree of a file.

        Raises: ReshardError[renamed-file], and what `storage.torch_file` raises.
        """
        path = self.root / name
        root = self._siblings.root_of(path)
        _refuse_renamed(path)
        status = os.stat(path)
        self._seen[name] = SourceFile(name, status.st_size, status.st_mtime_ns)
        return Node(root, name)

    def leave(self, node: Node, why: str) -> None:
        """Note an entry that no reader has a use for."""
        self.left.append(Left(node.file, node.path, why))

    @property
    def seen(self) -> tuple[SourceFile, ...]:
        """Every file that was opened, by name."""
        return tuple(self._seen[name] for name in sorted(self._seen))


def _refuse_renamed(path: Path) -> None:
    """Refuse a file that was written as that of another rank, layer, or expert.

    Source: torch/serialization.py `_open_zipfile_writer_file`: a file's name without its suffix is
    the name of the archive in it.
    """
    name = archive_name(path)
    if name.endswith(_OF_RANK) and name != path.stem:
        raise source_error(
            "renamed-file",
            f"{path.name} was written as {name}.pt",
            notes=[
                "the name of a rank's file states which part of the model it holds",
                f"in {path.parent}",
            ],
            helps=["give it its own name again, or copy the checkpoint again"],
        )
