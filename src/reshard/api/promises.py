"""What is said of a new folder: who loads it, and the command that proves it.

Nothing is promised that was not established for this very folder: its names are the target's, its
configuration is there and complete, and the command that is printed ends with 0.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

from reshard import formats
from reshard.api.masters import CODE
from reshard.api.request import Request
from reshard.api.source import OpenedSource
from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.models.source_names import SOURCE, Named
from reshard.models.transformers import is_text
from reshard.plan.output import Output
from reshard.plan.report import PlanReport
from reshard.plan.target import Target
from reshard.run.states import MASTER, PARAM

_PEFT = "PEFT loads it with `PeftModel.from_pretrained(base_model, '{dst}')`"
_WITH_CODE = (
    "transformers loads it with `from_pretrained('{dst}', trust_remote_code=True)`, "
    "which runs the Python files beside it"
)
_INCOMPLETE = ("no-model-config", "incomplete-model-config")
_CONFIG = "give the model's `config.json` with `--config DIR`"
_UNPROMISED = ("lacking-states", "lacking-scales", "unused-weights")
_ON_PURPOSE = f"`--names {SOURCE}` writes only the tensors, under their present names"


def refuse_unfinished(source: OpenedSource, target: Target, output: Output) -> None:
    """Refuse a model folder that transformers cannot load, unless its names are kept on purpose.

    Raises: ReshardError[no-model-config | incomplete-model-config].
    """
    if target.format != "hf" or source.named == SOURCE:
        return
    lacking = [item for item in output.warnings if item.code in _INCOMPLETE]
    if not lacking:
        return
    raise ReshardError([_unfinished(item, source) for item in lacking], Exit.TARGET)


def _unfinished(item: Diagnostic, source: OpenedSource) -> Diagnostic:
    """The error that a warning of a configuration becomes."""
    unsolved = [other for other in source.catalog.oddities if other.code == "unsolved-model"]
    helps = [_CONFIG]
    if item.code == "incomplete-model-config":
        return replace(
            item,
            headline="the source does not record all values that the model's `config.json` needs",
            level="error",
            notes=item.notes[:1],
            helps=tuple(filter(None, (_CONFIG, _statement(item), _ON_PURPOSE))),
        )
    notes = list(item.notes)
    for other in unsolved:
        notes += [other.headline, *other.notes]
        helps += [f"or {text}" for text in other.helps]
    return replace(
        item,
        headline="transformers needs a `config.json`, and the source does not record enough to "
        "write one",
        level="error",
        notes=tuple(notes),
        helps=(*helps, _ON_PURPOSE),
    )


def _statement(item: Diagnostic) -> str:
    """How to state the first of the numbers that are missing; "" where all of it is text."""
    missing = re.findall(r"`([^`]+)`", item.notes[0])
    numbers = [key for key in missing if not is_text(key)]
    if not numbers:
        return ""
    others = " and likewise the others" if len(numbers) > 1 else ""
    if len(numbers) < len(missing):
        others += ", and what is no number with `--config`"
    return f"or state it with `--set {numbers[0]}=NUMBER`{others}"


def next_step(
    target: str,
    named: Named,
    src: str,
    dst: Path,
    request: Request,
    *,
    report: PlanReport,
    makes_weights: bool = False,
    described: str | None = None,
    adapter: bool | None = None,
    has_code: bool = False,
) -> str:
    """What to do with a new folder.

    Args:  target: name of its format.  named: what gave the names of its tensors.
           request: as the source was read; another command must be told of it.
           report: of the conversion.  makes_weights: as for `Output`.
           described: the user's layout that says how the files lie.
           adapter: of an adapter, whether its configuration is there; None for a whole model.
           has_code: whether the class of the model is Python code beside its configuration.
    """
    form = formats.TARGETS[target]
    codes = {item.code for item in report.warnings}
    weights = {fate.name for fate in report.fates if fate.is_written and fate.state == MASTER}
    replaced = any(
        fate.kind == "folded" and fate.state == PARAM and fate.name in weights
        for fate in report.fates
    )
    is_doubtful = not codes.isdisjoint(_UNPROMISED) or (replaced and CODE in codes)
    text = form.next_step
    if target == "hf" and adapter is not None:
        text = _PEFT if adapter else formats.VERIFY
    elif target == "hf" and has_code and named != SOURCE:
        text = _WITH_CODE
    elif (form.names and named == SOURCE) or (is_doubtful and not text.startswith("reshard ")):
        text = formats.VERIFY
    if text != formats.VERIFY:
        layout = "" if described is None else f" --layout {shlex.quote(described)}"
        return text.format(src=src, dst=dst) + layout
    if request.on_drift != "error":
        return f"reshard verify {shlex.quote(str(dst))}"
    options = request.verify_options()
    has_others = replaced or makes_weights
    is_complete: dict[str, bool] = {}
    for fate in report.fates:
        is_whole = fate.is_written and not (has_others and fate.state == PARAM)
        is_complete[fate.state] = is_complete.get(fate.state, True) and is_whole
    if makes_weights or not all(is_complete.values()):
        kinds = [state for state, is_whole in is_complete.items() if is_whole]
        if target == "hf":
            kinds = ["weights"]
        if not kinds:
            return f"reshard verify {shlex.quote(str(dst))}"
        options += f" --states {','.join('weights' if k == 'param' else k for k in kinds)}"
    return text.format(src=shlex.quote(src), dst=shlex.quote(str(dst))) + options
