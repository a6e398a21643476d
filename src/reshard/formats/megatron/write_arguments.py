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
from reshard.formats.megatron.write_options import WriteOptions
from reshard.formats.megatron.write_resume import Resume
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


def known_arguments(arrangement: Arrangement, resume: Resume, dtype: DType) -> Mapping[str, object]:
    """The arguments of the source's run, or what its names, shapes, and configuration tell of them.

    Args:  dtype: of the weights.
    """
    return resume.args if resume.is_megatron else _described(arrangement, dtype)


def namespace(
    known: Mapping[str, object],
    options: WriteOptions,
    *,
    form: str,
    stages: Sequence[int],
    padded_vocabulary: int | None,
    has_optimizer: bool,
    has_rng: bool,
    has_remainders: bool,
    rank: int = 0,
) -> Record:
    """The arguments as an object.

    Args:  known: as `known_arguments` made them.
           form: `torch` or `torch_dist`.  rank: the one that writes them, of all.
           stages: layers of every virtual stage, chunk major; () where they are even.
           padded_vocabulary: rows of the embedding; None where it is not padded for the run.
           has_remainders: masters are written as their lower halves.
    """
    args = dict(known)
    said: dict[str, object] = {
        "tensor_model_parallel_size": options.tp,
        "pipeline_model_parallel_size": options.pp,
        "virtual_pipeline_model_parallel_size": options.vpp if options.vpp > 1 else None,
        "expert_model_parallel_size": options.ep,
        "expert_tensor_parallel_size": options.etp,
        "data_parallel_size": options.dp,
        "world_size": options.tp * options.pp * options.dp,
        "use_distributed_optimizer": options.distributed,
        "ckpt_format": form,
    }
    if_there: dict[str, object] = {
        "use_dist_ckpt": form == "torch_dist",
        "transformer_pipeline_model_parallel_size": options.pp,
        "context_parallel_size": 1,
        "account_for_embedding_in_pipeline_split": False,
        "account_for_loss_in_pipeline_split": False,
        "rank": rank,
        "local_rank": rank,
    }
    if_needed: dict[str, object] = {
        "decoder_first_pipeline_num_layers": None,
        "decoder_last_pipeline_num_layers": None,
        "pipeline_model_parallel_layout": None,
        "num_layers_per_virtual_pipeline_stage": None,
        "num_virtual_stages_per_pipeline_rank": None,
        **pipeline_arguments(stages, options),
        "no_save_optim": not has_optimizer,
        "no_save_rng": not has_rng,
    }
    if args.get("use_precision_aware_optimizer") is True and not has_remainders:
        said["use_precision_aware_optimizer"] = False  # its masters are not whole
    said.update({key: value for key, value in if_there.items() if key in args})
    said.update({key: value for key, value in if_needed.items() if key in args or value})
    if padded_vocabulary is not None:
        said["padded_vocab_size"] = padded_vocabulary
    if options.iteration is not None:
        said["iteration"] = options.iteration
    if options.samples is not None:
        said["consumed_train_samples"] = options.samples
    if options.bucket_size is not None:
        args.setdefault("ddp_bucket_size", None)
        if not _is_default(options, args["ddp_bucket_size"]):
            said["ddp_bucket_size"] = options.bucket_size
        said["overlap_grad_reduce"] = True
    args.update(said)
    return Record("argparse", "Namespace", (), "newobj", [args])


def _is_default(options: WriteOptions, stated: object) -> bool:
    return stated is None and options.bucket_size == default_size(options.dp)


def pipeline_arguments(stages: Sequence[int], options: WriteOptions) -> dict[str, object]:
    """What says how many layers each stage has; nothing for even stages without virtual ones.

    Args:  stages: layers of every virtual stage, chunk major, then stage.
    """
    if len(set(stages)) <= 1:
        if options.vpp == 1 or not stages:
            return {}
        return {
            "num_layers_per_virtual_pipeline_stage": stages[0],
            "num_virtual_stages_per_pipeline_rank": options.vpp,
        }
    first, *middle, last = stages
    if options.vpp == 1 and len(set(middle)) <= 1:
        out: dict[str, object] = {}
        between = middle[0] if middle else None
        if first != between:
            out["decoder_first_pipeline_num_layers"] = first
        if middle and last != between:
            out["decoder_last_pipeline_num_layers"] = last
        return out
    parts = ["t" * count for count in stages]
    parts[0], parts[-1] = "E" + parts[0], parts[-1] + "L"
    return {"pipeline_model_parallel_layout": "|".join(parts)}


def _described(arrangement: Arrangement, dtype: DType) -> dict[str, object]:
    """Arguments for a model that is of another framework: what its names, its shapes, and its
    configuration tell.
    """
    bound = arrangement.bound
    known = framework_config(arrangement.layout, arrangement.values).get("args")
    args: dict[str, object] = dict(known) if isinstance(known, dict) else {}
    stated = known_facts(arrangement.catalog)
    args.update(_hugging_face(stated, args))
    is_latent = "kv_lora_rank" in args
    is_gated = any(_is_gated(b.dims) for n, b in bound.items() if ".linear_fc1.weight" in n)
    is_biased = any(name.endswith(".linear_fc1.bias") for name in bound)
    told = arguments_for(stated, is_latent=is_latent, is_gated=is_gated, is_biased=is_biased)
    args.update(told.words)
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
