"""The run that is written: which tensors the source has for it and which have no place, what it
resumes with, and what `--to megatron:tp=2,pp=2` and `--to megatron-dist` say of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import gcd, prod

from reshard.dtypes import DType
from reshard.errors import ReshardError, target_error
from reshard.formats import inventory
from reshard.formats.megatron.buffers import default_size
from reshard.formats.megatron.groups import is_fused
from reshard.models.run_arguments import Arguments
from reshard.plan.arrangement import Arrangement
from reshard.plan.build import has_remainders
from reshard.plan.catalog import Catalog
from reshard.plan.target import Target
from reshard.run.run import Group
from reshard.run.states import EXTRA, MASTER, PARAM, STEP
from reshard.storage.inert import Record
from reshard.storage.kept import Constant, Decoder
from reshard.storage.numbers import Number

HALVES = (DType.BF16, DType.F16)


class Inventory(inventory.Inventory):
    """The tensors of a source, sorted for Megatron.

    Attributes:
        resting: names of what the optimizer does not have: buffers and frozen parameters.
        steps: by name of a parameter.
        remainders: names of bf16 weights of whose masters the source stores the lower halves.
    Raises: ReshardError[numbers-disagree | unreadable-number].
    """

    def __init__(self, arrangement: Arrangement) -> None:
        super().__init__(arrangement)
        catalog, states = arrangement.catalog, self.states
        for name in self.extras:
            self.lose(name, EXTRA, "state of one rank alone, which Megatron makes anew")
        self.steps = self.numbers.get(STEP, {})
        for state, numbers in self.numbers.items():
            for name in numbers if state != STEP else ():
                self.lose(name, state, "one number per parameter, for which there is no place")
        balanced = (name for name in states if name.endswith("expert_bias"))
        resting = {*catalog.buffers, *catalog.frozen, *balanced}
        self.resting = frozenset(n for n in resting if n in states and set(states[n]) == {PARAM})
        self.remainders = frozenset(
            name
            for name, kinds in states.items()
            if PARAM in kinds
            and kinds[PARAM].dtype is DType.BF16
            and has_remainders(arrangement, [key for key, _ in kinds[PARAM].segments])
        )

    @property
    def is_trained(self) -> bool:
        """Whether there are states of an optimizer."""
        return any(map(self.optimizer_states, self.states))

    @property
    def trained(self) -> list[str]:
        """The names of what the optimizer has."""
        return [name for name in self.states if name not in self.resting]

    def dtype(self, name: str) -> DType:
        """The type that weights are written in, which is the one they are stored in.

        Raises: ReshardError[megatron-weights].
        """
        kinds = self.states[name]
        if PARAM not in kinds:
            raise no_weights(name, kinds)
        return kinds[PARAM].dtype

    def main_dtype(self) -> DType:
        """The type of most weights."""
        counts: dict[DType, int] = {}
        for name, kinds in self.states.items():
            dtype = self.dtype(name)
            counts[dtype] = counts.get(dtype, 0) + prod(next(iter(kinds.values())).shape)
        return max(counts, key=lambda dtype: counts[dtype])

    def is_half(self, name: str) -> bool:
        """Whether the optimizer keeps a master of a parameter's weights."""
        return self.dtype(name) in HALVES

    def keeps_remainders(self, args: Mapping[str, object]) -> bool:
        """Whether the optimizer of a run with these arguments, the source's, keeps its masters as
        lower halves, as the source has them.
        """
        return (
            args.get("use_precision_aware_optimizer") is True
            and bool(self.remainders)
            and self.remainders.issuperset(n for n in self.trained if self.dtype(n) is DType.BF16)
        )

    def step(self, names: Iterable[str]) -> int | float | None:
        """The one step that parameters are at; None where no step is stored.

        Raises: ReshardError[megatron-steps].
        """
        return one_step(self.steps, names)

    def fold_steps(self) -> None:
        """Say that steps are written beside the states, not as arrays."""
        for name in self.steps:
            self.fold(name, STEP, "a number of the optimizer's")

    def lose_master(self, name: str) -> None:
        """Say that the optimizer keeps no master of weights that are fp32 themselves."""
        if MASTER in self.states[name] and not self.is_half(name):
            self.lose(name, MASTER, "the weights are fp32 themselves")

    def lose_states(self) -> None:
        """Say that nothing but weights is written."""
        for name, kinds in (*self.states.items(), *((name, (STEP,)) for name in self.steps)):
            for state in kinds:
                if state != PARAM:
                    self.lose(name, state, "Megatron resumes no optimizer without its param groups")


