"""What `--to megatron:tp=2,pp=2` and `--to megatron-dist` say."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from reshard.errors import target_error
from reshard.formats.megatron.buffers import default_size
from reshard.formats.megatron.write_inventory import Inventory
from reshard.formats.megatron.write_resume import Resume
from reshard.plan.target import Target
from reshard.run.states import MASTER

LEGACY = (
    "tp",
    "pp",
    "vpp",
    "ep",
    "etp",
    "dp",
    "distributed_optimizer",
    "bucket_size",
    "adam",
    "iteration",
    "samples",
)
DIST = ("tp", "pp", "ep", "dp", "distributed_optimizer", "adam", "iteration", "samples")


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """A run of Megatron, as far as its files depend on it.

    Args:  tp, pp, vpp, ep, dp: sizes.  etp: ranks that share one expert.
           distributed: the run has `--use-distributed-optimizer`.
           bucket_size: elements of a gradient bucket; None where gradients are not overlapped.
           fused: Adam counts steps by param group, as those of Transformer Engine and Apex do.
           iteration: None for a checkpoint that is only weights, `release`.
           samples: that were consumed; None if it is not known.
    """

    tp: int
    pp: int
    vpp: int
    ep: int
    etp: int
    dp: int
    distributed: bool
    bucket_size: int | None
    fused: bool
    iteration: int | None
    samples: int | None

    @property
    def folder(self) -> str:
        """The name of the folder of the iteration."""
        return "release" if self.iteration is None else f"iter_{self.iteration:07d}"

    @property
    def tracker(self) -> bytes:
        """What the tracker file says."""
        return b"release" if self.iteration is None else str(self.iteration).encode()

    def expert_ranks(self) -> list[tuple[int, int]]:
        """Every (tp, ep) that some rank of a pipeline stage has.

        Source: megatron/core/parallel_state.py, the rank generators (core 0.16.1).
        """
        pairs = {
            (rank % self.tp, rank // self.etp % self.ep)
            for rank in range(self.tp * self.ep * self.etp)
        }
        return sorted(pairs)

    def rank(self, tp: int, pp: int, ep: int) -> int:
        """The first of all ranks that has a place on the mesh: the one that writes its files."""
        inner = (r for r in range(tp, self.tp * self.dp, self.tp) if r // self.etp % self.ep == ep)
        return next(inner, tp) + self.tp * self.dp * pp

    def first_expert_rank(self, tp_rank: int) -> int:
        """The expert-parallel rank of the first data-parallel rank."""
        return tp_rank // self.etp % self.ep


def write_options(
    target: Target, known: tuple[str, ...], inventory: Inventory, resume: Resume
) -> WriteOptions:
    """The options of a target.

    Args:  known: LEGACY; or DIST, whose files are of no ranks: there the source's sizes are kept.
    Raises: ReshardError[unknown-option | bad-option].
    """
    target.reject_unknown(known)
    had = resume.sizes if known is DIST else {}
    sizes = {
        axis: target.integer(axis, had.get(axis, 1)) or 1 for axis in ("tp", "pp", "vpp", "ep")
    }
    etp = target.integer("etp", sizes["tp"]) or 1
    if sizes["tp"] % etp:
        raise target_error(
            "bad-option",
            f"option `etp` of target `{target.format}` is {etp}, which does not divide "
            f"tp={sizes['tp']}",
            notes=["ranks with other parts of an expert would write the same file"],
            helps=["write `megatron-dist`, which has no files of ranks"],
        )
    if sizes["vpp"] > 1 and sizes["pp"] == 1:
        raise target_error(
            "bad-option",
            f"option `vpp` of target `{target.format}` is {sizes['vpp']} with one pipeline stage",
            notes=["virtual stages are of a pipeline"],
            helps=["choose a `pp` of at least 2, or leave `vpp` out"],
        )
    iteration = target.integer("iteration", resume.iteration, least=0)
    if iteration is None and inventory.is_trained:
        step = inventory.step(inventory.steps)
        iteration = None if step is None else int(step)
        if iteration is None:
            raise target_error(
                "bad-option",
                f"target `{target.format}` needs an option `iteration`",
                notes=["the source has states of an optimizer, but says of no step"],
                helps=[f"write it as `{target.format}:iteration=1000`"],
            )
    dp = _dp(target, sizes["tp"], etp * sizes["ep"], had.get("dp"))
    return WriteOptions(
        sizes["tp"],
        sizes["pp"],
        sizes["vpp"],
        sizes["ep"],
        etp,
        dp,
        _distributed(target, inventory, resume),
        target.integer("bucket_size", _bucket_size(resume, dp)),
        _fused(target, resume),
        iteration,
        target.integer("samples", resume.samples, least=0),
    )


def _dp(target: Target, tp: int, experts: int, had: int | None) -> int:
    """Data-parallel ranks: experts are spread over them and over the tensor-parallel ones."""
    least = experts // gcd(tp, experts)
    dp = target.integer("dp", had if had and tp * had % experts == 0 else least) or 1
    if tp * dp % experts:
        raise target_error(
            "bad-option",
            f"{tp * dp} ranks of a pipeline stage cannot be {experts} expert ranks",
            notes=[f"tp={tp}, dp={dp}; ep * etp = {experts} must divide their product"],
            helps=[f"choose a `dp` that is a multiple of {least}"],
        )
    return dp


def _bucket_size(resume: Resume, dp: int) -> int | None:
    """As the source's run would have it on as many ranks."""
    if resume.args.get("overlap_grad_reduce") is not True:
        return None
    size = resume.args.get("ddp_bucket_size")
    return size if isinstance(size, int) and size else default_size(dp)


def _distributed(target: Target, inventory: Inventory, resume: Resume) -> bool:
    """As the source has it; a run of another framework that has master weights shares them."""
    text = _choice(target, "distributed_optimizer", ("0", "1"))
    if text is not None:
        return text == "1"
    if isinstance(resume.args.get("use_distributed_optimizer"), bool):
        return resume.args["use_distributed_optimizer"] is True
    return any(MASTER in kinds for kinds in inventory.states.values())


def _fused(target: Target, resume: Resume) -> bool:
    text = _choice(target, "adam", ("torch", "fused"))
    return resume.is_fused if text is None else text == "fused"


def _choice(target: Target, key: str, choices: tuple[str, ...]) -> str | None:
    text = target.options.get(key)
    if text is not None and text not in choices:
        raise target_error(
            "bad-option",
            f"option `{key}` of target `{target.format}` is `{text}`, "
            f"not {' or '.join(f'`{item}`' for item in choices)}",
            helps=[f"write it as `{target.format}:{key}={choices[-1]}`"],
        )
    return text
