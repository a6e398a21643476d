"""Opens safetensors files with the safetensors library itself, as the loaders of others do.

Source: safetensors 0.8, `safe_open`, `PySafeSlice`.
"""

from __future__ import annotations

import os

from reshard.dtypes import DType
from reshard.errors import Diagnostic, ReshardError
from reshard.storage.safetensors import SafetensorsHeader, read_header, written_shape

_FRAMEWORK = "numpy"
_SHOWN = 300


def library_faults(path: str | os.PathLike[str]) -> tuple[Diagnostic, ...]:
    """Why the library does not load a file as it was read here; () if it does.

    Complex numbers of 128 bits are in no file that others read; they are reshard's own.
    """
    where = os.fspath(path)
    try:
        header = read_header(path)
    except ReshardError as error:
        return error.diagnostics
    if any(item.dtype == DType.C128 for item in header.tensors.values()):
        return ()
    from safetensors import SafetensorError, __version__, safe_open

    try:
        with safe_open(where, framework=_FRAMEWORK) as file:
            faults = _differences(file, header)
    except (SafetensorError, OSError, ValueError) as error:
        faults = [str(error)[:_SHOWN]]
    if not faults:
        return ()
    return (
        Diagnostic(
            "loader-refuses",
            f"the safetensors library does not load {where}",
            notes=(*faults[:5], f"its version is {__version__}"),
            helps=("write the file again with that library, or use a version that reads it",),
        ),
    )


def _differences(file: object, header: SafetensorsHeader) -> list[str]:
    names = sorted(file.keys())  # type: ignore[attr-defined]
    if names != sorted(header.tensors):
        return [f"it reads {len(names)} tensors, and the header lists {len(header.tensors)}"]
    out = []
    for name, item in header.tensors.items():
        part = file.get_slice(name)  # type: ignore[attr-defined]
        actual = (part.get_dtype(), part.get_shape())
        expected = (str(item.dtype), written_shape(item.dtype, item.shape))
        if actual != expected:
            out.append(
                f"`{name}` is {actual[0]} {actual[1]} to it, {expected[0]} {expected[1]} here"
            )
    return out
