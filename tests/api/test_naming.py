"""The model of a checkpoint whose ranks are not alike."""

from __future__ import annotations

from dataclasses import replace

from made_models import TEXT, MadeModel
from reshard.language import load_layout
from reshard.language.library import families
from reshard.models.find import find_model
from reshard.plan.bind import bind
from reshard.plan.prove import prove_sources

OWN = """
layout megatron {
    mesh vpp, pp, tp, dp
    place layer over vpp, pp as 1, 2, 1
    "decoder.layers.{local layer}.**" = [...]
    "**_layernorm.weight" = [...]
    "**embeddings.weight" = [...]
    "output_layer.weight" = [...]
}
"""


def test_uneven_stages_are_as_the_checkpoint_says_them() -> None:
    made = MadeModel("megatron", {"vpp": 1, "pp": 3, "tp": 2, "dp": 1}, layers=(1, 2, 1))
    catalog = replace(made.store()[0], layout=load_layout(OWN))
    modelled = find_model(catalog, model="llama", extra=families(TEXT, "models.ucl"))
    arrangement = bind(modelled.layout, modelled.catalog)
    prove_sources(arrangement)
    assert arrangement.atoms["wq"].shape[0] == 4
    cuts = {bound.cuts["layer"].blocks for bound in arrangement.bound.values() if bound.indices}
    assert cuts == {(1, 2, 1)}
