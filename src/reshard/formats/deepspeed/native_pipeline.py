"""Layer files of a pipeline.

Source: DeepSpeed 0.19.8 runtime/pipe/module.py `ckpt_layer_path` and `save_state_dict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from reshard.errors import target_error
from reshard.formats.deepspeed.native_model import ModelFiles
from reshard.formats.deepspeed.native_options import NativeOptions
from reshard.formats.deepspeed.resume import Resume
from reshard.plan.lay_out import LaidTensor


def layer_files(
    resume: Resume,
    options: NativeOptions,
    models: ModelFiles,
    stages: Sequence[Mapping[str, LaidTensor]],
    tp_rank: int,
) -> Iterator[tuple[str, dict[str, object]]]:
    """The name and the content of every layer's file of one tensor-parallel rank.

    Args:  stages: by pipeline stage, what it holds, by the name of the whole tensor.
    Raises: ReshardError[deepspeed-layer].
    """
    middle = f"-model_{tp_rank:02d}" if options.tp > 1 else ""
    for layer, keys in (resume.pipeline or {}).items():
        held = next((own for own in stages if all(name in own for name in keys.values())), None)
        if held is None:
            raise target_error(
                "deepspeed-layer",
                f"no pipeline stage holds all weights of layer {layer}",
                notes=[f"it has {', '.join(f'`{name}`' for name in list(keys.values())[:4])}"],
                helps=["the tensors may have been renamed; convert with their own names"],
            )
        content = {key: models.weights(held[name]) for key, name in keys.items()}
        yield f"layer_{int(layer):02d}{middle}-model_states.pt", dict(content)


def check_pipeline(resume: Resume, options: NativeOptions) -> None:
    """Refuse a pipeline with more of ZeRO than DeepSpeed can.

    Raises: ReshardError[deepspeed-pipeline-stage].
    Source: DeepSpeed 0.19.8 runtime/pipe/engine.py `PipelineEngine.__init__`.
    """
    if resume.pipeline is None or options.zero < 2:
        return
    raise target_error(
        "deepspeed-pipeline-stage",
        f"DeepSpeed does not run a pipeline with ZeRO stage {options.zero}",
        notes=[f"the source is a pipeline of {len(resume.pipeline)} layers"],
        helps=["choose `zero=1`"],
    )
