"""Any tree that the pickle reader gives, as JSON and back, without loss.

Plain JSON values stand for themselves; everything else is an object with one key that begins with
`$`. Shared references become copies. A tensor is `{"$tensor": X}`: X is its name where it is a
tensor of the catalog, of state `extra` (`Keeper.keep`), and its type, shape and bytes where it is
small and of interest to other frameworks, such as a learning rate (`encode`, `Keeper.setting`).
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Callable, Mapping
from typing import Final, TypeVar, cast

from reshard.dtypes import DType
from reshard.errors import source_error
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.run.states import EXTRA
from reshard.storage.inert import Global, How, Record, Size
from reshard.storage.torch_file import TensorRef, read_small

T = TypeVar("T")
Constant = Callable[[DType, tuple[int, ...], bytes], T]
"""Makes a tensor of known bytes: its type, its shape, and they."""

_SAFE_INTEGER = 1 << 53
_MAX_DEPTH = 900
_MAX_SETTING = 1 << 10
_MAX_COMPARED = 1 << 20
_LETTERS = {DType.F32: "f", DType.F64: "d", DType.I64: "q", DType.I32: "i"}

MISSING: Final = Global("", "missing")
"""Stands for an entry that one rank's file lacks, and others have."""


def small_tensor(ref: TensorRef) -> object:
    """A small tensor as JSON, with its bytes in base64.

    Raises: ReshardError[unkept-object] for a large one.
    """
    try:
        data = _base64(read_small(ref))
    except ValueError:
        raise source_error(
            "unkept-object",
            "an object of the checkpoint cannot be stored",
            notes=[f"it contains a large tensor of shape {list(ref.shape)}, in {ref.file}"],
        ) from None
    return {"$tensor": {"dtype": str(ref.dtype), "shape": list(ref.shape), "data": data}}


def encode(obj: object, tensor: Callable[[TensorRef], object] = small_tensor) -> object:
    """A JSON value for a tree.

    Args:  tensor: the JSON value of a tensor reference.
    Raises: ReshardError[unkept-object] for a tree that holds itself, is nested too deep, or holds
            a tensor that is not small.
    """
    return _to(obj, tensor, 0)


class Keeper:
    """Makes JSON values of objects; larger tensors in them become tensors of no parameter."""

    def __init__(self) -> None:
        self.tensors: list[LocalTensor] = []
        self._names: dict[TensorRef, str] = {}
        self._taken: set[str] = set()

    def keep(self, obj: object, name: str, file: str) -> object:
        """The value of an object, which refers to its tensors by name.

        Args:  name: what they are called, with a number behind from the second on.
               file: relative to the root of the checkpoint.
        """

        def tensor(ref: TensorRef) -> object:
            name_of = self._names.get(ref)
            if name_of is None:
                name_of = self._names[ref] = self._free(name)
                self.tensors.append(local_tensor(ref, name_of, EXTRA, (), file))
            return {"$tensor": name_of}

        return encode(obj, tensor)

    def setting(self, obj: object, name: str, file: str) -> object:
        """The value of an object that other frameworks understand too: small tensors with bytes."""

        def tensor(ref: TensorRef) -> object:
            return self.keep(ref, name, file) if ref.nbytes > _MAX_SETTING else small_tensor(ref)

        return encode(obj, tensor)

    def _free(self, name: str) -> str:
        free, number = name, 1
        while free in self._taken:
            number += 1
            free = f"{name}.{number}"
        self._taken.add(free)
        return free


class Decoder:
    """Makes objects of the JSON values that `encode` or a `Keeper` made, in either encoding.

    Args:  constant: makes a tensor of bytes.
           named: gives the tensor of a name; None where a target can have none.
    """

    def __init__(
        self, constant: Constant[object], named: Callable[[str], object] | None = None
    ) -> None:
        self._constant = constant
        self._named = named

    def value(self, value: object) -> object:
        """The object of one value.

        Raises: ReshardError[bad-object].
        """
        return decode(value, self._tensor)

    def mapping(self, value: object) -> dict[str, object]:
        """The objects of a mapping; empty for what is none."""
        items = value.items() if isinstance(value, Mapping) else ()
        return {str(key): self.value(item) for key, item in items}

    def nested(self, value: object) -> dict[str, dict[str, object]]:
        """The objects of a mapping of mappings."""
        items = value.items() if isinstance(value, Mapping) else ()
        return {str(key): self.mapping(item) for key, item in items}

    def _tensor(self, body: object) -> object:
        if isinstance(body, str) and self._named is not None:
            return self._named(body)
        return constant_of(body, self._constant)


def constant_of(body: object, constant: Constant[T]) -> T:
    """The tensor of what stands behind `$tensor`.

    Args:  constant: makes a tensor of the target.
    """
    if not isinstance(body, Mapping):
        raise TypeError(f"a tensor that is not kept with its bytes, `{body}`")
    shape = tuple(cast("list[int]", body["shape"]))
    data = base64.b64decode(cast("str", body["data"]), validate=True)
    return constant(DType(cast("str", body["dtype"])), shape, data)


def local_tensor(ref: TensorRef, name: str, state: str, coord: Coord, file: str) -> LocalTensor:
    """A tensor of a file as a catalog lists it.

    Args:  file: relative to the root of the checkpoint.
    """
    strides = None if ref.is_contiguous else ref.strides
    run = (Fragment(0, ref.numel, file, ref.byte_offset, strides),) if ref.numel else ()
    return LocalTensor(name, state, coord, ref.shape, ref.dtype, run)


def fingerprint(value: object) -> object:
    """What is equal for equal values of two files, with small tensors compared by their bytes."""

    def tensor(ref: TensorRef) -> object:
        if ref.nbytes > _MAX_COMPARED:
            return [ref.file, ref.byte_offset]
        digest = hashlib.sha256(read_small(ref)).hexdigest()
        return [f"{ref.dtype}", list(ref.shape), digest]

    return encode(value, tensor)


def plain(value: object) -> object:
    """A value for people: the number where it is a tensor of one."""
    body = value.get("$tensor") if isinstance(value, dict) else None
    if not isinstance(body, Mapping):
        return value
    letter = _LETTERS.get(DType(cast("str", body["dtype"])))
    data = base64.b64decode(cast("str", body["data"]))
    if letter is None or len(data) != struct.calcsize(f"<{letter}"):
        return value
    number = struct.unpack(f"<{letter}", data)[0]
    return float(f"{number:.7g}") if letter == "f" else number


def _to(obj: object, tensor: Callable[[TensorRef], object], depth: int) -> object:
    if depth > _MAX_DEPTH:
        raise source_error(
            "unkept-object",
            "an object of the checkpoint cannot be stored",
            notes=[f"it contains itself, or is nested deeper than {_MAX_DEPTH}"],
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
    if obj is MISSING:
        return {"$missing": True}
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
        "an object of the checkpoint cannot be stored",
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


def decode(value: object, tensor: Callable[[object], object]) -> object:
    """The tree of a JSON value that `encode` made.

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
    if tag == "$missing":
        return MISSING
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
