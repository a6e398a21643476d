"""What both forms of Megatron's checkpoints are written of, and what they have in common.

Source: Megatron-LM, megatron/training/checkpointing.py `generate_state_dict`;
`check_checkpoint_args`, `load_args_from_checkpoint`, megatron/training/arguments.py;
megatron/core/optimizer_param_scheduler.py `load_state_dict` (core 0.16.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from math import prod

from reshard.dtypes import DType
from reshard.errors import Diagnostic
from reshard.formats.megatron.buffers import default_size
from reshard.formats.megatron.groups import GroupBuilder
from reshard.formats.megatron.write_run import LEGACY, Inventory, Resume, WriteOptions
from reshard.formats.steps import TRACKER
from reshard.models.megatron_arguments import flags_of, foreign_arguments
from reshard.plan.arrangement import Arrangement
from reshard.plan.lay_out import LaidTensor
from reshard.plan.output import FileBytes, Output
from reshard.plan.plan import ArraySpec
from reshard.plan.target import Target
from reshard.storage.inert import Record
from reshard.storage.torch_output import TorchOutput
from reshard.storage.torch_writer import NewTensor


class Job:
    """The tensors, the run, and the options of a target.

    Args:  names: of the options that the target has.

    Attributes:  has_optimizer: its states are written.  has_rng: states of random numbers are.
                 has_remainders: masters are written as their lower halves.
    Raises: ReshardError[unknown-option | bad-option | numbers-disagree].
    """

    def __init__(self, arrangement: Arrangement, target: Target, names: tuple[str, ...]) -> None:
        self.arrangement = arrangement
        self.output = TorchOutput()
        self.inventory = Inventory(arrangement)
        self.resume = Resume(arrangement.catalog, self.output.constant)
        self.options = WriteOptions(target, names, self.inventory, self.resume)
        self.is_legacy = names is LEGACY
        self.has_optimizer = self.inventory.is_trained and bool(self.resume.groups)
        if not self.has_optimizer:
            self.inventory.lose_states()
        precise = self.inventory.keeps_remainders(self.resume.args)
        self.has_remainders = self.has_optimizer and self.options.distributed and precise
        self.builder = GroupBuilder(self.resume.groups, self.options.ep > 1)
        self.has_rng = False

    def tree(
        self, args: object, model: Mapping[str, object], optimizer: object, rng: object = None
    ) -> dict[str, object]:
        """What a file of a rank holds, or that of all of them.

        Args:  model: the entries of its weights.  optimizer, rng: None where there is none.
        """
        out: dict[str, object] = {
            "args": args,
            "checkpoint_version": 3.0,
            "iteration": self.options.iteration or 0,
            **model,
        }
        if optimizer is not None:
            out["optimizer"] = optimizer
        if optimizer is not None or self.resume.scheduler is not None:
            out["opt_param_scheduler"] = self._scheduler()
        if rng is not None:
            out["rng_state"] = rng
        out.update(self.resume.other)
        out.setdefault("num_floating_point_operations_so_far", 0)
        return out

    @cached_property
    def arguments(self) -> Mapping[str, object]:
        """The arguments of the source's run, or what its model tells of them."""
        if self.resume.is_megatron:
            return self.resume.args
        return foreign_arguments(self.arrangement, self.inventory.main_dtype())

    @property
    def trained(self) -> list[str]:
        """The names of what the optimizer has."""
        return self.inventory.trained

    def tensor(self, tensor: LaidTensor, state: str, dtype: DType, rank: str) -> NewTensor:
        """A tensor of a rank."""
        label, numel = f"{tensor.name} ({state}) of {rank}", prod(tensor.shape)
        spec = ArraySpec(label, state, dtype, numel, tensor.segments, tensor.shape)
        return self.output.tensor(spec)

    def _scheduler(self) -> object:
        """The source's schedule; without one, a constant rate that
        `--override-opt-param-scheduler` replaces by that of the run.
        """
        if self.resume.scheduler is not None:
            return self.resume.scheduler
        samples = self.options.samples or 0
        rate, decay = (
            max((_number(group.get(key)) for group in self.resume.groups), default=0.0)
            for key in ("lr", "weight_decay")
        )
        return {
            "max_lr": rate,
            "lr_warmup_steps": 0,
            "num_steps": samples,
            "lr_decay_style": "constant",
            "lr_decay_steps": max(samples, 1),
            "min_lr": 0.0,
            "start_wd": decay,
            "end_wd": decay,
            "wd_incr_style": "constant",
            "wd_incr_steps": max(samples, 1),
        }

    def planned(self, *last: FileBytes) -> Output:
        """The output, once every file is planned.

        Args:  last: files that are written behind all others, before the tracker.
        """
        text = "release" if self.options.iteration is None else str(self.options.iteration)
        files = [*last, FileBytes(TRACKER, 0, text.encode())]
        warnings = (*self.builder.warnings, *self._warnings())
        folder = f"{self.options.folder}/"
        return self.inventory.output(self.output, files, warnings, beside=folder)

    def _warnings(self) -> Iterator[Diagnostic]:
        """What Megatron will not restore of what is written, and with which arguments it resumes.

        Files of ranks do not say what they lack, so Megatron must be told.
        """
        resume, options = self.resume, self.options
        flags = [] if resume.is_megatron else flags_of(self.arguments)
        if flags:
            yield _warning(
                "`--use-checkpoint-args` does not load every argument of the model",
                ["Megatron takes its own defaults for what the command line does not say"],
                [f"give the run {' '.join(f'`{flag}`' for flag in flags)}, too"],
            )
        if options.iteration is not None:  # else a release: it asks for nothing but weights
            if not self.has_optimizer:
                yield _warning(
                    "the optimizer starts anew",
                    ["no states of an optimizer with their param groups are written"],
                    ["resume with `--no-load-optim`, or with `--finetune`"] * self.is_legacy,
                )
            elif resume.scheduler is None:
                unknown = options.samples is None
                yield _warning(
                    "the source has no learning rate schedule of Megatron's",
                    [
                        f"a constant one at {options.samples or 0} samples is written",
                        *["the number of samples is not known"] * unknown,
                    ],
                    [
                        "resume with `--override-opt-param-scheduler`",
                        *["give the samples consumed with `samples=N`"] * unknown,
                    ],
                )
            if not self.has_rng:
                yield _warning(
                    "random number generators start anew",
                    ["the source has none" + (" for these ranks" if resume.rng else "")],
                    ["resume with `--no-load-rng`"] * self.is_legacy,
                )
        precise = resume.args.get("use_precision_aware_optimizer")
        if precise and self.has_optimizer and not self.has_remainders:
            yield _warning(
                "master weights are written whole, in fp32",
                [
                    "the run had `--use-precision-aware-optimizer`, which keeps the lower half of "
                    "each",
                    "it would take the whole ones for these",
                ],
                ["resume without `--use-precision-aware-optimizer`"],
            )


