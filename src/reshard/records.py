"""`dataclass`, `field` and `replace` of the standard library, for a program that starts quickly.

The standard decorator compiles six methods of every class when its module is imported: some 250
classes, a third of the time of a small command. This one compiles a method when it is first used,
`__init__` with the first instance of a class. What it makes is a dataclass for everybody else, too:
`dataclasses.fields`, `replace` and `asdict` work, and so does inheriting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["dataclass", "field", "names_of", "replace"]

if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace

    def names_of(record: object) -> tuple[str, ...]:
        """The names of the fields of a dataclass; none of what is no dataclass."""
else:
    _MISSING = object()

    class _Field:
        __slots__ = ("compare", "default", "factory", "init", "kw_only", "name", "repr", "type")

        def __init__(self, default, factory, init, repr_, compare, kw_only):
            self.name = self.type = ""
            self.default = default
            self.factory = factory
            self.init = init
            self.repr = repr_
            self.compare = compare
            self.kw_only = kw_only

        def standard(self):
            """The same field, as the standard library has it."""
            import dataclasses

            return dataclasses.field(
                default=dataclasses.MISSING if self.default is _MISSING else self.default,
                default_factory=dataclasses.MISSING if self.factory is _MISSING else self.factory,
                init=self.init,
                repr=self.repr,
                compare=self.compare,
                kw_only=self.kw_only,
            )

    def field(
        *,
        default=_MISSING,
        default_factory=_MISSING,
        init=True,
        repr=True,  # noqa: A002
        compare=True,
        kw_only=False,
    ):
        return _Field(default, default_factory, init, repr, compare, kw_only)

    def replace(record, /, **changes):
        for item in type(record).__record_fields__:
            if item.init and item.name not in changes:
                changes[item.name] = getattr(record, item.name)
        return type(record)(**changes)

    def names_of(record):
        return tuple(item.name for item in getattr(type(record), _FIELDS, ()))

    def dataclass(*, frozen=False, slots=False, eq=True, repr=True):  # noqa: A002
        return lambda cls: _made(cls, frozen, slots, eq, repr)

    def _made(cls, frozen, slots, eq, repr_):
        inherited = {}
        for base in cls.__mro__[:0:-1]:
            inherited.update((item.name, item) for item in base.__dict__.get(_FIELDS, ()))
        own = _own_fields(cls)
        fields = tuple({**inherited, **own}.values())
        namespace = dict(cls.__dict__)
        namespace[_FIELDS] = fields
        namespace[_FROZEN] = frozen
        namespace["__match_args__"] = tuple(x.name for x in fields if x.init and not x.kw_only)
        namespace["__dataclass_fields__"] = _Standard("__dataclass_fields__")
        namespace["__dataclass_params__"] = _Standard("__dataclass_params__")
        namespace["__init__"] = _AtFirstUse("__init__", _init_text)
        if repr_:
            namespace["__repr__"] = _repr
        if frozen:
            namespace |= {"__setattr__": _refuse_to_set, "__delattr__": _refuse_to_delete}
        if eq:
            namespace.setdefault("__eq__", _AtFirstUse("__eq__", _eq_text))
            namespace["__hash__"] = _AtFirstUse("__hash__", _hash_text) if frozen else None
        if not slots:
            for name, value in namespace.items():
                if cls.__dict__.get(name, _MISSING) is not value:
                    setattr(cls, name, value)
            for item in own.values():
                if item.default is not _MISSING:
                    setattr(cls, item.name, item.default)
                elif item.name in namespace:
                    delattr(cls, item.name)
            return cls
        for name in (*own, "__dict__", "__weakref__"):
            namespace.pop(name, None)
        namespace["__slots__"] = tuple(name for name in own if name not in inherited)
        if frozen:
            namespace |= {"__getstate__": _state, "__setstate__": _set_state}
        made = type(cls)(cls.__name__, cls.__bases__, namespace)
        made.__qualname__ = cls.__qualname__
        return made

    _FIELDS, _FROZEN = "__record_fields__", "__record_frozen__"

    def _own_fields(cls):
        own = {}
        for name, type_ in cls.__annotations__.items():
            value = cls.__dict__.get(name, _MISSING)
            if type(value) is not _Field:
                value = _Field(value, _MISSING, True, True, True, False)
            value.name, value.type = name, type_
            own[name] = value
        return own

    class _AtFirstUse:
        """A method of a class until it is wanted, which then puts the real one in its place."""

        __slots__ = ("name", "text_of")

        def __init__(self, name, text_of):
            self.name = name
            self.text_of = text_of

        def __get__(self, record, owner):
            cls = next((x for x in owner.__mro__ if x.__dict__.get(self.name) is self), None)
            if cls is None:  # another thread was first
                return getattr(owner if record is None else record, self.name)
            names = {}
            exec(self.text_of(cls, names), names)
            method = names[self.name]
            method.__qualname__ = f"{cls.__qualname__}.{self.name}"
            setattr(cls, self.name, method)
            return method.__get__(record, owner)

    def _init_text(cls, names):
        names["_missing"] = _MISSING
        places = {False: ["self"], True: []}
        body = []
        for item in cls.__record_fields__:
            name = value = item.name
            default = ""
            if item.factory is not _MISSING:
                names[f"_factory_{name}"] = item.factory
                value = f"_factory_{name}()"
                default = "=_missing"
                if item.init:
                    value = f"{value} if {name} is _missing else {name}"
            elif item.default is not _MISSING:
                names[f"_default_{name}"] = item.default
                default = f"=_default_{name}"
                value = name if item.init else f"_default_{name}"
            elif not item.init:
                continue
            if item.init:
                places[item.kw_only].append(name + default)
            if not cls.__record_frozen__:
                body.append(f" self.{name} = {value}")
                continue
            slot = getattr(cls, name, None)
            if type(slot) is _SLOT:
                names[f"_set_{name}"] = slot.__set__
                body.append(f" _set_{name}(self, {value})")
            else:
                names["_set"] = object.__setattr__
                body.append(f" _set(self, {name!r}, {value})")
        if hasattr(cls, "__post_init__"):
            body.append(" self.__post_init__()")
        listed = ", ".join(places[False] + (["*", *places[True]] if places[True] else []))
        return f"def __init__({listed}):\n" + ("\n".join(body) or " pass")

    _SLOT = type(_Field.name)

    def _compared(cls, record):
        names = (item.name for item in cls.__record_fields__ if item.compare)
        return "(" + "".join(f"{record}.{name}, " for name in names) + ")"

    def _eq_text(cls, names):
        return (
            "def __eq__(self, other):\n"
            " if other.__class__ is not self.__class__: return NotImplemented\n"
            f" return {_compared(cls, 'self')} == {_compared(cls, 'other')}"
        )

    def _hash_text(cls, names):
        return f"def __hash__(self): return hash({_compared(cls, 'self')})"

    def _repr(self):
        shown = (item.name for item in self.__record_fields__ if item.repr)
        listed = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"{self.__class__.__qualname__}({listed})"

    def _refuse_to_set(self, name, value):
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def _refuse_to_delete(self, name):
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def _state(self):
        return [getattr(self, item.name) for item in type(self).__record_fields__]

    def _set_state(self, state):
        for item, value in zip(type(self).__record_fields__, state, strict=True):
            object.__setattr__(self, item.name, value)

    class _Standard:
        """What the standard library keeps in a dataclass, made when somebody asks for it."""

        __slots__ = ("name",)

        def __init__(self, name):
            self.name = name

        def __get__(self, record, owner):
            import dataclasses

            fields = [(x.name, x.type, x.standard()) for x in owner.__record_fields__]
            twin = dataclasses.make_dataclass(
                owner.__name__, fields, frozen=owner.__record_frozen__
            )
            return getattr(twin, self.name)
