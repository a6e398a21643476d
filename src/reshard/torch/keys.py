"""Which keys of a state dict a checkpoint can fill, and with what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from reshard.dtypes import DType
from reshard.engine.torch_tensors import torch_dtype
from reshard.formats.dcp.contents import Contents, contents_of
from reshard.formats.dcp.form import Form, form_of, joined
from reshard.plan.arrangement import Arrangement, Whole
from reshard.run.states import PARAM
from reshard.storage.kept import Decoder


@dataclass(slots=True)
class Keys:
    """What can be asked for.

    Args:  tensors: by key, the states that may fill it, the most exact one first.
           objects: by key, what makes the object.
    """

    tensors: dict[str, tuple[Whole, ...]] = field(default_factory=dict)
    objects: dict[str, Callable[[], object]] = field(default_factory=dict)


def keys_of(
    arrangement: Arrangement, model_keys: Iterable[str], optimizer_keys: Iterable[str]
) -> Keys:
    """Every key; of two tensors with one key the first, a bare name before one with a prefix."""
    out = Keys()
    contents = contents_of(arrangement)
    source = form_of(arrangement.catalog.training) or Form()
    apart = {*source.of_groups.values(), *source.optimizers.values()}
    params = {whole.name: whole for whole in arrangement.wholes if whole.state == PARAM}
    for prefix in model_keys:
        form = Form(tuple(prefix.split(".")) if prefix else ())
        for name, stored in (
            *((name, name) for name in contents.weights),
            *contents.aliases.items(),
        ):
            weight = contents.weights.get(stored)
            if weight is not None:
                states = (weight, *(whole for whole in (params.get(stored),) if whole))
                out.tensors.setdefault(joined(form.weight(name)), states)
    for prefix in optimizer_keys:
        path = tuple(prefix.split(".")) if prefix else ()
        known = replace(source, weights={}, states={}) if path in apart else Form()
        _add_optimizer(out, contents, replace(known, optimizer=path))
    for place, whole in contents.extras:
        out.tensors.setdefault(joined(place), (whole,))
    for place, value in contents.objects:
        out.objects.setdefault(joined(place), partial(_DECODER.value, value))
    return out


def _add_optimizer(out: Keys, contents: Contents, form: Form) -> None:
    """Add what one optimizer has; of several that the source has apart, each has its own."""
    nested, flat = replace(form, flattened=False), replace(form, flattened=True)
    for name, held in contents.states.items():
        for state, whole in held.items():
            out.tensors.setdefault(joined(nested.state(name, state)), (whole,))
    for at, index, group in nested.groups(contents.settings.groups):
        params = joined(nested.setting(index, "params", at))
        out.objects.setdefault(params, partial(list, group.members))
        for key, value in group.settings.items():
            make = partial(_DECODER.value, value)
            out.objects.setdefault(joined(nested.setting(index, key, at)), make)
            for name in group.members:
                out.objects.setdefault(joined(flat.setting(name, key, at)), make)


def _constant(dtype: DType, shape: tuple[int, ...], data: bytes) -> Any:
    return torch.frombuffer(bytearray(data), dtype=torch_dtype(dtype)).reshape(shape)


_DECODER = Decoder(_constant)