def one_step(steps: Mapping[str, Number], names: Iterable[str]) -> int | float | None:
    """The one step that parameters are at; None where no step is stored.

    Raises: ReshardError[megatron-steps].
    """
    values: dict[int | float, str] = {}
    for name in names:
        if name in steps:
            values.setdefault(steps[name].value, name)
    if len(values) > 1:
        raise target_error(
            "megatron-steps",
            "parameters are at different steps",
            notes=[
                *(f"`{name}` is at step {value:g}" for value, name in values.items()),
                "Megatron keeps one step for all of them",
            ],
            helps=["convert to `universal`, which keeps one per parameter"],
        )
    return next(iter(values), None)


def no_weights(name: str, kinds: Iterable[str]) -> ReshardError:
    """The error for a parameter whose weights the source does not store."""
    helps = ["leave `param` among the states that `--states` lists"]
    if MASTER in kinds:
        helps = ["say in which type the model computes, e.g. `--dtype bf16`"]
    return target_error(
        "megatron-weights",
        f"there are no weights of `{name}`",
        notes=[f"the source has {', '.join(f'`{kind}`' for kind in kinds)} of it"],
        helps=helps,
    )


_MESH = ("tp", "pp", "vpp", "ep")
_RUN = ("distributed_optimizer", "adam", "iteration", "samples")
LEGACY = (*_MESH, "etp", "dp", "distributed_optimizer", "bucket_size", *_RUN[1:])
DIST = ("tp", "pp", "ep", "dp", *_RUN)

_RNG = re.compile(r"rng_state/shard_(\d+)\.(\d+)_(\d+)\.(\d+)")
_WRITTEN_ANEW = ("content_metadata", "checkpoint_version")
_CONSUMED = ("optimizer.distributed.", "chained_", "rng_state/")
_EXTRA = "._extra_state/"


class Resume:
    """What a run resumes with besides tensors, as objects that a pickle can hold.

    Args:  constant: what stands for the tensors within them.

    Attributes:
        is_megatron: whether the source is of Megatron.  args: its arguments; empty if it is not.
        mesh: (tp, pp, ep) of its run.  sizes: of these axes, and of dp.
        iteration, samples: None if unknown.  groups: () where the source has no optimizer.
        scheduler, scaler: None where the source has none.
        other: further entries of the root (`num_floating_point_operations_so_far`, ...).
        rng: by (tp, pp, ep), the state of a rank's random numbers; ep is 0 where all ep ranks have
             the same.
        objects: of a `torch_dist` checkpoint, what belongs to no rank, by key.
        extra_states: of modules, by key.
    Raises: ReshardError[bad-object].
    """

    def __init__(self, catalog: Catalog, constant: Constant[object]) -> None:
        run, decode = catalog.training, Decoder(constant)
        entries = run.of("megatron")
        self.is_megatron = bool(entries)
        self.args = _namespace(decode.value(entries.get("args")))
        arguments = Arguments(self.args, "")
        self.sizes = {axis: arguments.size(axis) for axis in ("tp", "pp", "ep", "dp")}
        self.mesh = self.sizes["tp"], self.sizes["pp"], self.sizes["ep"]
        self.iteration, self.samples = run.iteration, arguments.integer("consumed_train_samples")
        groups = ((decode.mapping(group.settings), group.params) for group in run.param_groups)
        self.groups = tuple(Group(settings, params) for settings, params in groups if settings)
        state = decode.mapping(run.state) if self.is_megatron else {}
        self.scheduler, self.scaler = state.get("lr_scheduler"), state.get("loss_scaler")
        other, objects = (decode.mapping(entries.get(key)) for key in ("other", "objects"))
        self.other = {k: v for k, v in other.items() if k not in _WRITTEN_ANEW}
        self.rng = self._rng(decode.value(entries.get("rng_state")), objects)
        self.extra_states = {k: v for k, v in objects.items() if _EXTRA in k}
        self.objects = {
            key: value
            for key, value in objects.items()
            if not key.startswith(_CONSUMED) and _EXTRA not in key
        }

    def _rng(
        self, states: object, objects: Mapping[str, object]
    ) -> dict[tuple[int, int, int], object]:
        """By rank; the files of a legacy checkpoint are listed by their names."""
        out: dict[tuple[int, int, int], object] = {}
        for key, value in objects.items():
            match = _RNG.fullmatch(key)
            if match and isinstance(value, list) and len(value) == 1:
                pp, tp, pps, tps = map(int, match.groups())
                if (tps, pps) == self.mesh[:2]:
                    out[tp, pp, 0] = value[0]
        tps, pps, eps = self.mesh
        places = [(t, p, e) for t in range(tps) for p in range(pps) for e in range(eps)]
        if isinstance(states, list) and len(states) == len(places) and None not in states:
            out.update(zip(places, states, strict=True))
        return out


def _namespace(value: object) -> dict[str, object]:
    entries = value.attributes if isinstance(value, Record) else value
    return {str(k): v for k, v in entries.items()} if isinstance(entries, Mapping) else {}


