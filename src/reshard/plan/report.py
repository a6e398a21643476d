"""What a conversion does: every tensor's fate, files, bytes, memory, and the proof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reshard.errors import Diagnostic
from reshard.plan.catalog import Catalog, Left
from reshard.plan.fate import Fate
from reshard.plan.names import group_names
from reshard.plan.prove import Proof
from reshard.plan.shown import Plain, Shown
from reshard.plan.text import WIDTH, facts, show_count, show_nbytes, wrap

_MAX_PATTERNS = 12
_NOT_SELECTED = "not selected"


@dataclass(frozen=True, slots=True, repr=False)
class PlanReport(Shown):
    """What `reshard plan` tells.

    Args:  source: what is read.  target: what `--to` said.
           fates: of every tensor, in the order of the source.
           files: every file of the target that is known beforehand, with its size in bytes.
           nbytes_read: tensor bytes taken from the source, copies that are compared included.
           nbytes_written: of all files.
           peak_nbytes: an upper estimate of resident memory, the interpreter included.
           proof: that the source stores all that it claims to.
           covered: (tensor, state) pairs of which every element has a place in the target.
           left: files and keys of the source that do not reach the target, with their reasons.
           warnings: what the target cannot carry, or its loader will not restore.
    """

    source: SourceFacts
    target: str
    fates: tuple[Fate, ...]
    files: tuple[tuple[str, int], ...]
    nbytes_read: int
    nbytes_written: int
    peak_nbytes: int
    proof: Proof
    covered: int
    warnings: tuple[Diagnostic, ...]
    left: tuple[Left, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        return {
            "source": self.source.to_json(),
            "target": self.target,
            "tensors": [fate.to_json() for fate in self.fates],
            "files": [{"path": path, "nbytes": nbytes} for path, nbytes in self.files],
            "nbytes_read": self.nbytes_read,
            "nbytes_written": self.nbytes_written,
            "peak_nbytes": self.peak_nbytes,
            "proof": {**self.proof.to_json(), "placed": self.covered},
            "left": [item.to_json() for item in self.left],
            "warnings": [item.to_json() for item in self.warnings],
        }

    def summary(self) -> str:
        """In a line."""
        return f"{self.source.path} to {self.target}, {show_nbytes(self.nbytes_written)}"

    def to_text(self) -> str:
        """For people, 80 columns wide."""
        written = [fate for fate in self.fates if fate.is_written]
        files = len(self.files)
        lines = [f"plan: {self.source.title} to {self.target}"]
        lines += facts(
            [
                ("from", self.source.path),
                ("mesh", self.source.mesh_text()),
                ("reads", f"{show_nbytes(self.nbytes_read)} of tensors"),
                ("writes", f"{show_nbytes(self.nbytes_written)} in {show_count(files, 'file')}"),
                ("memory", f"at most {show_nbytes(self.peak_nbytes)}"),
            ]
        )
        lines += ["", f"{show_count(len(written), 'tensor')} will be written"]
        lines += fate_lines(self.fates)
        missing = not_written_lines(self.fates)
        if missing:
            lines += ["", *missing]
        folded = len([fate for fate in self.fates if fate.kind == "folded"])
        lines += ["", *proof_lines(self.proof, self.covered, folded)]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class SourceFacts(Plain):
    """What is read, in a few words.

    Args:  path: as it was given.  title: e.g. `DeepSpeed checkpoint`.  version: of what wrote it.
           root: of its files.
    """

    path: str
    title: str
    version: str
    root: str
    mesh: Mapping[str, int]

    @staticmethod
    def of(catalog: Catalog, title: str, path: str) -> SourceFacts:
        """The facts of a catalog."""
        return SourceFacts(path, title, catalog.version, catalog.root, dict(catalog.mesh))

    def mesh_text(self) -> str:
        """`dp=4, tp=2`, or `1 rank`."""
        return show_mesh(self.mesh)


def show_mesh(mesh: Mapping[str, int]) -> str:
    """`dp=4, tp=2`: the axes that are longer than 1; `one rank` where none is."""
    return ", ".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "one rank"


def fate_lines(all_fates: Sequence[Fate]) -> list[str]:
    """For each family of names: its states, source segments, and target arrays."""
    by_name: dict[str, list[Fate]] = {}
    for fate in all_fates:
        if fate.is_written:
            by_name.setdefault(fate.name, []).append(fate)
    families: dict[tuple[str, ...], list[str]] = {}
    for name, items in by_name.items():
        families.setdefault((_family(name), *(item.state for item in items)), []).append(name)
    out = []
    for names in families.values():
        pattern, count = group_names(names)[0]
        out.append(pattern if count == 1 else f"{pattern}, {count} tensors")
        states: dict[str, list[Fate]] = {}
        for name in names:
            for fate in by_name[name]:
                states.setdefault(fate.state, []).append(fate)
        movements: dict[str, list[str]] = {}
        for state, items in states.items():
            movements.setdefault(_movement(items), []).append(state)
        for movement, kinds in movements.items():
            column = max(len(movement) + 6, 32)
            first, *rest = wrap(", ".join(kinds), WIDTH - column)
            out.append(f"    {movement}".ljust(column) + first)
            out += [" " * column + line for line in rest]
    return out


def not_written_lines(all_fates: Sequence[Fate]) -> list[str]:
    """What is not written and why, grouped; nothing if all is."""
    others = [fate for fate in all_fates if not fate.is_written]
    if not others:
        return []
    groups: dict[tuple[str, str, str], list[str]] = {}
    for fate in others:
        groups.setdefault((fate.kind, fate.state, fate.why), []).append(fate.name)
    verb = "is" if len(others) == 1 else "are"
    out = [f"{show_count(len(others), 'tensor')} {verb} not written"]
    totals = Counter(fate.state for fate in all_fates)
    merged: dict[tuple[str, str, tuple[tuple[str, int], ...]], list[str]] = {}
    for (kind, state, why), names in groups.items():
        patterns = () if len(names) == totals[state] else tuple(group_names(names))
        merged.setdefault((kind, why, patterns), []).append(state)
    for (_, why, patterns), states in merged.items():
        head = f"{'' if patterns else 'all '}{', '.join(states)}: {why or _NOT_SELECTED}"
        out += [f"  {line}" for line in wrap(head, WIDTH - 2, indent="  ")]
        out += [f"      {pattern}" for pattern, _ in patterns[:_MAX_PATTERNS]]
        rest = sum(count for _, count in patterns[_MAX_PATTERNS:])
        if rest:
            out.append(f"      and {show_count(rest, 'tensor')} more")
    return out


def proof_lines(proof: Proof, covered: int, folded: int) -> list[str]:
    """What was proved before any byte is moved."""
    source = f"the source is complete: {proved(proof, copies=True)}"
    target = f"the target is complete: it stores every element of {show_count(covered, 'tensor')}"
    if folded:
        target += f", and {folded:,} more as shared values"
    return ["proved", *(f"  {line}" for text in (source, target) for line in wrap(text, WIDTH - 2))]


def proved(proof: Proof, *, copies: bool = False) -> str:
    """`105,620 elements in 118 contiguous segments`; with `copies`, also the further copies."""
    segments = show_count(proof.parts, "contiguous segment")
    text = f"{show_count(proof.elements, 'element')} in {segments}"
    if not copies or not proof.copies:
        return text
    return f"{text}, with {proof.copies:,} further {'copy' if proof.copies == 1 else 'copies'}"


def _movement(items: Sequence[Fate]) -> str:
    segments = sum(item.runs for item in items)
    arrays = sum(item.pieces for item in items)
    folded = [item for item in items if item.kind == "folded"]
    if folded:
        return folded[0].why
    mean = "mean of " if any(item.kind == "averaged" for item in items) else ""
    return f"{mean}{show_count(segments, 'segment')} -> {show_count(arrays, 'array')}"


def _family(name: str) -> str:
    return ".".join("#" if part.isdigit() else part for part in name.split("."))
