"""Reads a universal checkpoint into a catalog."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reshard.errors import source_error
from reshard.formats.universal import FRAMEWORK, LAYOUT, MANIFEST, NAME
from reshard.formats.universal.check_files import check_files, is_side_file
from reshard.formats.universal.manifest import Manifest, local_tensors
from reshard.formats.universal.read_manifest import read_manifest
from reshard.formats.universal.strict_json import bad_manifest, load_json
from reshard.language import load_layout
from reshard.plan.catalog import Catalog
from reshard.store.source import LocalSource


def read(path: Path, *, step: str | None = None, strict_layout: bool = True) -> Catalog:
    """The catalog of a universal checkpoint.

    Every file is checked against the manifest but for the bytes of tensors, which `verify` reads.

    Args:  step: its iteration, or None; there is only one.
           strict_layout: there is nothing to relax.
    Raises: ReshardError[incomplete-universal | bad-manifest | newer-universal | missing-file |
            changed-file | unknown-step].
    """
    manifest = read_manifest(path)
    _check_step(path, manifest, step)
    texts = check_files(path, manifest)
    training = manifest.training
    if FRAMEWORK in texts:
        framework = load_json(texts[FRAMEWORK], FRAMEWORK)
        if not isinstance(framework, dict):
            raise bad_manifest([f"`{FRAMEWORK}` is not an object"], [f"in {path}"])
        training = replace(training, framework=framework)
    names = [MANIFEST, *(item.path for item in manifest.files)]
    return Catalog(
        format=NAME,
        version=manifest.written_by,
        root=str(path.absolute()),
        mesh={},
        tensors=local_tensors(manifest.tensors),
        layout=load_layout(_text(path, texts[LAYOUT]), f"{NAME} layout", manifest.layout_name),
        training=training,
        config=manifest.config,
        aliases=manifest.aliases,
        buffers=manifest.buffers,
        frozen=manifest.frozen,
        files=tuple(map(LocalSource(path).stat, names)),
        names_of=_names_of(manifest),
        side_files={item.path: item.path for item in manifest.files if is_side_file(item)},
    )


def _names_of(manifest: Manifest) -> str:
    """The format whose names the tensors have, as the last conversion knew it."""
    names = manifest.provenance[-1].get("names") if manifest.provenance else None
    return names if isinstance(names, str) else ""


def _check_step(path: Path, manifest: Manifest, step: str | None) -> None:
    iteration = manifest.training.iteration
    if step is None or step == str(iteration):
        return
    raise source_error(
        "unknown-step",
        f"{path} has no step `{step}`",
        notes=[
            "a universal checkpoint holds one step; "
            + ("this one does not say which" if iteration is None else f"this one is {iteration}")
        ],
        helps=["leave `--step` out"],
    )


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        headline = f"`{LAYOUT}` is not UTF-8 text: {error.reason}"
        raise bad_manifest([headline], [f"in {path}"]) from None
