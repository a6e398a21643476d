"""Reads a Hugging Face model folder into a catalog."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reshard.errors import Diagnostic, source_error
from reshard.formats.hf import CONFIG, NAME
from reshard.formats.hf.dcp_shards import read_shards
from reshard.formats.hf.folder import known_file, snapshot_of
from reshard.formats.hf.safetensors_set import read_set
from reshard.formats.hf.second_set import second_set
from reshard.formats.hf.torch_set import read_torch_set
from reshard.formats.hf.weight_files import find_weights
from reshard.language import load_layout
from reshard.models import adapters
from reshard.models.config_json import load_config
from reshard.plan.catalog import Catalog, LocalTensor, SourceFile
from reshard.run.run import Run
from reshard.store.source import LocalSource

LAYOUT = """\
# Every tensor is whole, or the files say which box of it they hold: nothing is cut by rank.
layout hf {
    "**" = [...] optional
}
"""


def read(path: Path, *, step: str | None = None, strict_layout: bool = True) -> Catalog:
    """The catalog of a model folder.

    Args:  step: a folder inside of `path`, of several that are there.
           strict_layout: there is nothing to relax.
    Raises: ReshardError[ambiguous-weights | incomplete-hf | bad-index | bad-config | missing-file |
            outside-link | index-mismatch | bad-safetensors | no-state-dict | bad-shard |
            unknown-step], and what `open_torch_file` raises.
    """
    if step is not None:
        raise source_error(
            "unknown-step",
            f"{path} has no step `{step}`",
            notes=["a model folder contains the weights of one step, and does not record which"],
            helps=["leave `--step` out"],
        )
    path = snapshot_of(path)
    weights = find_weights(path)
    if weights.files in ((adapters.SAFETENSORS,), (adapters.TORCH,)):
        config: Mapping[str, object] | None = adapters.of_adapter(_config(path, adapters.CONFIG))
    else:
        config = _config(path, CONFIG)
    aliases: dict[str, str] = {}
    oddities: tuple[Diagnostic, ...] = ()
    tensors: tuple[LocalTensor, ...]
    files: tuple[SourceFile, ...]
    if weights.kind == "torch":
        tensors, aliases, files = read_torch_set(path, weights)
    elif weights.kind == "shards":
        tensors, files, oddities = read_shards(path, weights)
    else:
        tensors, files = read_set(path, weights)
    left, second = second_set(path, weights, tensors)
    index = (weights.index,) if weights.index else ()
    return Catalog(
        format=NAME,
        version=_version(config),
        root=str(path.absolute()),
        mesh={},
        tensors=tensors,
        layout=load_layout(LAYOUT, "hf layout"),
        training=Run(),
        config=config,
        aliases=aliases,
        files=(*files, *(known_file(path, name, "the folder") for name in index)),
        left=left,
        oddities=(*oddities, *second),
        names_of=NAME,
    )


def _config(path: Path, name: str) -> Mapping[str, object] | None:
    """The configuration in a folder; None where there is none."""
    source = LocalSource(path)
    if name not in source.files():
        return None
    known_file(path, name, "the folder")
    return load_config(source, name, "copy it again from where the model came from")


def _version(config: object) -> str:
    version = config.get("transformers_version") if isinstance(config, dict) else None
    return version if isinstance(version, str) else ""


__all__ = ["CONFIG", "LAYOUT", "read"]
