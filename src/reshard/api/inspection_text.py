"""What a checkpoint is, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from reshard.errors import visible
from reshard.plan.left_text import left_lines
from reshard.plan.names import group_names
from reshard.plan.report import show_mesh
from reshard.plan.text import facts, show_count, show_nbytes, table
from reshard.storage.kept import plain

if TYPE_CHECKING:
    from reshard.api.inspection import Inspection, TensorFacts

_SECTIONS = {
    "parameter": "parameters",
    "frozen": "frozen parameters",
    "buffer": "buffers",
    "extra": "tensors that belong to no parameter",
}


_MAX_NAMES = 12


def inspection_text(found: Inspection) -> str:
    """The answer of `reshard inspect`, 80 columns wide."""
    files = f"{show_count(found.files, 'file')}, {show_nbytes(found.nbytes)}"
    lines = [found.title]
    lines += facts(
        [
            ("folder", found.root),
            ("written by", _writer(found)),
            ("files", files),
            ("side files", _listed(found.side_files)),
            ("mesh", show_mesh(found.mesh)),
            *_training(found),
            *((what, _listed(names)) for what, names in found.nearby.items()),
        ]
    )
    lines += ["", *_states(found)]
    for role, title in _SECTIONS.items():
        tensors = [item for item in found.tensors if item.role == role]
        if tensors:
            lines += ["", *_tensors(title, tensors)]
    if found.aliases:
        lines += ["", "tied", *(f"  {other} = {name}" for other, name in found.aliases.items())]
    proof = found.proof
    whole = (
        f"whole: each of {proof.elements:,} elements is stored, in {show_count(proof.parts, 'run')}"
    )
    lines += ["", whole]
    if found.left:
        lines += ["", *left_lines(found.left)]
    if found.oddities:
        lines += ["", "odd"]
        for item in found.oddities:
            lines += ["", *item.render().split("\n")]
    return "\n".join(lines)


def _writer(found: Inspection) -> str:
    """The program, and what it was set to: the plain values that a framework says of itself."""
    framework = dict(found.training.framework or {})
    told = [str(framework.pop(key)) for key in ("name", "version") if framework.get(key)]
    plain = {key: item for key, item in framework.items() if isinstance(item, str | int)}
    settings = [f"{key} {item}" for key, item in plain.items() if item not in ("", None)]
    own = (
        [found.version] if found.version and found.version.lower() != " ".join(told).lower() else []
    )
    return ", ".join([*own, *([" ".join(told)] if told else []), *settings])


def _training(found: Inspection) -> list[tuple[str, str]]:
    training = found.training
    out = []
    if training.iteration is not None:
        out.append(("iteration", f"{training.iteration:,}"))
    groups = [_group(group) for group in training.param_groups]
    out.append(("groups", "\n".join(groups)))
    kept = [key for key, value in (training.state or {}).items() if value is not None]
    out.append(("also kept", ", ".join(kept)))
    client = (training.framework or {}).get("client_state")
    if isinstance(client, Mapping):
        out.append(("client state", ", ".join(map(str, client))))
    return out


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(map(visible, names[:_MAX_NAMES])) + more


def _group(group: Mapping[str, object]) -> str:
    params = group.get("params")
    count = show_count(len(params), "parameter") if isinstance(params, Sequence) else "?"
    told = [
        f"{key}={plain(group[key])}" for key in ("lr", "weight_decay") if group.get(key) is not None
    ]
    return ", ".join([count, *told])


def _states(found: Inspection) -> list[str]:
    rows = [("state", "dtype", "tensors", "elements", "size")]
    rows += [
        (
            item.state,
            ", ".join(item.dtypes),
            f"{item.tensors:,}",
            f"{item.elements:,}",
            show_nbytes(item.nbytes),
        )
        for item in found.states
    ]
    return table(rows, right="llrrr")


def _tensors(title: str, tensors: Sequence[TensorFacts]) -> list[str]:
    """One row for each family of names that are alike in everything else."""
    axes = list(dict.fromkeys(axis for item in tensors for axis in item.lies))
    ((usual, _),) = Counter(tuple(item.states) for item in tensors).most_common(1)
    odd = any(tuple(item.states) != usual for item in tensors)
    families: dict[tuple[object, ...], list[TensorFacts]] = {}
    for item in tensors:
        lies = tuple(_kind(item.lies.get(axis, "")) for axis in axes)
        pattern = ".".join("#" if part.isdigit() else part for part in item.name.split("."))
        key = (pattern, item.shape, item.axes, lies, tuple(item.states))
        families.setdefault(key, []).append(item)
    rows = [(f"{title} ({len(tensors):,})", "shape", *axes, *(("states",) if odd else ()))]
    for members in families.values():
        first = members[0]
        rows.append(
            (
                group_names([item.name for item in members])[0][0],
                _shape(first),
                *(_lies([item.lies.get(axis, "") for item in members]) for axis in axes),
                *((", ".join(first.states),) if odd else ()),
            )
        )
    return table(rows)


def _shape(item: TensorFacts) -> str:
    """The shape, with a dimension's parts where it is made of several."""
    return "[" + ", ".join(map(str, item.shape)) + "]"


def _kind(lies: str) -> str:
    return "index" if lies.isdigit() else lies


def _lies(values: Sequence[str]) -> str:
    """`0`, `0..1`, or what all have in common."""
    if not all(value.isdigit() for value in values):
        return values[0]
    found = sorted({int(value) for value in values})
    return str(found[0]) if len(found) == 1 else f"{found[0]}..{found[-1]}"
