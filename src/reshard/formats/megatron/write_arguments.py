"""The arguments of a run, `argparse.Namespace`, for another layout of it or for a new one.

Source: Megatron-LM, megatron/training/arguments.py and checkpointing.py
`check_checkpoint_args`, `load_args_from_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.algebra.term import Sum, Term
from reshard.dtypes import DType
from reshard.formats.megatron.buffers import default_size
from reshard.formats.megatron.legacy import EMBEDDING, OUTPUT
from reshard.formats.megatron.write_job import Job
from reshard.language.expression import evaluate
from reshard.models.config_json import known_facts
from reshard.models.megatron import arguments_for
from reshard.plan.arrangement import Arrangement
from reshard.plan.framework_config import framework_config
from reshard.storage.inert import Record
from reshard.storage.torch_writer import torch_dtype

_ROUTER = "router"
"""The atom that layers with experts have."""

_HUGGING_FACE = {
    "rope_theta": "rotary_base",
    "rope_parameters.rope_theta": "rotary_base",
    "rms_norm_eps": "norm_epsilon",
    "layer_norm_eps": "norm_epsilon",
    "layer_norm_epsilon": "norm_epsilon",
    "max_position_embeddings": "max_position_embeddings",
    "num_experts_per_tok": "moe_router_topk",
    "initializer_range": "init_method_std",
}
"""What other configurations call the arguments that no tensor shows."""


def namespace(
    job: Job, stages: Sequence[int] = (), padded_vocabulary: int | None = None, rank: int = 0
) -> Record:
    """The arguments as an object.

    Args:  stages: layers of every virtual stage, chunk major; () where they are even.
           padded_vocabulary: rows of the embedding; None where it is not padded for the run.
           rank: the one that writes them, of all.
    """
    options, resume = job.options, job.resume
    if job.arguments is None:
        job.arguments = resume.args if resume.is_megatron else _described(job)
    args = dict(job.arguments)
    said: dict[str, object] = {
        "tensor_model_parallel_size": options.tp,
        "pipeline_model_parallel_size": options.pp,
        "virtual_pipeline_model_parallel_size": options.vpp if options.vpp > 1 else None,
        "expert_model_parallel_size": options.ep,
        "expert_tensor_parallel_size": options.etp,
        "data_parallel_size": options.dp,
        "world_size": options.tp * options.pp * options.dp,
        "use_distributed_optimizer": options.distributed,
        "ckpt_format": "torch" if job.is_legacy else "torch_dist",
    }
    if_there: dict[str, object] = {
        "use_dist_ckpt": not job.is_legacy,
        "transformer_pipeline_model_parallel_size": options.pp,
        "context_parallel_size": 1,
        "account_for_embedding_in_pipeline_split": False,
        "account_for_loss_in_pipeline_split": False,
        "rank": rank,
        "local_rank": rank,
    }
    if_needed: dict[str, object] = {
        **dict.fromkeys(_UNEVEN),
        **_pipeline(stages, options.vpp),
        "no_save_optim": not job.has_optimizer,
        "no_save_rng": not job.has_rng,
    }
    if args.get("use_precision_aware_optimizer") is True and not job.has_remainders:
        said["use_precision_aware_optimizer"] = False  # its masters are not whole
    said.update({key: value for key, value in if_there.items() if key in args})
    said.update({key: value for key, value in if_needed.items() if key in args or value})
    if_known = {
        "padded_vocab_size": padded_vocabulary,
        "iteration": options.iteration,
        "consumed_train_samples": options.samples,
    }
    said.update({key: value for key, value in if_known.items() if value is not None})
    if options.bucket_size is not None:
        stated = args.setdefault("ddp_bucket_size", None)
        if stated is not None or options.bucket_size != default_size(options.dp):
            said["ddp_bucket_size"] = options.bucket_size
        said["overlap_grad_reduce"] = True
    return Record("argparse", "Namespace", (), "newobj", [{**args, **said}])


_UNEVEN = (
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "pipeline_model_parallel_layout",
    "num_layers_per_virtual_pipeline_stage",
    "num_virtual_stages_per_pipeline_rank",
)


def _pipeline(stages: Sequence[int], vpp: int) -> dict[str, object]:
    """What says how many layers each stage has; nothing for even stages without virtual ones."""
    if len(set(stages)) <= 1:
        return dict(zip(_UNEVEN[3:], (stages[0], vpp), strict=True)) if vpp > 1 and stages else {}
    first, *middle, last = stages
    if vpp == 1 and len(set(middle)) <= 1:
        between = middle[0] if middle else None
        out: dict[str, object] = {} if first == between else {_UNEVEN[0]: first}
        return {**out, _UNEVEN[1]: last} if middle and last != between else out
    parts = ["t" * count for count in stages]
    parts[0], parts[-1] = "E" + parts[0], parts[-1] + "L"
    return {_UNEVEN[2]: "|".join(parts)}


def _described(job: Job) -> dict[str, object]:
    """Arguments for a model that is of another framework: what its names, its shapes, and its
    configuration tell.
    """
    arrangement, dtype = job.arrangement, job.inventory.main_dtype()
    bound = arrangement.bound
    known = framework_config(arrangement.layout, arrangement.values).get("args")
    args: dict[str, object] = dict(known) if isinstance(known, dict) else {}
    stated = known_facts(arrangement.catalog)
    args.update(_hugging_face(stated, args))
    is_latent = "kv_lora_rank" in args
    is_gated = any(_is_gated(b.dims) for n, b in bound.items() if ".linear_fc1.weight" in n)
    is_biased = any(name.endswith(".linear_fc1.bias") for name in bound)
    facts_of_config = arguments_for(
        stated, is_latent=is_latent, is_gated=is_gated, is_biased=is_biased
    )
    args.update(facts_of_config.words)
    if is_latent:
        has_bias = bool(args.get("moe_router_enable_expert_bias"))
        args["moe_router_score_function"] = "sigmoid" if has_bias else "softmax"
        args["moe_router_pre_softmax"] = not has_bias
    norms = [name for name in bound if "norm" in name.rpartition(".")[0] or "norm_" in name]
    learned = any(".position_embeddings." in name for name in bound)
    biased = [name for name in bound if name.endswith(".bias")]
    facts: dict[str, object] = {
        "swiglu": is_gated,
        "normalization": "LayerNorm" if any("bias" in name for name in norms) else "RMSNorm",
        "add_bias_linear": any(".linear_proj." in name for name in biased),
        "add_qkv_bias": any(".linear_qkv." in name for name in biased),
        "qk_layernorm": any(".q_layernorm." in name for name in bound),
        "position_embedding_type": "learned_absolute" if learned else "rope",
        "add_position_embedding": True,
        "use_rotary_position_embeddings": not learned,
        "rotary_interleaved": False,
        "multi_latent_attention": any(".linear_kv_up_proj." in name for name in bound),
        "untie_embeddings_and_output_weights": _is_untied(arrangement),
        "num_experts": None,
        "make_vocab_size_divisible_by": arrangement.values.get("vocab_divisor", 128),
        "params_dtype": torch_dtype(dtype),
        "bf16": dtype is DType.BF16,
        "fp16": dtype is DType.F16,
    }
    routed = _routed_layers(arrangement)
    if not all(routed):
        facts["moe_layer_freq"] = routed
    heads, groups = args.get("num_attention_heads"), args.get("num_query_groups")
    facts["group_query_attention"] = groups is not None and groups != heads
    return {**facts, **args}


def _routed_layers(arrangement: Arrangement) -> list[int]:
    """For each layer 1 where it has experts, else 0; nothing where the model does not say so."""
    model, values = arrangement.layout.model, arrangement.values
    router = None if model is None else model.tensors.get(_ROUTER)
    if model is None or router is None or router.only is None:
        return []
    size = model.axes[router.along].size
    count = None if size is None else evaluate(size, values)
    if not isinstance(count, int):
        return []
    return [int(evaluate(router.only, {**values, router.along: at}) is True) for at in range(count)]


def _hugging_face(config: Mapping[str, object], args: Mapping[str, object]) -> dict[str, object]:
    out: dict[str, object] = {}
    for path, name in _HUGGING_FACE.items():
        value: object = config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and name not in args:
            out.setdefault(name, value)
    return out


def _is_gated(dims: Sequence[Term]) -> bool:
    return any(isinstance(term, Sum) for term in dims)


def _is_untied(arrangement: Arrangement) -> bool:
    out, embedding = (arrangement.bound.get(name) for name in (OUTPUT, EMBEDDING))
    if out is None or embedding is None:
        return False
    return set(out.atoms.values()) != set(embedding.atoms.values())