def _warning(headline: str, notes: Sequence[str], helps: Sequence[str]) -> Diagnostic:
    return Diagnostic(
        "megatron-resume", headline, "warning", notes=tuple(notes), helps=tuple(helps)
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def namespace(
    job: Job, stages: Sequence[int] = (), padded_vocabulary: int | None = None, rank: int = 0
) -> Record:
    """The arguments as an object.

    Args:  stages: layers of every virtual stage, chunk major; () where they are even.
           padded_vocabulary: rows of the embedding; None where it is not padded for the run.
           rank: the one that writes them, of all.
    """
    options = job.options
    args = dict(job.arguments)
    settings: dict[str, object] = {
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
        settings["use_precision_aware_optimizer"] = False  # its masters are not whole
    settings.update({key: value for key, value in if_there.items() if key in args})
    settings.update({key: value for key, value in if_needed.items() if key in args or value})
    if_known = {
        "padded_vocab_size": padded_vocabulary,
        "iteration": options.iteration,
        "consumed_train_samples": options.samples,
    }
    settings.update({key: value for key, value in if_known.items() if value is not None})
    if options.bucket_size is not None:
        bucket_size = args.setdefault("ddp_bucket_size", None)
        if bucket_size is not None or options.bucket_size != default_size(options.dp):
            settings["ddp_bucket_size"] = options.bucket_size
        settings["overlap_grad_reduce"] = True
    return Record("argparse", "Namespace", (), "newobj", [{**args, **settings}])


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
