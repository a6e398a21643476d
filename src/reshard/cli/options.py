"""The arguments and flags that several commands share."""

from __future__ import annotations

import re
from enum import StrEnum
from math import isfinite
from typing import Annotated

import typer


class OnDrift(StrEnum):
    """What to do where copies differ."""

    AVERAGE = "average"
    FIRST = "first"


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_MOST_NBYTES = 2**63
_BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_nbytes(text: str) -> int:
    """`5000000`, `200MB`, `1.5G`, `200MiB` in bytes.

    Raises: typer.BadParameter.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", text.strip().upper())
    if not found or (found[3] and not found[2]):
        raise typer.BadParameter(f"{text!r} is no size; write it like 5GB, 200MiB, or 1000000")
    units = _BINARY_UNITS if found[3] else _UNITS
    size = float(found[1]) * units[found[2]]
    if size >= _MOST_NBYTES:
        raise typer.BadParameter(f"{text[:24]!r} is more than a size can be")
    nbytes = int(size)
    if nbytes < 1:
        raise typer.BadParameter(f"{text!r} is less than one byte")
    return nbytes


def parse_settings(items: list[str] | None) -> dict[str, float]:
    """`--set name=value` pairs.

    Raises: typer.BadParameter.
    """
    out: dict[str, float] = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        words = {"true": 1, "false": 0}
        if not equals or not name:
            raise typer.BadParameter(f"{item!r} is not NAME=NUMBER", param_hint="'--set'")
        if name in out:
            raise typer.BadParameter(f"{name!r} is set twice", param_hint="'--set'")
        try:
            out[name] = words[value] if value in words else _number(value)
        except ValueError:
            raise typer.BadParameter(
                f"{value!r} of {item!r} is no number", param_hint="'--set'"
            ) from None
    return out


def _number(text: str) -> float:
    """A whole number, or a real one such as `1e-5`.

    Raises: ValueError.
    """
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not isfinite(value):
            raise
        return value


def split_layout(text: str | None) -> tuple[str | None, str | None]:
    """`FILE.ucl#name` as file and layout; the name is None where it is not given."""
    if text is None:
        return None, None
    file, mark, name = text.rpartition("#")
    return (file, name) if mark and file and name else (text, None)


Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC", show_default=False, help="Folder of a run, or of one of its steps."
    ),
]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SRC...",
        show_default=False,
        help="Folder of a run, or of one of its steps; several are tried one by one.",
    ),
]
To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="TARGET",
        show_default=False,
        help="FORMAT[:KEY=VALUE,...]: universal, hf, deepspeed:zero=2,dp=4, "
        "megatron:tp=2,pp=2, megatron-dist, dcp:dp=4, ... (docs/cli.md).",
    ),
]
Step = Annotated[
    str | None,
    typer.Option("--step", metavar="NAME", help="Which step, where the folder has several."),
]
LayoutFile = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="FILE.ucl[#NAME]",
        help="Read the source through this layout instead of its own.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=NUMBER", help="A size that wins over the source's."),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="The model that the source is of: llama, gpt, moe, ..."
    ),
]
Names = Annotated[
    str | None,
    typer.Option(
        "--names",
        metavar="LAYOUT",
        help="Call the tensors as this layout of the model does: hf, megatron, ...; "
        "or `source`, as the source does.",
    ),
]
Places = Annotated[
    list[str] | None,
    typer.Option(
        "--place",
        metavar="AXIS=MESH:HOW",
        help="How an axis of the model lies on the target's ranks: layer=pp:8,9,9,6.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help="Round the weights to fp32, bf16, fp16; or states: param=bf16,exp_avg=fp32.",
    ),
]
States = Annotated[
    str,
    typer.Option(
        "--states", metavar="KINDS", help="all, weights, or kinds with commas: param,exp_avg."
    ),
]
Drift = Annotated[
    OnDrift | None,
    typer.Option(
        "--on-drift",
        show_default=False,
        help="Where copies differ that should not: take their mean, or the first. "
        "Without it that is an error.",
    ),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="DIR",
        help="A model's config.json, or the folder that holds it, for a source that has none.",
    ),
]
LeaveOut = Annotated[
    list[str] | None,
    typer.Option(
        "--leave-out",
        metavar="NAME",
        help="Leave a tensor out; a * in the name stands for anything: 'v_head.*'.",
    ),
]
Check = Annotated[
    bool,
    typer.Option("--check", help="First read all of the source, and hold it to its own checksums."),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, metavar="N", help="At most so many threads.")
]
MaxMemory = Annotated[
    int | None,
    typer.Option(
        "--max-memory", parser=parse_nbytes, metavar="SIZE", help="Stay below it: 200MiB, 1GB."
    ),
]
MaxFileSize = Annotated[
    int | None,
    typer.Option(
        "--max-file-size",
        parser=parse_nbytes,
        metavar="SIZE",
        help="Size of the files of a universal or hf target; 5GB if not given.",
    ),
]
JUnit = Annotated[
    str | None, typer.Option("--junit", metavar="FILE", help="Also write a report in JUnit's XML.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colours.")]
