"""Writes a folder as a layout describes it: the same places that reading looks at are made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import PurePosixPath
from typing import cast

from reshard.errors import Diagnostic, ReshardError, label, target_error
from reshard.formats.described.groups import STAGE
from reshard.formats.described.make import Tree, where_of
from reshard.formats.described.tree import At
from reshard.formats.described.write_facts import Facts
from reshard.formats.described.write_states import Placement, WrittenStates
from reshard.formats.run_files import is_of_model
from reshard.language.expression import evaluate
from reshard.language.layout import Entry, FileRule, Layout
from reshard.language.place import (
    GROUP,
    HOLES,
    MODULE,
    NAME,
    NUMBER,
    PARAMETER,
    STATE,
    FileName,
    Place,
)
from reshard.models.config import has_hf_names, model_config
from reshard.models.config_json import CONFIG
from reshard.plan.arrangement import Arrangement
from reshard.plan.output import FileBytes, Output, PlacedSpec, Written
from reshard.plan.target import Target
from reshard.storage.inert import Record, Size
from reshard.storage.safetensors import layout_header
from reshard.storage.torch_output import TorchOutput
from reshard.storage.torch_writer import NewTensor

DEVICE = "device"
"""Option: the kind of device of the ranks that load, where tensors of torch's mesh name it."""


def prepare(arrangement: Arrangement, target: Target, *, layout: Layout) -> Output:
    """The folder as arrays with their places.

    Args:  arrangement: in the names of the layout.
           target: its options are sizes of the mesh, and `device` where tensors name it.
    Raises: ReshardError[unknown-option | bad-option | no-place | no-groups | uneven-target], and
            what cutting the tensors raises.
    """
    has_device = any(rule.is_dtensor for rule in layout.partitions)
    target.reject_unknown((*layout.mesh, *([DEVICE] if has_device else [])))
    mesh = {axis: target.integer(axis, 1) or 1 for axis in layout.mesh}
    device = target.options.get(DEVICE, "cuda")
    return Writer(arrangement, layout, mesh, device).output()


