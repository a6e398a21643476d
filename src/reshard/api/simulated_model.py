"""A model of which only the configuration is there, as a source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from reshard import formats
from reshard.api.given_config import read_config
from reshard.api.request import Request
from reshard.api.source import OpenedSource
from reshard.api.states import parse_dtypes
from reshard.api.user_layouts import read_layouts
from reshard.dtypes import DType
from reshard.errors import ReshardError, layout_error
from reshard.language import load_layout
from reshard.language.library import Family, declared_families, shipped
from reshard.models.find import rename_to
from reshard.models.stated import is_stated
from reshard.models.transformers import kind_of
from reshard.plan.arrangement import SCALAR, Arrangement
from reshard.plan.catalog import Catalog
from reshard.plan.model_source import model_source
from reshard.plan.place import parse_placement
from reshard.plan.prove import prove_sources
from reshard.plan.target import Target
from reshard.run.run import Group, Run
from reshard.run.states import EXP_AVG, EXP_AVG_SQ, MASTER, PARAM, STEP

_NAMES = "hf"
_MODEL_KEY = "model_type"
_OWN = """\
# The tensors of a model that is not stored anywhere.
layout model {
    "**" = [...] optional
}
"""
_ADAM = {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
DTYPES = {PARAM: DType.BF16, MASTER: DType.F32, EXP_AVG: DType.F32, EXP_AVG_SQ: DType.F32}
"""What a run of Adam in mixed precision keeps of each parameter."""


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """A model of which only the configuration is there.

    Args:  path: of the configuration.  kind: its type.  own: the layout of its own names.
    """

    path: Path
    kind: str
    family: Family
    own: str
    atoms: Arrangement

    @classmethod
    def read(cls, path: Path, request: Request) -> SimulatedModel:
        """The model of a configuration.

        Raises: ReshardError[bad-config | no-layout-fits | incomplete-model-config].
        """
        stated = read_config(path, "--simulate")
        kind = str(stated[_MODEL_KEY])
        known = kind_of(kind)
        catalog = Catalog(
            format=_NAMES,
            version="",
            root=str(path.absolute()),
            mesh={},
            tensors=(),
            layout=load_layout(_OWN, "simulated model"),
            training=Run(),
            config={**({} if known is None else known.default), **stated},
            names_of=_NAMES,
        )
        own: tuple[Family, ...] = ()
        if request.layout is not None:
            own = declared_families(read_layouts(Path(request.layout)))
        stated_by = (
            (item, name)
            for item in (*own, *shipped())
            if kind in item.types()
            for name in item.layout_names
            if is_stated(catalog, item, name)
        )
        family, layout = next(stated_by, (None, ""))
        if family is None:
            raise _unknown_type(path, kind)
        states = {**DTYPES, **parse_dtypes(request.dtype), STEP: DType.F32}
        atoms = model_source(family.layout(layout), catalog, states, request.settings)
        return cls(path, kind, family, layout, atoms)

    @property
    def parameters(self) -> int:
        """Elements of all weights."""
        atoms = self.atoms.atoms.values()
        return sum(prod(atom.shape) for atom in atoms if not atom.key.endswith(SCALAR))

    def opened(self, target: Target, request: Request) -> OpenedSource:
        """The model in the names of a target, as a source."""
        form = formats.TARGETS[target.format]
        names, told = form.names_of(target)
        if target.described is not None:
            names = target.described.names
        renamed = rename_to(
            self.atoms,
            self.family,
            names or self.own,
            form.mesh_of(target),
            instead=form.instead,
            settings={**told, **request.settings},
            places={item.axis: item for item in map(parse_placement, request.places)},
        )
        weights = [whole.name for whole in renamed.wholes if whole.state in (PARAM, MASTER)]
        is_run = any(whole.state == EXP_AVG for whole in renamed.wholes)
        run = Run(1, (Group(_ADAM, dict.fromkeys(weights)),)) if is_run else Run()
        catalog = replace(renamed.catalog, training=run)
        renamed = replace(renamed, catalog=catalog)
        proof = prove_sources(replace(renamed, wholes=()))
        return OpenedSource(self.path, renamed, proof, None, self.family, "layout")


def _unknown_type(path: Path, kind: str) -> ReshardError:
    known = ", ".join(f"`{item.name}`" for item in shipped())
    return layout_error(
        "no-layout-fits",
        f"no known layout describes models of type `{kind}`",
        notes=[f"{path} states this type", f"known models: {known}"],
        helps=["describe the model in a UCL file, and give it with `--layout FILE.ucl`"],
    )
