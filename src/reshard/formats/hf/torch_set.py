"""The tensors of `pytorch_model*.bin`: state dicts that `torch.save` wrote."""

from __future__ import annotations

from pathlib import Path

from reshard.errors import ReshardError, source_error
from reshard.formats.hf.folder import known_files
from reshard.formats.hf.safetensors_set import check_index
from reshard.formats.hf.weight_files import WeightFiles
from reshard.plan.catalog import Fragment, LocalTensor, SourceFile
from reshard.run.states import PARAM
from reshard.storage.torch_file import TensorRef, open_torch_file


def read_torch_set(
    root: Path, weights: WeightFiles
) -> tuple[tuple[LocalTensor, ...], dict[str, str], tuple[SourceFile, ...]]:
    """Every tensor of a set of torch files; a tensor of two names in one file is there once.

    Returns: tensors; other name -> name of tied ones; files.
    Raises: ReshardError[missing-file | outside-link | index-mismatch | no-state-dict], and what
            `open_torch_file` raises.
    """
    named_by = f"`{weights.index}`" if weights.index else "the folder"
    files = known_files(root, weights.files, named_by)
    states = {name: state_dict(root / name) for name in weights.files}
    check_index(root, weights, {name: tuple(item) for name, item in states.items()})
    tensors: list[LocalTensor] = []
    aliases: dict[str, str] = {}
    for file, state in states.items():
        first: dict[tuple[object, ...], str] = {}
        for name, ref in state.items():
            same = (ref.storage_key, ref.storage_offset, ref.dtype, ref.shape, ref.strides)
            if ref.numel and same in first:
                aliases[name] = first[same]
                continue
            first[same] = name
            where = (lying(file, ref),)
            tensors.append(LocalTensor(name, PARAM, (), ref.shape, ref.dtype, where))
    return tuple(tensors), aliases, files


def state_dict(path: Path) -> dict[str, TensorRef]:
    """The tensors of a file that holds nothing else.

    Raises: ReshardError[no-state-dict], and what `open_torch_file` raises.
    """
    root = open_torch_file(path).root
    if not isinstance(root, dict):
        raise _no_state_dict(path, "it is no dict")
    for name, value in root.items():
        if not isinstance(name, str) or not isinstance(value, TensorRef):
            raise _no_state_dict(path, f"entry {name!r} is no tensor")
    return root


def lying(file: str, ref: TensorRef) -> Fragment:
    """A tensor of a file as a fragment."""
    strides = None if ref.is_contiguous else ref.strides
    return Fragment(0, ref.numel, file, ref.byte_offset, strides)


def _no_state_dict(path: Path, why: str) -> ReshardError:
    return source_error(
        "no-state-dict",
        f"{path} does not hold the weights of a model by name",
        notes=[why],
        helps=["save `model.state_dict()` alone, or `model.save_pretrained()`"],
    )
