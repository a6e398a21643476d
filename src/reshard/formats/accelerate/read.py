"""Reads an FSDP checkpoint of accelerate in `.bin` files into a catalog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from reshard.errors import Diagnostic, ReshardError, source_error
from reshard.formats.accelerate import COPY, NAME
from reshard.formats.accelerate.detect import Files, find_files
from reshard.formats.dtensor import DTensorError, RankTensor, rank_tensor
from reshard.language import load_layout
from reshard.plan.catalog import Catalog, Fragment, Left, LocalTensor, SourceFile
from reshard.run.run import Group, Run
from reshard.run.states import PARAM
from reshard.storage.kept import encode
from reshard.storage.source import LocalSource
from reshard.storage.torch_file import open_torch_file

LAYOUT = """\
# Every rank's file says which box of each tensor it holds. Along `copy` lie equal ones.
layout accelerate {
    mesh copy
    "**" = [...] optional
}
"""
_MODEL, _OPTIMIZER = "pytorch_model_fsdp", "optimizer"
_OF_OPTIMIZERS = {"state", "param_groups"}


def read(path: Path, *, step: str | None = None, strict_layout: bool = True) -> Catalog:
    """The catalog of a checkpoint.

    Args:  step: there is only one.  strict_layout: there is nothing to relax.
    Raises: ReshardError[unknown-step | ambiguous-weights | missing-rank-file | bad-shard |
            no-state-dict | ambiguous-optimizer-ids | outside-link |
            ranks-disagree], and what `open_torch_file` raises.
    """
    if step is not None:
        raise source_error(
            "unknown-step",
            f"{path} has no step `{step}`",
            notes=["the folder holds one step, and does not say which"],
            helps=["leave `--step` out"],
        )
    reader = _Reader(path)
    model = find_files(path, _MODEL)
    assert model is not None, "that is how the folder was known"
    for rank, root in reader.roots(model):
        reader.weights(rank, root, model)
    optimizer = find_files(path, _OPTIMIZER)
    for rank, root in reader.roots(optimizer) if optimizer else ():
        assert optimizer is not None
        reader.states(rank, root, optimizer)
    tensors = tuple(reader.tensors())
    return Catalog(
        format=NAME,
        version="",
        root=str(path.absolute()),
        mesh={COPY: reader.copies} if reader.copies > 1 else {},
        tensors=tensors,
        layout=load_layout(LAYOUT, "accelerate layout"),
        training=Run(
            param_groups=tuple(map(Group.of, reader.groups)),
            framework={"name": NAME},
        ),
        files=tuple(reader.files),
        oddities=tuple(replace(item, level="warning") for item in reader.withheld),
        left=tuple(reader.left),
        withheld=reader.withheld,
    )


class _Reader:
    """Puts the files of all ranks together."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._source = LocalSource(root)
        self._parts: dict[tuple[str, str], list[tuple[str, RankTensor]]] = {}
        self.files: list[SourceFile] = []
        self.groups: list[dict[str, object]] = []
        self.left: list[Left] = []
        self.withheld: tuple[Diagnostic, ...] = ()
        self.copies = 1
        self._first = ""

    def roots(self, files: Files) -> Iterator[tuple[int, Mapping[object, object]]]:
        """The state dict of every rank."""
        for rank, name in [(0, files.whole)] if files.whole else files.ranks.items():
            assert name is not None
            self.files.append(self._source.stat(name))
            root = open_torch_file(self._source.path(name)).root
            if not isinstance(root, dict):
                raise self._bad(name, "it is no dict")
            yield rank, root

    def weights(self, rank: int, root: Mapping[object, object], files: Files) -> None:
        """The weights of a rank."""
        for name, value in root.items():
            if "_flat_param" in str(name):
                raise self._bad(
                    files.ranks.get(rank) or str(files.whole),
                    f"`{name}` is a flat buffer of FSDP; only the run itself can take it apart",
                    "save with `SHARDED_STATE_DICT` or `FULL_STATE_DICT`",
                )
            self._add(rank, str(name), PARAM, value, files)

    def states(self, rank: int, root: Mapping[object, object], files: Files) -> None:
        """The optimizer's states of a rank."""
        name = files.ranks.get(rank) or str(files.whole)
        state, groups = root.get("state"), root.get("param_groups")
        if not isinstance(state, dict) or not isinstance(groups, list):
            raise self._bad(name, "it has no `state` and `param_groups`")
        for key in root.keys() - _OF_OPTIMIZERS:
            self.left.append(Left(name, str(key), "nothing of an optimizer is known by that name"))
        for owner, values in state.items():
            if not isinstance(owner, str):
                self.withheld = self.withheld or _numbered(owner, self._root / name).diagnostics
                break
            if not isinstance(values, dict):
                raise self._bad(name, f"the state of `{owner}` is no dict")
            for kind, value in values.items():
                self._add(rank, owner, str(kind), value, files)
        self._note_groups(name, groups)

    def _note_groups(self, name: str, groups: list[object]) -> None:
        """Keep the param groups, which are alike on every rank.

        Raises: ReshardError[ranks-disagree].
        """
        found = [
            {str(key): encode(value) for key, value in group.items()}
            for group in groups
            if isinstance(group, dict)
        ]
        if not self._first:
            self.groups, self._first = found, name
        elif found != self.groups:
            raise source_error(
                "ranks-disagree",
                "ranks disagree about `param_groups`",
                notes=[
                    f"one is in {self._root / self._first}",
                    f"the other in {self._root / name}",
                ],
                helps=["the files may be of different runs or steps; copy those of one"],
            )

    def _add(self, rank: int, name: str, state: str, value: object, files: Files) -> None:
        file = files.ranks.get(rank) or str(files.whole)
        try:
            found = rank_tensor(value, rank)
        except DTensorError as error:
            raise self._bad(file, f"`{name}` ({state}): {error}") from None
        if found is None:
            raise self._bad(file, f"`{name}` ({state}) is no tensor")
        missing = [item for item in found.ranks if item not in files.ranks]
        if missing:
            raise source_error(
                "missing-rank-file",
                f"{len(missing)} of the files of {len(found.ranks)} ranks are missing",
                notes=[f"in {self._root}: those of rank {', '.join(map(str, missing[:8]))}"],
                helps=["copy the files of all ranks into one folder"],
            )
        self._parts.setdefault((name, state), []).append((file, found))

    def tensors(self) -> Iterator[LocalTensor]:
        """Every tensor, once for each copy of it."""
        for (name, state), parts in self._parts.items():
            file, first = parts[0]
            copies: dict[tuple[object, ...], list[Fragment]] = {}
            for where, part in parts:
                if part.shape != first.shape or part.ref.dtype != first.ref.dtype:
                    why = f"`{name}` ({state}) is another than in `{file}`"
                    raise self._bad(where, why)
                if part.box.volume or part.box.size == part.shape:
                    copies.setdefault(part.copy, []).append(_fragment(where, part))
            self.copies = max(self.copies, len(copies))
            for copy, fragments in enumerate(copies.values()):
                coord = ((COPY, copy),) if len(copies) > 1 else ()
                yield LocalTensor(
                    name, state, coord, first.shape, first.ref.dtype, tuple(fragments)
                )

    def _bad(self, name: str, why: str, fix: str = "") -> ReshardError:
        return source_error(
            "bad-shard",
            f"{self._root / name} is not a shard of a distributed checkpoint",
            notes=[why],
            helps=[fix or "the folder mixes two checkpoints, or is damaged; copy it again"],
        )


def _numbered(owner: object, path: Path) -> ReshardError:
    return source_error(
        "ambiguous-optimizer-ids",
        f"the states of parameter number {owner} in {path} have no name",
        notes=["the optimizer was saved by its own `state_dict()`, which counts"],
        helps=[
            "leave the states out with `--states weights`",
            "or save it through `accelerator.save_state`",
        ],
    )


def _fragment(file: str, part: RankTensor) -> Fragment:
    ref = part.ref
    return Fragment(
        0,
        ref.numel,
        file,
        ref.byte_offset,
        None if ref.is_contiguous else ref.strides,
        None,
        None if part.box.size == part.shape else part.box,
    )
