"""Reads a manifest and refuses whatever it should not say."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

from reshard.dtypes import DType
from reshard.errors import source_error
from reshard.formats.universal import FRAMEWORK, LAYOUT, MANIFEST
from reshard.formats.universal.manifest import (
    FORMAT,
    VERSION,
    FileEntry,
    Manifest,
    TensorEntry,
    own_digest,
)
from reshard.formats.universal.strict_json import Node, bad_manifest, load_json
from reshard.run.run import Group, Run
from reshard.store.regular_file import FileTooLargeError, unreadable
from reshard.store.source import LocalSource

MAX_NBYTES = 1 << 28
"""Of the manifest, and of the other files that are read whole."""

_MAX_PATH = 250  # characters; a state kind's name becomes part of it
_WHOLE_FILES = (LAYOUT, FRAMEWORK)
_DIGEST = re.compile(r"xxh3-128:[0-9a-f]{32}")
KEYS = (
    "format",
    "version",
    "digest",
    "written_by",
    "layout",
    "weights_from",
    "aliases",
    "buffers",
    "frozen",
    "config",
    "sizes",
    "training",
    "tensors",
    "files",
    "provenance",
)
TENSOR_KEYS = ("dtype", "shape", "axes", "file", "byte_range", "digest")
TENSOR_FILE_KEYS = ("nbytes", "head_nbytes", "head_digest")
OTHER_FILE_KEYS = ("nbytes", "digest")


def read_manifest(path: Path) -> Manifest:
    """The manifest of a folder.

    Args:  path: the folder.
    Raises: ReshardError[incomplete-universal | bad-manifest | newer-universal | changed-file |
            source-unreadable].
    """
    data = _bytes(path)
    value = load_json(data, MANIFEST)
    where = [f"read from {path / MANIFEST}"]
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise bad_manifest(["`manifest.json` is not the manifest of a universal checkpoint"], where)
    _check_version(value.get("version"), value.get("written_by"), path)
    faults: list[str] = []
    manifest = _manifest(Node(value, "", faults))
    if manifest is None or faults:
        raise bad_manifest(faults, where)
    if value["digest"] != own_digest(data):
        raise source_error(
            "changed-file",
            "`manifest.json` is not as it was written",
            notes=[f"it states {value['digest']} of itself, its bytes have {own_digest(data)}"],
            helps=["copy the checkpoint again, or convert its source again"],
        )
    return manifest


def _bytes(path: Path) -> bytes:
    try:
        return LocalSource(path).read(MANIFEST, MAX_NBYTES)
    except FileTooLargeError as error:
        raise bad_manifest(
            [f"`manifest.json` has {error.nbytes} bytes, more than the {error.limit} it may"]
        ) from None
    except FileNotFoundError:
        raise source_error(
            "incomplete-universal",
            f"{path} has no `manifest.json`, so it is not a complete universal checkpoint",
            notes=["the manifest is written last, when everything else is there"],
            helps=["copy the folder again, or convert its source again"],
        ) from None
    except OSError as error:
        raise unreadable(path / MANIFEST, error) from None


def _check_version(version: object, written_by: object, path: Path) -> None:
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise bad_manifest(
            ["`version` in `manifest.json` is not a format version"],
            [f"read from {path / MANIFEST}"],
        )
    if version > VERSION:
        raise source_error(
            "newer-universal",
            f"{path} has format version {version}, and versions up to {VERSION} are known",
            notes=[f"written by {written_by}"] if isinstance(written_by, str) else [],
            helps=["read it with a newer reshard"],
        )


def _manifest(node: Node) -> Manifest | None:
    top = node.fields(KEYS)
    if top is None:
        return None
    _digest(top["digest"])
    files = _files(top["files"])
    training = top["training"].fields(("iteration", "param_groups", "state"))
    if training is None:
        return None
    iteration = training["iteration"]
    return Manifest(
        written_by=top["written_by"].text(),
        layout_name=top["layout"].text(),
        weights_from=top["weights_from"].texts(),
        tensors=_tensors(top["tensors"], files),
        files=tuple(files.values()),
        aliases={key: item.text() for key, item in (top["aliases"].members() or {}).items()},
        buffers=top["buffers"].texts(),
        frozen=top["frozen"].texts(),
        config=top["config"].mapping(),
        sizes={key: item.integer() for key, item in (top["sizes"].members() or {}).items()},
        training=Run(
            iteration=None if iteration.value is None else iteration.integer(),
            param_groups=tuple(map(Group.of, training["param_groups"].mappings())),
            state=training["state"].mapping() or {},
        ),
        provenance=top["provenance"].mappings(),
    )


def _files(node: Node) -> dict[str, FileEntry]:
    out: dict[str, FileEntry] = {}
    for path, item in (node.members() or {}).items():
        if not is_inside(path):
            node.faults.append(
                f"`files` in `manifest.json` has the path {path!r}, which it may not"
            )
            continue
        value = item.value
        if isinstance(value, dict) and "head_nbytes" in value:
            fields = item.fields(TENSOR_FILE_KEYS)
            if fields is not None:
                out[path] = FileEntry(
                    path,
                    fields["nbytes"].integer(),
                    _digest(fields["head_digest"]),
                    fields["head_nbytes"].integer(),
                )
        else:
            fields = item.fields(OTHER_FILE_KEYS)
            if fields is not None:
                out[path] = FileEntry(path, fields["nbytes"].integer(), _digest(fields["digest"]))
    if LAYOUT not in out:
        node.faults.append(f"`files` in `manifest.json` does not list `{LAYOUT}`")
    for path in _WHOLE_FILES:
        if path in out and (out[path].head_nbytes is not None or out[path].nbytes > MAX_NBYTES):
            node.faults.append(f"`files.{path}` in `manifest.json` is no small file of text")
    return out


def is_inside(path: str) -> bool:
    """Whether a path names a file below the folder, in one way only."""
    if path == MANIFEST or "\\" in path or not path.isprintable() or len(path) > _MAX_PATH:
        return False
    return all(part not in ("", ".", "..") for part in path.split("/"))


def _tensors(node: Node, files: dict[str, FileEntry]) -> tuple[TensorEntry, ...]:
    out = []
    states_of: dict[str, str] = {}
    for name, states in (node.members() or {}).items():
        for state, item in (states.members() or {}).items():
            entry = _tensor(name, state, item, files)
            if entry is None:
                continue
            if states_of.setdefault(entry.file, state) != state:
                item.fault(f"in a file of its own: {entry.file} has `{states_of[entry.file]}`")
            out.append(entry)
    return tuple(out)


def _tensor(name: str, state: str, node: Node, files: dict[str, FileEntry]) -> TensorEntry | None:
    fields = node.fields(TENSOR_KEYS)
    if fields is None:
        return None
    faults = len(node.faults)
    dtype = fields["dtype"].value
    if not isinstance(dtype, str) or dtype not in DType.__members__:
        fields["dtype"].fault("an element type")
        return None
    shape = fields["shape"].integers()
    axes = fields["axes"].texts()
    if len(axes) != len(shape):
        fields["axes"].fault(f"one string for each of {len(shape)} dimensions")
    if len(node.faults) > faults:
        return None
    file = files.get(fields["file"].text())
    if file is None or file.head_nbytes is None:
        fields["file"].fault("a tensor file that `files` lists")
        return None
    size = prod(shape) * DType(dtype).itemsize
    first = fields["byte_range"].integers()
    if len(first) != 2 or first[1] - first[0] != size:
        fields["byte_range"].fault(f"a range of the {size} bytes of {dtype} {list(shape)}")
        return None
    if first[0] < file.head_nbytes or first[1] > file.nbytes:
        fields["byte_range"].fault(
            f"inside of {file.path}, whose tensors are bytes {file.head_nbytes} to {file.nbytes}"
        )
    return TensorEntry(
        name,
        state,
        DType(dtype),
        shape,
        axes,
        file.path,
        first[0],
        size,
        _digest(fields["digest"]),
    )


def _digest(node: Node) -> str:
    if isinstance(node.value, str) and _DIGEST.fullmatch(node.value):
        return node.value
    node.fault("`xxh3-128:` and 32 hex digits")
    return ""