class WriteOptions:
    """A run of Megatron, as far as its files depend on it.

    Args:  names: LEGACY; or DIST, whose files are of no ranks: there the source's sizes are kept.

    Attributes:
        tp, pp, vpp, ep, dp: sizes.  etp: ranks that share one expert.
        distributed: the run has `--use-distributed-optimizer`: as the source has it; a run of
                     another framework that has master weights shares them.
        bucket_size: elements of a gradient bucket; None where gradients are not overlapped.
        fused: Adam counts steps by param group, as those of Transformer Engine and Apex do.
        iteration: None for a checkpoint that is only weights, `release`.
        samples: that were consumed; None if it is not known.
    Raises: ReshardError[unknown-option | bad-option].
    """

    def __init__(
        self, target: Target, names: tuple[str, ...], inventory: Inventory, resume: Resume
    ) -> None:
        target.reject_unknown(names)
        before = resume.sizes if names is DIST else {}
        sizes = [target.integer(axis, before.get(axis, 1)) or 1 for axis in _MESH]
        self.tp, self.pp, self.vpp, self.ep = sizes
        self.etp = target.integer("etp", self.tp) or 1
        if self.tp % self.etp:
            raise target.refusal(
                "etp",
                f"is {self.etp}, which does not divide tp={self.tp}",
                ["ranks with other parts of an expert would write the same file"],
                ["write `megatron-dist`, which has no files of ranks"],
            )
        if self.vpp > 1 and self.pp == 1:
            raise target.refusal(
                "vpp",
                f"is {self.vpp} with one pipeline stage",
                ["virtual stages are of a pipeline"],
                ["choose a `pp` of at least 2, or leave `vpp` out"],
            )
        self.iteration = target.integer("iteration", resume.iteration, least=0)
        if self.iteration is None and inventory.is_trained:
            step = inventory.step(inventory.steps)
            if step is None:
                raise target_error(
                    "bad-option",
                    f"target `{target.format}` needs an option `iteration`",
                    notes=["the source has optimizer states, but states no step"],
                    helps=[f"write it as `{target.format}:iteration=1000`"],
                )
            self.iteration = int(step)
        self.dp = self._dp(target, before.get("dp"))
        self.distributed = resume.args.get("use_distributed_optimizer") is True
        if not isinstance(resume.args.get("use_distributed_optimizer"), bool):
            self.distributed = any(MASTER in kinds for kinds in inventory.states.values())
        text = target.choice("distributed_optimizer", ("0", "1"))
        self.distributed = self.distributed if text is None else text == "1"
        self.bucket_size = target.integer("bucket_size", self._bucket_size(resume))
        text = target.choice("adam", ("torch", "fused"))
        self.fused = is_fused(resume.groups) if text is None else text == "fused"
        self.samples = target.integer("samples", resume.samples, least=0)

    def _dp(self, target: Target, before: int | None) -> int:
        """Data-parallel ranks: experts are spread over them and over the tensor-parallel ones."""
        experts = self.etp * self.ep
        least = experts // gcd(self.tp, experts)
        fits = before and self.tp * before % experts == 0
        dp = target.integer("dp", before if fits else least) or 1
        if self.tp * dp % experts:
            raise target_error(
                "bad-option",
                f"{self.tp * dp} ranks of a pipeline stage cannot be {experts} expert ranks",
                notes=[f"tp={self.tp}, dp={dp}; ep * etp = {experts} must divide their product"],
                helps=[f"choose a `dp` that is a multiple of {least}"],
            )
        return dp

    def _bucket_size(self, resume: Resume) -> int | None:
        """As the source's run would have it on as many ranks."""
        if resume.args.get("overlap_grad_reduce") is not True:
            return None
        size = resume.args.get("ddp_bucket_size")
        return size if isinstance(size, int) and size else default_size(self.dp)

    @property
    def folder(self) -> str:
        """The name of the folder of the iteration."""
        return "release" if self.iteration is None else f"iter_{self.iteration:07d}"

    def expert_ranks(self) -> list[tuple[int, int]]:
        """Every (tp, ep) that some rank of a pipeline stage has.

        Source: megatron/core/parallel_state.py, the rank generators (core 0.16.1).
        """
        ranks = range(self.tp * self.ep * self.etp)
        return sorted({(rank % self.tp, self.expert_rank(rank)) for rank in ranks})

    def expert_rank(self, rank: int) -> int:
        """The expert-parallel rank of a rank of a pipeline stage."""
        return rank // self.etp % self.ep

    def rank(self, tp: int, pp: int, ep: int) -> int:
        """The first of all ranks that has a place on the mesh: the one that writes its files."""
        ranks = range(tp, self.tp * self.dp, self.tp)
        inner = (rank for rank in ranks if self.expert_rank(rank) == ep)
        return next(inner, tp) + self.tp * self.dp * pp