class Writer:
    """The files of all ranks."""

    def __init__(
        self,
        arrangement: Arrangement,
        layout: Layout,
        mesh: Mapping[str, int],
        device: str = "",
        *,
        folder: str = "",
        placement: Placement | None = None,
    ) -> None:
        self._folder = folder
        self._arrangement = arrangement
        self._layout = layout
        self._mesh = mesh
        self._torch = TorchOutput()
        self._made_warnings: tuple[Diagnostic, ...] = ()
        self._states = WrittenStates(arrangement, layout, mesh, self._torch, device, placement)
        self._facts = Facts(arrangement, layout, self._states, self._torch)

    def output(self) -> Output:
        """Everything."""
        for rule in self._layout.files:
            self._rule(rule)

        def finish(written: Sequence[Written]) -> tuple[FileBytes, ...]:
            return self._torch.finish(written)

        return Output(
            tuple(self._torch.placed),
            self._torch.files,
            tuple(self._torch.head),
            finish,
            tuple(self._warnings()),
            (*self._states.dropped(), *self._facts.dropped()),
            self._states.folded(),
            beside=self._folder,
            elsewhere=self._elsewhere(),
            makes_weights=self._states.makes_weights,
        )

    def _warnings(self) -> Iterator[Diagnostic]:
        yield from self._made_warnings
        yield from self._states.warnings()
        yield from self._facts.warnings()

    # ---- files ---------------------------------------------------------------------------------

    def _rule(self, rule: FileRule) -> None:
        names = [name for name in rule.names if not name.pattern.has_star]
        names = [name for name in names if {*_axes(name)} <= {*self._mesh, NAME, STATE}]
        if not names:
            if rule.optional or not rule.entries:
                return
            raise _unnamed_file(rule)
        for at, name in self._named(names):
            axes = [axis for axis in _axes(name) if axis not in at]
            ranges: list[Sequence[str | int]] = [self._values(axis) for axis in axes]
            for position in product(*ranges):
                self._file(rule, name, {**at, **dict(zip(axes, position, strict=True))})

    def _named(self, names: Sequence[FileName]) -> Iterator[tuple[dict[str, str | int], FileName]]:
        """The first name; of files of one parameter each, the first of ranks that cut it."""
        if len(names) == 1 or NAME not in _axes(names[0]):
            yield {}, names[0]
            return
        for parameter in self._states.names:
            known = {*self._states.axes_of(parameter), NAME, STATE, STAGE}
            yield {NAME: parameter}, next((x for x in names if {*_axes(x)} <= known), names[0])

    def _values(self, hole: str) -> Sequence[str | int]:
        if hole == NAME:
            return self._states.names
        if hole == STATE:
            return self._states.kinds
        return range(self._mesh[hole])

    def _file(self, rule: FileRule, name: FileName, at: dict[str, str | int]) -> None:
        sizes = {f"#{axis}": size for axis, size in self._mesh.items()}
        path = name.pattern.fill({**sizes, **at})
        if self._is_beside(rule, path):
            return  # it goes along as it is
        tree = Tree()
        if rule.optional and any(self._is_unknown(entry, at) for entry in rule.entries):
            return
        for entry in rule.entries:
            self._entry(rule, entry, path, tree, at)
        if tree.is_empty:
            if rule.optional or any(hole.name in HOLES for hole in name.pattern.holes):
                return
            if not any(entry.role not in ("keep", "leave") for entry in rule.entries):
                return
            raise target_error(
                "no-place",
                f"the source has nothing for `{path}` of layout `{self._layout.name}`",
                notes=[_listed_states(self._states.kinds)],
                helps=["write `optional` behind the file if it may be missing"],
                primary=label(name.span, "nothing to write here"),
            )
        self._add(path, tree.root)

    def _is_unknown(self, entry: Entry, at: Mapping[str, str | int]) -> bool:
        """Whether a statement asks for a fact that the source does not tell."""
        is_asked = entry.role == "run" and not entry.optional
        return is_asked and not self._facts.run(entry.names[0], at)[0]

    def _is_beside(self, rule: FileRule, path: str) -> bool:
        """Whether a file is the model's configuration, and the source has it."""
        name = PurePosixPath(path).name
        return _is_config(rule) and name in self._arrangement.catalog.side_files

    def _elsewhere(self) -> dict[str, str]:
        """Where files of the model lie that the source has: with its configuration."""
        files = (rule.names[0].text for rule in self._layout.files if _is_config(rule))
        folder = str(PurePosixPath(next(files, CONFIG)).parent)
        names = self._arrangement.catalog.side_files
        return {name: str(PurePosixPath(folder, name)) for name in names if is_of_model(name)}

    def _add(self, path: str, root: object) -> None:
        if path == CONFIG and has_hf_names(self._arrangement):
            made = model_config(self._arrangement, self._states.weights())
            self._made_warnings += made.warnings
            if made.data is not None:
                self._torch.head.append(FileBytes(path, 0, made.data))
                return
        suffix, path = PurePosixPath(path).suffix, f"{self._folder}{path}"
        if suffix == ".safetensors":
            self._safetensors(path, root)
        elif suffix == ".json":
            data = json.dumps(root, indent=2, ensure_ascii=False).encode()
            self._torch.head.append(FileBytes(path, 0, data))
        elif suffix in ("", ".txt"):
            self._torch.head.append(FileBytes(path, 0, str(root).encode()))
        else:
            self._torch.add(path, root)

    def _safetensors(self, path: str, root: object) -> None:
        assert isinstance(root, dict)
        metadata = cast("dict[str, str]", root.pop("__metadata__", {"format": "pt"}))
        specs = {str(key): self._states.spec_of(value) for key, value in root.items()}
        header = {key: (spec.dtype, spec.shape or ()) for key, spec in specs.items()}
        head, offsets, nbytes = layout_header(header, metadata)
        self._torch.head.append(FileBytes(path, 0, head))
        self._torch.files[path] = nbytes
        for key, spec in specs.items():
            if spec.nbytes:
                self._torch.placed.append(PlacedSpec(spec, path, offsets[key], digest=False))

    # ---- statements ----------------------------------------------------------------------------

    def _entry(
        self, rule: FileRule, entry: Entry, path: str, tree: Tree, at: Mapping[str, str | int]
    ) -> None:
        if entry.role in ("state", "states"):
            self._state(rule, entry, path, tree, at)
        elif entry.role == "number":
            self._per_group(entry, tree, self._states.numbers(at))
        elif entry.role == "slices":
            if not tree.is_empty:
                tree.put(where_of(_made_place(entry), {}), self._states.slices(str(at[NAME]), at))
        elif entry.role == "named":
            place = _made_place(entry)
            if place.has(NUMBER):
                for name, number in self._states.listed(at)[1].items():
                    tree.put(where_of(place, {NUMBER: number}), name)
            elif not entry.optional:
                self._per_group(entry, tree, self._states.groups)
        elif entry.role == "order":
            self._order(entry, tree, at)
        elif entry.role == "run":
            found, value = self._facts.run(entry.names[0], at)
            if found:
                tree.put(where_of(_made_place(entry), {}), value)
            elif not entry.optional:
                raise _no_fact(entry, path)
        elif entry.role == "fill":
            where = where_of(_made_place(entry), {})
            if entry.value is not None and not (entry.optional and tree.is_empty):
                tree.put(where, evaluate(entry.value, dict(self._mesh)))
            elif entry.value is None and _at(tree.root, where) is None:
                tree.put(where, None)
        elif entry.role == "keep":
            for where, value in self._facts.kept(rule, at):
                tree.put(where, value)

    def _state(
        self, rule: FileRule, entry: Entry, path: str, tree: Tree, at: Mapping[str, str | int]
    ) -> None:
        place = _made_place(entry)
        held = {*at, *(hole.name for hole in place.holes)}
        for state in self._states.of(entry):
            if at.get(STATE, state) != state:
                continue
            if not held & {NAME, NUMBER}:
                for group in range(len(self._states.groups)):
                    value = self._states.buffer(state, group, at, entry)
                    if value is not None:
                        tree.put(where_of(place, {**at, GROUP: group, STATE: state}), value)
                continue
            for name, shown, tensor in self._states.tensors(state, at, path):
                bindings = {**at, NAME: shown, STATE: state}
                if NUMBER in held:
                    bindings[NUMBER] = self._states.number(name, at, entry)
                tree.put(where_of(place, bindings), tensor)
            if state == "param" and not path.endswith(".safetensors"):
                self._aliases(place, tree, at)

    def _aliases(self, place: Place, tree: Tree, at: Mapping[str, str | int]) -> None:
        """Other names of weights: the same memory once more."""
        for alias, name in self._states.aliases.items():
            try:
                value = _at(tree.root, where_of(place, {**at, NAME: name}))
                where = where_of(place, {**at, NAME: alias})
            except KeyError:
                continue
            if isinstance(value, (NewTensor, Record)) and _at(tree.root, where) is None:
                tree.put(where, value)

    def _per_group(self, entry: Entry, tree: Tree, lists: Sequence[Sequence[object]]) -> None:
        place = _made_place(entry)
        for group, listed in enumerate(lists):
            tree.put(where_of(place, {GROUP: group}), list(listed))

    def _order(self, entry: Entry, tree: Tree, at: Mapping[str, str | int]) -> None:
        place = _made_place(entry)
        for group, names in enumerate(self._states.groups):
            if not place.has(NAME):
                tree.put(where_of(place, {GROUP: group}), list(names))
                continue
            for name in names:
                shape = Size(self._states.local_shape(name, at))
                tree.put(where_of(place, {GROUP: group, NAME: name}), shape)


