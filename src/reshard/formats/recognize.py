"""Which format a folder is of, and the message when it is of none."""

from __future__ import annotations

import re
from pathlib import Path

from reshard.errors import ReshardError, source_error
from reshard.formats.registry import SOURCES, formats_of, is_source
from reshard.store.destination import Places, is_unfinished
from reshard.store.regular_file import as_source_error

SINGLE_FILE = "single-file"
_TORCH = frozenset((".pt", ".pth", ".ckpt", ".bin", ".tar"))
_MAX_DEPTH = 4
"""Levels of folders that are looked into for checkpoints."""
_MAX_ENTRIES = 2000
"""Entries of a folder that are looked at for near misses."""


def recognize(path: Path) -> str:
    """The name of the format that a folder is of.

    Raises: ReshardError[source-missing | unknown-source | mixed-source | unfinished-output |
            source-unreadable].
    """
    with as_source_error(path):
        return _recognized(path)


def _recognized(path: Path) -> str:
    if is_unfinished(path):
        raise _unfinished(path)
    if not path.exists():
        raise _missing(path)
    if not path.is_dir():
        if not _above(path) and is_source(SINGLE_FILE, path):
            return SINGLE_FILE
        raise _not_a_folder(path)
    names = formats_of(path)
    if len(names) == 1:
        return names[0]
    if names:
        titles = " and a ".join(SOURCES[name].title for name in names)
        raise source_error(
            "mixed-source",
            f"`{path}` looks like {len(names)} formats at once",
            notes=[f"it has the marks of a {titles}"],
            helps=["move one of them into a folder of its own"],
        )
    raise _unknown(path)


def _unfinished(path: Path) -> ReshardError:
    return source_error(
        "unfinished-output",
        f"`{path}` is the output of an unfinished conversion",
        helps=["run its command again to go on from there, or remove the folder"],
    )


def _missing(path: Path) -> ReshardError:
    parent = path.absolute().parent
    notes, helps = [], []
    if not parent.is_dir():
        notes = [f"there is no folder `{path.parent}` either"]
    else:
        names = [entry.name for entry in _entries(parent) if not entry.name.startswith(".")]
        near = _near(path.name, names)
        helps = [f"did you mean `{path.parent / near}`?"] if near else []
        if Places(path.absolute()).old.is_dir():
            notes = ["what was there was about to be replaced by a run that was stopped"]
            helps = ["run its command again: it is put back, and then replaced"]
    return source_error("source-missing", f"there is no folder `{path}`", notes=notes, helps=helps)


def _not_a_folder(path: Path) -> ReshardError:
    parent = _above(path)
    return source_error(
        "unknown-source",
        f"`{path}` is a file, and a checkpoint is a folder",
        helps=[f"give the folder: `{parent}`"] if parent else [],
    )


def _above(path: Path) -> Path | None:
    """The folder of a checkpoint that a file is part of; one of single files has no parts."""
    last = SOURCES["hf"].turn
    parent = path.parent
    while parent != parent.parent:
        if formats_of(parent, last):
            return parent
        # Models lie above all kinds of files; that a folder holds one says nothing of those below.
        parent, last = parent.parent, SOURCES["hf"].turn - 1
    return None


def _unknown(path: Path) -> ReshardError:
    notes = [f"a {source.title} has {source.marks}" for source in SOURCES.values()]
    helps = []
    entries = _entries(path)
    if not entries:
        notes.append("the folder is empty")
    resemblance = _resembles(entries)
    if resemblance:
        notes.append(resemblance)
    below = _below(entries)
    if below:
        helps = [f"give one of the checkpoints inside: {_listed([f'`{item}`' for item in below])}"]
    elif path.absolute().parent != path and formats_of(path.absolute().parent):
        helps = [f"give the folder above it: `{path.parent}`"]
    elif len(single := _single_files(entries)) > 1:
        notes.append(f"it holds {len(single)} files that may be checkpoints: {_listed(single)}")
        helps = [f"give one of them, e.g. {single[-1]}"]
    elif entries and not resemblance:
        helps = ["describe its files in a layout, and give that with `--layout FILE.ucl`"]
    return source_error(
        "unknown-source", f"`{path}` is not a known checkpoint format", notes=notes, helps=helps
    )


def _below(entries: list[Path]) -> list[Path]:
    """The nearest folders inside that are of a known format, those of the last steps first.

    Trainers have folders for steps, and in these for the models that they train.
    """
    level, seen = entries, 0
    for _ in range(_MAX_DEPTH):
        folders = [item for item in level if item.is_dir() and not is_unfinished(item)]
        known = [item for item in folders if formats_of(item)]
        if known:
            return sorted(known, key=_numbers_of, reverse=True) if level is not entries else known
        seen += len(folders)
        if seen > _MAX_ENTRIES:
            break
        level = [entry for item in folders if not item.is_symlink() for entry in _readable(item)]
    return []


def _readable(folder: Path) -> list[Path]:
    try:
        return _entries(folder)
    except OSError:
        return []


def _numbers_of(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]+", str(path))]


def _resembles(entries: list[Path]) -> str:
    """What a folder is instead, where its names show that."""
    names = {entry.name for entry in entries}
    if "common.pt" in names and "metadata.json" not in names:
        return (
            "it has Megatron's `common.pt`, but no `metadata.json`, which is written last: "
            "the save did not end"
        )
    if any(name.startswith("mp_rank_") for name in names):
        return "it has Megatron's `mp_rank_*` folders, but no `model_optim_rng.pt` in them"
    if any(
        entry.name.endswith((".safetensors.index.json", ".safetensors")) and entry.is_file()
        for entry in entries
    ):
        return (
            "it has files of optimizer states as a universal checkpoint has them, but no "
            "`manifest.json`: the manifest was lost, or not copied"
        )
    if any(name.endswith("_optim_states.pt") for name in names):
        return "it has `*_optim_states.pt` files but no `*_model_states.pt`: part of it is missing"
    return ""


def _single_files(entries: list[Path]) -> list[str]:
    """Files of `torch.save`, by the numbers in their names: the last one is the last step."""
    files = [item for item in entries if item.suffix in _TORCH and item.is_file()]

    def numbers(path: Path) -> list[tuple[int, str]]:
        parts = re.split("([0-9]{1,18})", path.name)
        return [(int(part) if part.isdecimal() else -1, part) for part in parts]

    return [f"`{item}`" for item in sorted(files, key=numbers)]


def _near(name: str, names: list[str]) -> str:
    import difflib

    return next(iter(difflib.get_close_matches(name, names, 1)), "")


def _entries(path: Path) -> list[Path]:
    out = []
    for entry in path.iterdir():
        out.append(entry)
        if len(out) >= _MAX_ENTRIES:
            break
    return sorted(out)


def _listed(items: list[str]) -> str:
    texts = items[:4]
    more = f", and {len(items) - 4} more" if len(items) > 4 else ""
    return ", ".join(texts) + more
