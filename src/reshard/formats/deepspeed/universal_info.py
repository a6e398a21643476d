"""`universal_checkpoint_info`: what the writer says of how parameters lie over tp ranks.

Source: DeepSpeed 0.19.8, checkpoint/ds_to_universal.py `merge_tp_slices`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reshard.errors import ReshardError, source_error
from reshard.formats.deepspeed.affine_map import FORMAT_VERSION, AffineMap, read_affine_map
from reshard.formats.deepspeed.node import Node
from reshard.storage.inert import Record

KEY = "universal_checkpoint_info"
REPLICATED = "tp_replicated_parameter_patterns"
AVERAGED = "parameter_to_average_patterns"
ROW_PARALLEL = "parameter_with_row_parallelism_patterns"
TWO_PARTS = "parameter_with_2_sub_params_cat_dim_0"
VOCABULARY = "vocabulary_parameter_patterns"
UNSUPPORTED = "autotp_unsupported_parameter_patterns"


@dataclass(frozen=True, slots=True)
class SubParams:
    """One entry of `parameter_with_sub_params`.

    Args:  shape: one size per dimension of a view of the parameter; -1 for one that is left open;
           the sizes of the parts where it is cut.
           widths: by part, elements on every tp rank; None if the writer does not say.
    """

    pattern: str
    shape: tuple[int | tuple[int, ...], ...]
    dim: int
    widths: tuple[tuple[int, ...], ...] | None


class UniversalInfo:
    """The patterns of one file.  They match from the start of a name, not all of it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._lists: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
        self._sub_params: list[tuple[re.Pattern[str], SubParams]] | None = None
        self._affine: list[tuple[re.Pattern[str], Node]] | None = None

    @property
    def file(self) -> str:
        """The file that it stands in."""
        return self.node.file

    @property
    def vocabulary_size(self) -> int:
        """Rows of the vocabulary without padding."""
        return self.node.at("original_vocab_size").integer()

    def matches(self, key: str, name: str) -> bool:
        """Whether a name is in one of the lists.

        Raises: ReshardError[ambiguous-pattern | bad-pattern].
        """
        patterns = self._lists.get(key)
        if patterns is None:
            node = self.node.get(key)
            texts = [] if node is None else [item.text() for item in node.items()]
            patterns = [(text, self._compile(text, key)) for text in texts]
            self._lists[key] = patterns
        found = [text for text, regex in patterns if regex.match(name)]
        if len(found) > 1:
            raise self._ambiguous(name, key, found)
        return bool(found)

    def unsupported(self, name: str) -> str | None:
        """Why DeepSpeed itself says that a parameter cannot be put together."""
        node = self.node.get(UNSUPPORTED)
        for pattern, reason in [] if node is None else node.entries():
            if self._compile(pattern, UNSUPPORTED).match(name):
                return str(reason.value)
        return None

    def sub_params(self, name: str) -> SubParams | None:
        """The parts of a parameter that is several in one."""
        if self._sub_params is None:
            self._sub_params = list(self._read_sub_params())
        return next((item for regex, item in self._sub_params if regex.match(name)), None)

    def affine_map(self, name: str) -> AffineMap | None:
        """The affine map of a parameter."""
        if self._affine is None:
            self._affine = self._read_affine()
        found = [node for regex, node in self._affine if regex.match(name)]
        if len(found) > 1:
            raise self._ambiguous(name, "affine_map", [node.path for node in found])
        return read_affine_map(found[0], name) if found else None

    def _read_affine(self) -> list[tuple[re.Pattern[str], Node]]:
        node = self.node.get("affine_map")
        if node is None:
            return []
        version = node.get("version")
        if version is not None and version.integer() > FORMAT_VERSION:
            raise source_error(
                "unknown-version",
                f"`affine_map` of {node.file} has version {version.integer()}",
                notes=[f"versions up to {FORMAT_VERSION} are known"],
                helps=["use a newer reshard"],
            )
        return [(self._compile(key, "affine_map"), item) for key, item in _params(node)]

    def _read_sub_params(self) -> Sequence[tuple[re.Pattern[str], SubParams]]:
        node = self.node.get("parameter_with_sub_params")
        widths = self.node.get("sub_param_shard_widths")
        out = []
        for item in [] if node is None else node.items():
            entry = item
            if isinstance(item.value, Record):  # a SubparamShape
                entry = Node(item.value.attributes, item.file, item.path)
            shape = tuple(_size(size) for size in entry.at("shape").items())
            dim = _integer(entry.mapping().get("partition_dim"), entry)
            for pattern in entry.at("patterns").items():
                own = None if widths is None else widths.get(pattern.text())
                out.append(
                    (
                        self._compile(pattern.text(), item.path),
                        SubParams(
                            pattern.text(),
                            shape,
                            dim,
                            None if own is None else tuple(part.shape() for part in own.items()),
                        ),
                    )
                )
        return out

    def _compile(self, pattern: str, key: str) -> re.Pattern[str]:
        try:
            return re.compile(pattern)
        except re.error as error:
            raise source_error(
                "bad-pattern",
                f"`{pattern}` in `{key}` of {self.file} is no regular expression",
                notes=[f"{error}"],
            ) from None

    def _ambiguous(self, name: str, key: str, found: Sequence[str]) -> ReshardError:
        return source_error(
            "ambiguous-pattern",
            f"{len(found)} patterns of `{key}` match `{name}`",
            notes=[*(f"`{text}`" for text in found[:4]), f"`{KEY}` in {self.file}"],
            helps=["give a layout of your own with `--layout FILE`"],
        )


def _params(node: Node) -> Sequence[tuple[str, Node]]:
    found = node.get("params")
    return [] if found is None else list(found.entries())


def _size(node: Node) -> int | tuple[int, ...]:
    if isinstance(node.value, tuple | list):
        return node.shape()
    return node.integer()


def _integer(value: object, node: Node) -> int:
    return Node(value, node.file, f"{node.path}.partition_dim").integer()


def same_rules(first: Node, second: Node) -> bool:
    """Whether two files say the same about tp; other entries may differ from rank to rank."""
    return _rules(first) == _rules(second)


def _rules(node: Node) -> Mapping[str, object]:
    keys = (REPLICATED, AVERAGED, ROW_PARALLEL, TWO_PARTS, VOCABULARY, UNSUPPORTED)
    more = ("original_vocab_size", "sub_param_shard_widths", "affine_map")
    return {key: node.mapping().get(key) for key in (*keys, *more)}
