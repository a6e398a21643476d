"""Facts of a run as a target's files state them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import cast

from reshard.errors import Diagnostic
from reshard.formats.described import NAME as FORMAT
from reshard.formats.described.groups import OF_STAGES, STAGE, scheduler_of
from reshard.formats.described.meta_params import with_width
from reshard.formats.described.tree import Where, listed, show, where_of_kept
from reshard.formats.described.write_states import WrittenStates
from reshard.language.layout import FileRule, Layout
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.framework_config import framework_config
from reshard.plan.plan import ArraySpec
from reshard.run.states import EXTRA
from reshard.storage.kept import Decoder
from reshard.storage.torch_output import TorchOutput

_DEFAULTS = ("iteration", "param_groups", "config")


class Facts:
    """What of the run goes into files, and what is kept of a run of the same layout."""

    def __init__(
        self,
        arrangement: Arrangement,
        layout: Layout,
        states: WrittenStates,
        output: TorchOutput,
    ) -> None:
        self._arrangement = arrangement
        self._layout = layout
        self._states = states
        self._output = output
        self._extras = {w.name: w for w in arrangement.wholes if w.state == EXTRA}
        self._used: set[str] = set()
        self._asked: set[str] = set()
        self._written: set[int] = set()
        self._without: list[str] = []
        self._decoder = Decoder(output.constant, self._extra)
        own = arrangement.catalog.training.of(FORMAT)
        self._is_own = own.get("layout") == layout.name
        kept = own.get("kept", []) if self._is_own else []
        self._kept = cast("list[dict[str, object]]", kept)

    def run(self, name: str, at: Mapping[str, str | int]) -> tuple[bool, object]:
        """Whether a fact is known, and what a file says of it."""
        self._asked.add(name)
        training = self._arrangement.catalog.training
        if name == "iteration":
            return training.iteration is not None, training.iteration
        if name == "param_groups":
            return bool(training.param_groups), self._groups(at)
        if name == "config":
            config = self._config()
            return config is not None, config
        state = training.state
        if name not in state:
            return False, None
        value = state[name]
        if name in OF_STAGES and STAGE in at and isinstance(value, Mapping):
            value = scheduler_of(value, len(training.param_groups), self._of_stage(at))
        return True, self._value(value)

    def _groups(self, at: Mapping[str, str | int]) -> list[object]:
        """The settings of each group; where the numbers stand is another statement's."""
        every = self._arrangement.catalog.training.param_groups
        return [self._decoder.mapping(every[number].settings) for number in self._of_stage(at)]

    def _of_stage(self, at: Mapping[str, str | int]) -> list[int]:
        """The groups of the source that a file has, by number."""
        every = self._arrangement.catalog.training.param_groups
        if STAGE in at and len(self._states.groups) == len(every):
            return [group.number for group in self._states.listed(at)[0]]
        return list(range(len(every)))

    def _config(self) -> Mapping[str, object] | None:
        """The model's configuration: in the words of the layout of the names, or as found."""
        layout, values = self._arrangement.layout, self._arrangement.values
        made = framework_config(layout, values) if layout.model is not None else {}
        config = self._arrangement.catalog.config
        if made:
            stated = config if self._is_own and config is not None else {}
            rest = {k: self._value(v) for k, v in stated.items() if k not in values}
            said = {**rest, **made}
            is_meta = layout.name == "meta"
            return with_width(said, values.get("intermediate_size")) if is_meta else said
        return None if config is None else cast("dict[str, object]", self._value(dict(config)))

    def kept(self, rule: FileRule, at: Mapping[str, str | int]) -> Iterator[tuple[Where, object]]:
        """What is kept for a file, with its places."""
        names = {name.text for name in rule.names}
        mine = [item for item in self._kept if item["file"] in names]
        places = {json.dumps(item["where"]) for item in mine}
        for item in mine:
            ranks = cast("dict[str, object]", item["at"])
            if all(at.get(axis) == index for axis, index in ranks.items() if axis[0] != "#"):
                self._written.add(id(item))
                places.discard(json.dumps(item["where"]))
                yield _where(item), self._value(item["value"])
        rank = ", ".join(f"{axis}={index}" for axis, index in at.items())
        self._without += [
            f"`{show(where_of_kept(json.loads(place)))}` of {rank}" for place in sorted(places)
        ]

    def _value(self, value: object) -> object:
        return self._decoder.value(value)

    def _extra(self, name: str) -> object:
        self._used.add(name)
        return self._output.tensor(_spec(self._extras[name]))

    def dropped(self) -> Iterator[tuple[str, str, str]]:
        """Tensors of no parameter that are not written."""
        for name in self._extras:
            if name not in self._used:
                yield name, EXTRA, f"layout `{self._layout.name}` has no place for it"

    def warnings(self) -> Iterator[Diagnostic]:
        """What of the run is not written."""
        training = self._arrangement.catalog.training
        lost = [name for name in training.state if name not in self._asked]
        counts = {*self._states.kinds, *self._asked}
        if training.iteration is not None and not counts & {"iteration", "step"}:
            lost.append("iteration")
        if training.param_groups and "param_groups" not in self._asked:
            lost.append("param_groups")
        if lost:
            yield Diagnostic(
                "training-left",
                f"layout `{self._layout.name}` has no place for {', '.join(lost)}",
                level="warning",
                helps=('name a place: `run NAME = "..."`',),
            )
        gone = [
            f"`{show(_where(item))}` of {_rank(item['at'])}"
            for item in self._kept
            if id(item) not in self._written
        ]
        notes = [f"not written: {listed(gone)}"] if gone else []
        if self._without:
            notes.append(f"the source has none for: {listed(self._without)}")
        if notes:
            yield Diagnostic(
                "training-left",
                "the target has other ranks than the source, and each rank of it kept values",
                level="warning",
                notes=tuple(notes),
                helps=("set them again where the run continues, such as random states",),
            )


def _where(item: Mapping[str, object]) -> Where:
    return where_of_kept(cast("list[list[object]]", item["where"]))


def _rank(ranks: object) -> str:
    found = cast("dict[str, object]", ranks)
    return ", ".join(f"{axis}={index}" for axis, index in found.items() if axis[0] != "#")


def _spec(whole: Whole) -> ArraySpec:
    numel = 1
    for size in whole.shape:
        numel *= size
    return ArraySpec(whole.name, EXTRA, whole.dtype, numel, whole.segments, whole.shape)
