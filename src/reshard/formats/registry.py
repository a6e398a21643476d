"""Which module reads and which writes each format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, resources
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from reshard.formats.checked import Checked
from reshard.formats.run_files import with_run_files
from reshard.language.layout import Layout
from reshard.plan.arrangement import Arrangement
from reshard.plan.catalog import Catalog
from reshard.plan.plan import ArraySpec
from reshard.plan.target import Target
from reshard.store.regular_file import as_source_error


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """A format that can be read.

    Args:  package: has `detect.detect(path)` and `read.read(path, step=...)`.
           title: for people.  writer: goes before the version of what wrote it.
           marks: what a folder of it holds, for messages.
           turn: when it is asked; a later one only where a folder is of no format before it.
                 Weights for serving often lie in the folder of a training run.
           has_weights_apart: whether its weights may lie in a folder of Hugging Face's form.
           counts_all: whether its optimizers count all parameters of the model, so that reading
                       them asks what is none.
    """

    package: str
    title: str
    writer: str
    marks: str
    turn: int = 0
    has_weights_apart: bool = False
    counts_all: bool = False


SOURCES: Mapping[str, SourceFormat] = MappingProxyType(
    {
        "universal": SourceFormat(
            "reshard.formats.universal", "universal checkpoint", "", "a `manifest.json`"
        ),
        "deepspeed": SourceFormat(
            "reshard.formats.deepspeed",
            "DeepSpeed checkpoint",
            "DeepSpeed ",
            "a `latest` file beside the folder that it names, or `*_model_states.pt` files",
        ),
        "deepspeed-universal": SourceFormat(
            "reshard.formats.deepspeed.universal_form",
            "universal checkpoint of DeepSpeed",
            "DeepSpeed ",
            "a `zero` folder with a folder for each parameter",
        ),
        "megatron": SourceFormat(
            "reshard.formats.megatron",
            "Megatron checkpoint",
            "checkpoint version ",
            "`latest_checkpointed_iteration.txt`, `mp_rank_*` folders, or `metadata.json`",
            counts_all=True,
        ),
        "dcp": SourceFormat(
            "reshard.formats.dcp",
            "PyTorch distributed checkpoint",
            "DCP metadata ",
            "a `.metadata` file",
            has_weights_apart=True,
        ),
        "nanotron": SourceFormat(
            "reshard.formats.nanotron",
            "nanotron checkpoint",
            "checkpoint version ",
            "a `checkpoint_metadata.json` beside a folder `model`",
        ),
        "described": SourceFormat(
            "reshard.formats.described",
            "checkpoint described by a layout",
            "",
            "the files of nanoGPT, Lightning, verl, Meta, accelerate, or transformers' Trainer",
            turn=1,
        ),
        "hf": SourceFormat(
            "reshard.formats.hf",
            "Hugging Face model",
            "transformers ",
            "`model.safetensors`, `model.safetensors.index.json`, or `pytorch_model.bin`",
            turn=2,
        ),
        "single-file": SourceFormat(
            "reshard.formats.described.single_file",
            "checkpoint of one file",
            "",
            "one file of `torch.save` with a state dict",
            turn=3,
        ),
    }
)
"""By name, in the order in which they are asked."""


VERIFY = "reshard verify {src} {dst}"
"""Proves that a target holds what its source does."""


@dataclass(frozen=True, slots=True)
class TargetFormat:
    """A format that can be written.

    Args:  module: has `prepare(arrangement, target, ...)`.  title: for people.
           next_step: what to do with the folder, with `{src}` and `{dst}`.
           names: the layout of a model whose names the target's tensors have, or the beginning of
                  one; empty where the target keeps the names of the source.
           instead: another layout for models that `names` cannot stack, having layers of two kinds.
           variants: by an option that is 1, other names, and facts of the model with them.
           mesh: options that are sizes of mesh axes, each 1 if it is left out; of targets that have
                 names of their own.
           kept_mesh: options that are sizes of mesh axes, each the source's if it is left out.
           carries_files: whether small files that lie beside the weights go along.
           weights_only: whether it has a place for weights alone.
           run_of: the framework that goes on with the run; it reads nothing that another one kept.
    """

    module: str
    title: str
    next_step: str = VERIFY
    names: str = ""
    instead: str = ""
    variants: Mapping[str, tuple[str, Mapping[str, float]]] = field(default_factory=dict)
    mesh: tuple[str, ...] = ()
    kept_mesh: tuple[str, ...] = ()
    carries_files: bool = False
    weights_only: bool = False
    run_of: str = ""

    def names_of(self, target: Target) -> tuple[str, dict[str, float]]:
        """The names that a target asks for, and facts of the model with them.

        Raises: ReshardError[bad-option].
        """
        for option, (names, facts) in self.variants.items():
            if target.integer(option, 0, least=0):
                return names, dict(facts)
        return self.names, {}

    def mesh_of(self, target: Target) -> dict[str, int]:
        """The sizes of the mesh that a target asks for.

        Raises: ReshardError[bad-option].
        """
        return {axis: target.integer(axis, 1) or 1 for axis in self.mesh}


TARGETS: Mapping[str, TargetFormat] = MappingProxyType(
    {
        "universal": TargetFormat(
            "reshard.formats.universal.write",
            "universal checkpoint",
            "reshard verify {dst}",
            carries_files=True,
        ),
        "described": TargetFormat(
            "reshard.formats.described.write",
            "checkpoint described by a layout",
            "reshard inspect {dst}",
            carries_files=True,
        ),
        "deepspeed": TargetFormat(
            "reshard.formats.deepspeed.write_native",
            "DeepSpeed checkpoint",
            kept_mesh=("pp", "tp", "ep"),
            carries_files=True,
            run_of="deepspeed",
        ),
        "dcp": TargetFormat(
            "reshard.formats.dcp.write",
            "PyTorch distributed checkpoint",
            "torch.distributed.checkpoint.load(state_dict, checkpoint_id='{dst}')",
            carries_files=True,
        ),
        "torchtitan": TargetFormat(
            "reshard.formats.dcp.write",
            "checkpoint of torchtitan",
            "torchtitan resumes from it with `--checkpoint.folder={dst}`",
            names="torchtitan",
            variants=MappingProxyType({"fused": ("torchtitan_fused", {"fuse_qkv": True})}),
            carries_files=True,
        ),
        "olmo-core": TargetFormat(
            "reshard.formats.dcp.write",
            "checkpoint of OLMo-core",
            "OLMo-core loads it with `load_path: {dst}/model_and_optim`",
            names="olmo_core",
            carries_files=True,
        ),
        "accelerate": TargetFormat(
            "reshard.formats.dcp.write",
            "checkpoint of FSDP for accelerate",
            "accelerate loads it with `accelerator.load_state('{dst}')`",
            carries_files=True,
        ),
        "deepspeed-universal": TargetFormat(
            "reshard.formats.deepspeed.write_universal",
            "folder in DeepSpeed's universal form",
            'DeepSpeed loads it with "checkpoint": {{"load_universal": true}} in its config',
            run_of="deepspeed",
        ),
        "megatron": TargetFormat(
            "reshard.formats.megatron.write_legacy",
            "Megatron checkpoint",
            names="megatron",
            mesh=("vpp", "pp", "tp", "ep"),
            carries_files=True,
            run_of="megatron",
        ),
        "nanotron": TargetFormat(
            "reshard.formats.nanotron.write",
            "nanotron checkpoint",
            names="nanotron",
            mesh=("pp", "tp", "dp"),
            carries_files=True,
            run_of="nanotron",
        ),
        "hf": TargetFormat(
            "reshard.formats.hf.write",
            "Hugging Face model",
            "transformers loads it with `from_pretrained('{dst}')`",
            names="hf",
            carries_files=True,
            weights_only=True,
        ),
        "megatron-dist": TargetFormat(
            "reshard.formats.megatron.write_dist",
            "Megatron distributed checkpoint",
            names="megatron_dist",
            carries_files=True,
            instead="megatron_dist_layers",
            run_of="megatron",
        ),
    }
)
"""By the name that `--to` takes."""


def formats_of(path: Path, last: int = 9) -> tuple[str, ...]:
    """Every format that a folder looks like, of those that are asked before others.

    Args:  last: turn; later ones are not asked.
    """
    for turn in sorted({source.turn for source in SOURCES.values() if source.turn <= last}):
        names = [name for name in SOURCES if SOURCES[name].turn == turn]
        matching = tuple(name for name in names if is_source(name, path))
        if matching:
            return matching
    return ()


def is_source(name: str, path: Path) -> bool:
    """Whether a folder looks like one of a format; cheap, nothing is parsed."""
    return bool(module_of(f"{SOURCES[name].package}.detect").detect(path))


def read(
    name: str,
    path: Path,
    *,
    step: str | None = None,
    strict_layout: bool = True,
    excluded: Collection[str] = (),
) -> Catalog:
    """The catalog of a folder that is known to be of a format.

    Args:  step: which of several.  strict_layout: whether the checkpoint must describe itself; not
           where the user brings a layout.  excluded: names of tensors that are not wanted.
    Raises: everything that the format finds wrong.
    """
    module = module_of(f"{SOURCES[name].package}.read")
    parts: dict[str, object] = {}
    if SOURCES[name].has_weights_apart:
        parts["read_weights"] = _read_weights
    if SOURCES[name].counts_all:
        parts["excluded"] = excluded
    with as_source_error(path):
        catalog = module.read(path, step=step, strict_layout=strict_layout, **parts)
    assert isinstance(catalog, Catalog)
    if name == "universal" or not path.is_dir():
        return catalog
    return with_run_files(path, catalog)


def _read_weights(path: Path) -> Catalog:
    """The catalog of a folder of weights that is part of a checkpoint of another format."""
    catalog = module_of(f"{SOURCES['hf'].package}.read").read(path)
    assert isinstance(catalog, Catalog)
    return catalog


def read_described(layout: Layout, path: Path, *, step: str | None = None) -> Catalog:
    """The catalog of a folder whose files a layout describes.

    Raises: everything that does not fit.
    """
    module = module_of("reshard.formats.described.read")
    with as_source_error(path):
        catalog = module.read_described(layout, path, step=step)
    assert isinstance(catalog, Catalog)
    return with_run_files(path, catalog) if path.is_dir() else catalog


def local_specs(
    arrangement: Arrangement, target: Target, rank: Mapping[str, int]
) -> tuple[ArraySpec, ...] | None:
    """What one rank of a target holds, where its module has `local_specs`; else None.

    Raises: what the module finds wrong.
    """
    module = module_of(TARGETS[target.format].module)
    if not hasattr(module, "local_specs"):
        return None
    specs = module.local_specs(arrangement, target, rank)
    assert isinstance(specs, tuple)
    return specs


def check_bytes(name: str, catalog: Catalog, on_bytes: Callable[[int], None]) -> Checked:
    """Hold the files of a source to what it says of their bytes itself.

    Args:  on_bytes: is told how many bytes more were read.
    """
    module_name = f"{SOURCES[name].package}.verify"
    module = module_of(module_name if find_spec(module_name) else "reshard.formats.checked")
    result = module.check_bytes(catalog, on_bytes)
    assert isinstance(result, Checked)
    return result


_READ_ONLY = frozenset(
    {
        *("accelerate_ranks", "accelerate_whole", "lightning", "single_file"),
        *("torch_checkpointing", "nanotron"),
    }
)
"""Descriptions with names that say no one file, of files that no layout says in full, and of files
that torch's own checkpoints have replaced.
"""


@cache
def described_names() -> tuple[str, ...]:
    """The layouts that describe files, and ship, and are written."""
    folder = resources.files("reshard").joinpath("layouts", "files")
    names = sorted(item.name for item in folder.iterdir())
    stems = (name.removesuffix(".ucl") for name in names if name.endswith(".ucl"))
    return tuple(name for name in stems if name not in _READ_ONLY)


def described_layout(name: str) -> Layout:
    """One of them."""
    layout = module_of("reshard.formats.described.shipped").description(name)
    assert isinstance(layout, Layout)
    return layout


def module_of(name: str) -> Any:
    """A module of a format, imported when it is asked for."""
    return import_module(name)