def _axes(name: FileName) -> list[str]:
    """What files of a name differ in: mesh axes, and the name of a parameter for its parts."""
    holes = (hole.name for hole in name.pattern.holes if not hole.is_size)
    return list(dict.fromkeys(NAME if hole in (MODULE, PARAMETER) else hole for hole in holes))


def _is_config(rule: FileRule) -> bool:
    return bool(rule.entries) and all(entry.names == ("config",) for entry in rule.entries)


def _at(root: object, where: Sequence[At]) -> object:
    for at in where:
        root = root.get(at.value) if isinstance(root, dict) else None
    return root


def _made_place(entry: Entry) -> Place:
    """The first alternative that can be made."""
    for place in entry.places:
        if not any(
            getattr(getattr(step, "pattern", None), "has_star", False) for step in place.steps
        ):
            return place
    raise target_error(
        "no-place",
        f"nothing can be written to `{entry.places[0].text}`",
        notes=["a `*` in a place stands for anything, and says no one key"],
        primary=label(entry.span, "no place to write to"),
    )


def _unnamed_file(rule: FileRule) -> ReshardError:
    return target_error(
        "no-place",
        f"a file of the name `{rule.names[0].text}` cannot be written",
        notes=["a `*` in a name stands for anything, and says no one name"],
        helps=['add a name without it: `file "model.pt" or "*.pt"`'],
        primary=label(rule.names[0].span, "which file?"),
    )


def _no_fact(entry: Entry, path: str) -> ReshardError:
    return target_error(
        "no-place",
        f"the source does not record `{entry.names[0]}`, which {path} has",
        helps=["write `optional` behind it if it may be missing"],
        primary=label(entry.span, "not known"),
    )


def _listed_states(kinds: Sequence[str]) -> str:
    return f"it has the states {', '.join(f'`{kind}`' for kind in kinds)}"
