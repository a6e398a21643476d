"""The arguments and flags that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from inspect import Parameter, Signature, signature
from math import isfinite
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

R = TypeVar("R")

Options = dict[str, Any]
"""What shared options say, as keyword arguments of the public functions."""


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
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", text.strip().upper())
    if not match or (match[3] and not match[2]):
        raise typer.BadParameter(f"{text!r} is not a size; write it like 5GB, 200MiB, or 1000000")
    units = _BINARY_UNITS if match[3] else _UNITS
    size = float(match[1]) * units[match[2]]
    if size >= _MOST_NBYTES:
        raise typer.BadParameter(f"{text[:24]!r} is too large")
    nbytes = int(size)
    if nbytes < 1:
        raise typer.BadParameter(f"{text!r} is less than one byte")
    return nbytes


def parse_settings(items: list[str] | None) -> dict[str, float | None]:
    """`--set name=value` pairs.

    Raises: typer.BadParameter.
    """
    out: dict[str, float | None] = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        words = {"true": 1, "false": 0, "null": None}
        if not equals or not name:
            raise typer.BadParameter(f"{item!r} is not NAME=NUMBER", param_hint="'--set'")
        if name in out:
            raise typer.BadParameter(f"{name!r} is set twice", param_hint="'--set'")
        try:
            out[name] = words[value] if value in words else _number(value)
        except ValueError:
            raise typer.BadParameter(
                f"{value!r} of {item!r} is not a number", param_hint="'--set'"
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
    typer.Argument(metavar="SRC", show_default=False, help="Folder of a run or of one checkpoint."),
]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SRC...",
        show_default=False,
        help="Folders of runs or checkpoints; each is tried separately.",
    ),
]
TO = typer.Option(
    "--to",
    metavar="TARGET",
    show_default=False,
    help="Target as FORMAT[:KEY=VALUE,...]: universal, hf, deepspeed:zero=2,dp=4, "
    "megatron:tp=2,pp=2, megatron-dist, dcp:dp=4, ... (docs/cli.md).",
)
To = Annotated[str, TO]
_STEP = Annotated[
    str | None,
    typer.Option("--step", metavar="NAME", help="Step to read if the folder has several."),
]
_LAYOUT_FILE = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="FILE.ucl[#NAME]",
        help="Read the source with this layout instead of the detected one.",
    ),
]
_SETTINGS = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=NUMBER",
        help="Set or override a model size, e.g. vocab_size=50257; null for no value.",
    ),
]
_MODEL_NAME = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="Model family of the source: llama, gpt, moe, ..."
    ),
]
_NAMES = Annotated[
    str | None,
    typer.Option(
        "--names",
        metavar="LAYOUT",
        help="Rename tensors to this naming scheme of the model: hf, megatron, ...; "
        "`source` keeps the names of the source.",
    ),
]
_PLACES = Annotated[
    list[str] | None,
    typer.Option(
        "--place",
        metavar="AXIS=MESH:HOW",
        help="Distribute an axis of the model over target ranks, e.g. layer=pp:8,9,9,6.",
    ),
]
_DTYPE = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help="Convert the weights to fp32, bf16, or fp16 (rounds); "
        "or by state: param=bf16,exp_avg=fp32.",
    ),
]
_STATES = Annotated[
    str,
    typer.Option(
        "--states", metavar="KINDS", help="States to include: all, weights, or e.g. param,exp_avg."
    ),
]
_DRIFT = Annotated[
    OnDrift | None,
    typer.Option(
        "--on-drift",
        show_default=False,
        help="If copies of a tensor differ that must be equal, use their mean or the first copy. "
        "By default this is an error.",
    ),
]
_CONFIG = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="DIR",
        help="The model's config.json, or its folder, if the source has none.",
    ),
]
_LEAVE_OUT = Annotated[
    list[str] | None,
    typer.Option(
        "--leave-out",
        metavar="NAME",
        help="Exclude tensors by name; * matches anything, e.g. 'v_head.*'.",
    ),
]
_CHECK = Annotated[
    bool,
    typer.Option("--check", help="Verify the source's checksums first; reads every file."),
]
_THREADS = Annotated[
    int | None, typer.Option("--threads", min=1, metavar="N", help="Maximum number of threads.")
]
_MAX_MEMORY = Annotated[
    int | None,
    typer.Option(
        "--max-memory",
        parser=parse_nbytes,
        metavar="SIZE",
        help="Memory limit, e.g. 200MiB or 1GB.",
    ),
]
_MAX_FILE_SIZE = Annotated[
    int | None,
    typer.Option(
        "--max-file-size",
        parser=parse_nbytes,
        metavar="SIZE",
        help="Maximum file size of a universal or hf target; 5GB by default.",
    ),
]
JUnit = Annotated[
    str | None, typer.Option("--junit", metavar="FILE", help="Also write a JUnit XML report.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no summary.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="Print without colours.")]

_SHARED: Mapping[str, tuple[Any, object]] = {
    "step": (_STEP, None),
    "layout": (_LAYOUT_FILE, None),
    "settings": (_SETTINGS, None),
    "model": (_MODEL_NAME, None),
    "names": (_NAMES, None),
    "config": (_CONFIG, None),
    "leave_out": (_LEAVE_OUT, None),
    "places": (_PLACES, None),
    "states": (_STATES, "all"),
    "dtype": (_DTYPE, None),
    "on_drift": (_DRIFT, None),
    "check": (_CHECK, False),
    "threads": (_THREADS, None),
    "max_memory": (_MAX_MEMORY, None),
    "max_file_size": (_MAX_FILE_SIZE, None),
}
"""The options that several commands share, by the public functions' names for them."""

CONVERSION = tuple(_SHARED)
"""Those of a conversion: all of them."""


def is_default(name: str, value: object) -> bool:
    """Whether a shared option, as a keyword argument, was not given."""
    defaults = _keywords({key: default for key, (_, default) in _SHARED.items()})
    return bool(value == defaults[name])


def takes(*names: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command some of the shared options, in this order, where its `options` stands.

    Args:  names: of `_SHARED`.
    """

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        def run(**values: Any) -> R:
            shared = {name: values.pop(name) for name in names}
            return command(**values, options=_keywords(shared))

        hints = get_type_hints(command, include_extras=True)
        parameters: list[Parameter] = []
        for parameter in signature(command).parameters.values():
            if parameter.name == "options":
                parameters += [_parameter(name, *_SHARED[name]) for name in names]
            else:
                annotation = hints[parameter.name]
                parameters.append(_parameter(parameter.name, annotation, parameter.default))
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _parameter(name: str, annotation: object, default: object) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _keywords(shared: Options) -> Options:
    """The arguments of a public function.

    Raises: typer.BadParameter.
    """
    out = {**shared}
    if "layout" in shared:
        out["layout"], out["layout_name"] = split_layout(shared["layout"])
    if "settings" in shared:
        out["settings"] = parse_settings(shared["settings"])
    if "on_drift" in shared:
        out["on_drift"] = "error" if shared["on_drift"] is None else shared["on_drift"].value
    for name in ("places", "leave_out"):
        if name in shared:
            out[name] = shared[name] or ()
    return out
