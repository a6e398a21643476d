"""The few calls in a pickle that are carried out, because they only make plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from reshard.dtypes import DType
from reshard.storage.inert import Global, Size
from reshard.storage.pickle_limits import key_fault

Constructor = Callable[[tuple[object, ...]], object]

_DTYPES = {
    "float64": DType.F64,
    "double": DType.F64,
    "float32": DType.F32,
    "float": DType.F32,
    "float16": DType.F16,
    "half": DType.F16,
    "bfloat16": DType.BF16,
    "int64": DType.I64,
    "long": DType.I64,
    "int32": DType.I32,
    "int": DType.I32,
    "int16": DType.I16,
    "short": DType.I16,
    "int8": DType.I8,
    "uint8": DType.U8,
    "uint16": DType.U16,
    "uint32": DType.U32,
    "uint64": DType.U64,
    "bool": DType.BOOL,
    "complex64": DType.C64,
    "complex128": DType.C128,
    "float8_e4m3fn": DType.F8_E4M3,
    "float8_e5m2": DType.F8_E5M2,
    "float8_e8m0fnu": DType.F8_E8M0,
    "float8_e4m3fnuz": DType.F8_E4M3FNUZ,
    "float8_e5m2fnuz": DType.F8_E5M2FNUZ,
    "float4_e2m1fn_x2": DType.F4,
}

_STORAGES = {
    "DoubleStorage": DType.F64,
    "FloatStorage": DType.F32,
    "HalfStorage": DType.F16,
    "BFloat16Storage": DType.BF16,
    "LongStorage": DType.I64,
    "IntStorage": DType.I32,
    "ShortStorage": DType.I16,
    "CharStorage": DType.I8,
    "ByteStorage": DType.U8,
    "BoolStorage": DType.BOOL,
    "ComplexDoubleStorage": DType.C128,
    "ComplexFloatStorage": DType.C64,
    "UntypedStorage": DType.U8,
}


def dtype_of_global(value: object) -> DType | None:
    """The element type that `torch.bfloat16` and the like name; None for anything else."""
    if isinstance(value, Global) and value.module == "torch":
        return _DTYPES.get(value.name)
    return None


def dtype_of_name(name: str) -> DType | None:
    """The element type that torch calls so, e.g. `bfloat16`; None for anything else."""
    return _DTYPES.get(name)


def storage_dtype(value: object) -> DType | None:
    """The element type of a storage class such as `torch.FloatStorage`; None for anything else."""
    if isinstance(value, Global) and value.module in ("torch", "torch.storage"):
        return _STORAGES.get(value.name)
    return None


def _ordered(args: tuple[object, ...]) -> object:
    if args and not isinstance(args[0], (list, tuple, dict)):
        raise ValueError("a dict of something else")
    pairs = args[0] if args else ()
    out: dict[object, object] = {}
    for pair in list(pairs.items()) if isinstance(pairs, dict) else _items(args):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError("a dict of no pairs")
        out[_key(pair[0])] = pair[1]
    return out


def _key(value: object) -> object:
    if fault := key_fault(value):
        raise ValueError(fault)
    return value


def _encode(args: tuple[object, ...]) -> object:
    text, encoding = args[0], args[1] if len(args) > 1 else "utf-8"
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise ValueError("an encoding that is not plain")
    return text.encode(encoding)


def _bytearray(args: tuple[object, ...]) -> object:
    if not args:
        return bytearray()
    if isinstance(args[0], str):
        return bytearray(cast("bytes", _encode(args)))
    if isinstance(args[0], (bytes, list)):
        return bytearray(cast("bytes", args[0]))
    raise ValueError("a bytearray of something else")


def _bytes(args: tuple[object, ...]) -> object:
    if args and not isinstance(args[0], (bytes, bytearray, list)):
        raise ValueError("bytes of something else")
    return bytes(cast("bytes", args[0])) if args else b""


def _items(args: tuple[object, ...]) -> list[object]:
    if args and not isinstance(args[0], (list, tuple, set, frozenset)):
        raise ValueError("a set of something else")
    return list(cast("list[object]", args[0])) if args else []


def _complex(args: tuple[object, ...]) -> object:
    if len(args) != 2 or not all(isinstance(a, (int, float)) for a in args):
        raise ValueError("a complex number of something else")
    return complex(cast("float", args[0]), cast("float", args[1]))


def _size(args: tuple[object, ...]) -> object:
    return Size(cast("tuple[int, ...]", tuple(_items(args))))


def _nested(args: tuple[object, ...]) -> object:
    """A class, or a method, that is declared within a class: its name, which is not looked up."""
    cls, name = args if len(args) == 2 else (None, None)
    if not isinstance(cls, Global) or not isinstance(name, str):
        raise ValueError("an attribute of something else than a class")
    if not name.isidentifier() or name.startswith("__"):
        raise ValueError(f"an attribute `{name}` of a class")
    return Global(cls.module, f"{cls.name}.{name}")


CONSTRUCTORS: dict[Global, Constructor] = {
    Global("collections", "OrderedDict"): _ordered,
    Global("torch", "Size"): _size,
    Global("_codecs", "encode"): _encode,
    **{
        Global(module, name): make
        for module in ("builtins", "__builtin__")
        for name, make in (
            ("set", lambda args: set(map(_key, _items(args)))),
            ("frozenset", lambda args: frozenset(map(_key, _items(args)))),
            ("bytearray", _bytearray),
            ("bytes", _bytes),
            ("complex", _complex),
            ("getattr", _nested),
            ("dict", _ordered),
        )
    },
}
