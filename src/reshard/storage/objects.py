"""Any tree that the pickle reader gives, as JSON and back, without loss.

Plain JSON values stand for themselves; everything else is an object with one key that begins with
`$`.  Shared references become copies.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import cast

from reshard.errors import source_error
from reshard.storage.inert import Global, How, Record, Size
from reshard.storage.torch_file import TensorRef

_SAFE_INTEGER = 1 << 53
_MAX_DEPTH = 900


def to_json(obj: object, tensor: Callable[[TensorRef], object]) -> object:
    """A JSON value for a tree.

    Args:  tensor: the JSON value of a tensor reference, by convention `{"$tensor": ...}`.
    Raises: ReshardError[unkept-object] for a tree that holds itself, or is nested too deep.
    """
    return _to(obj, tensor, 0)


def _to(obj: object, tensor: Callable[[TensorRef], object], depth: int) -> object:
    if depth > _MAX_DEPTH:
        raise source_error(
            "unkept-object",
            "an object of the checkpoint cannot be kept",
            notes=[f"it holds itself, or is nested deeper than {_MAX_DEPTH}"],
        )

    def inner(value: object) -> object:
        return _to(value, tensor, depth + 1)

    if obj is None or isinstance(obj, bool):
        return obj
    if isinstance(obj, int):
        return obj if abs(obj) < _SAFE_INTEGER else {"$int": str(obj)}
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else {"$float": _float_text(obj)}
    if isinstance(obj, str):
        return obj if _is_text(obj) else {"$text": _base64(obj.encode("utf-8", "surrogatepass"))}
    if isinstance(obj, list):
        return [inner(item) for item in obj]
    if isinstance(obj, dict):
        return _dict_to(obj, inner)
    if isinstance(obj, Size):
        return {"$size": [inner(item) for item in obj]}
    if isinstance(obj, tuple):
        return {"$tuple": [inner(item) for item in obj]}
    if isinstance(obj, TensorRef):
        return tensor(obj)
    if isinstance(obj, Global):
        return {"$global": [obj.module, obj.name]}
    if isinstance(obj, Record):
        return {"$record": _record_to(obj, inner)}
    return _rare_to(obj, inner)


def _rare_to(obj: object, inner: Callable[[object], object]) -> object:
    if isinstance(obj, bytes):
        return {"$bytes": _base64(obj)}
    if isinstance(obj, bytearray):
        return {"$bytearray": _base64(bytes(obj))}
    if isinstance(obj, complex):
        return {"$complex": [inner(obj.real), inner(obj.imag)]}
    if isinstance(obj, (set, frozenset)):
        items = sorted((inner(item) for item in obj), key=repr)
        return {"$frozenset" if isinstance(obj, frozenset) else "$set": items}
    raise source_error(
        "unkept-object",
        "an object of the checkpoint cannot be kept",
        notes=["it is a storage without a tensor"],
    )


def _dict_to(obj: dict[object, object], inner: Callable[[object], object]) -> object:
    if all(isinstance(key, str) and not key.startswith("$") and _is_text(key) for key in obj):
        return {cast("str", key): inner(value) for key, value in obj.items()}
    return {"$dict": [[inner(key), inner(value)] for key, value in obj.items()]}


def _record_to(obj: Record, inner: Callable[[object], object]) -> dict[str, object]:
    out: dict[str, object] = {
        "class": [obj.module, obj.name],
        "how": obj.how,
        "args": [inner(item) for item in obj.args],
    }
    if obj.state:
        out["state"] = [inner(item) for item in obj.state]
    if obj.items:
        out["items"] = [[inner(key), inner(value)] for key, value in obj.items]
    if obj.appended:
        out["appended"] = [inner(item) for item in obj.appended]
    return out


def from_json(value: object, tensor: Callable[[object], object]) -> object:
    """The tree of a JSON value that `to_json` made.

    Args:  tensor: what to put for `{"$tensor": X}`, given X.
    Raises: ReshardError[bad-object].
    """
    try:
        return _from(value, tensor)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise source_error(
            "bad-object",
            "an object of the checkpoint's training state cannot be understood",
            notes=[f"{type(error).__name__}: {error}"],
            helps=["the file was changed after it was written"],
        ) from None


def _from(value: object, tensor: Callable[[object], object]) -> object:
    if isinstance(value, list):
        return [_from(item, tensor) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not next(iter(value)).startswith("$"):
        return {key: _from(item, tensor) for key, item in value.items()}
    ((tag, body),) = value.items()
    if tag == "$tensor":
        return tensor(body)
    if tag in ("$int", "$float", "$text", "$bytes", "$bytearray"):
        return _scalar_from(tag, body)
    if tag == "$record":
        return _record_from(body, tensor)
    if tag == "$global":
        module, name = body
        return Global(module, name)
    if tag == "$dict":
        return {_from(key, tensor): _from(item, tensor) for key, item in body}
    items = [_from(item, tensor) for item in body]
    if tag == "$tuple":
        return tuple(items)
    if tag == "$size":
        return Size(cast("list[int]", items))
    if tag == "$set":
        return set(items)
    if tag == "$frozenset":
        return frozenset(items)
    if tag == "$complex":
        return complex(cast("float", items[0]), cast("float", items[1]))
    raise ValueError(f"unknown tag {tag}")


def _scalar_from(tag: str, body: str) -> object:
    if tag == "$int":
        return int(body)
    if tag == "$float":
        return float(body)
    raw = base64.b64decode(body, validate=True)
    if tag == "$text":
        return raw.decode("utf-8", "surrogatepass")
    return bytearray(raw) if tag == "$bytearray" else raw


def _record_from(body: dict[str, object], tensor: Callable[[object], object]) -> Record:
    def items(key: str) -> list[object]:
        return [_from(item, tensor) for item in cast("list[object]", body.get(key, []))]

    module, name = cast("list[str]", body["class"])
    pairs = cast("list[list[object]]", items("items"))
    return Record(
        module,
        name,
        tuple(items("args")),
        cast("How", body["how"]),
        items("state"),
        [(key, value) for key, value in pairs],
        items("appended"),
    )


def _float_text(value: float) -> str:
    if math.isnan(value):
        return "nan"
    return "inf" if value > 0 else "-inf"


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
