"""Writes the folder that `engine.load_checkpoint` loads, for a run of any size and ZeRO stage.

Source: DeepSpeed 0.19.8 runtime/engine.py `_save_checkpoint` and `_save_zero_checkpoint`;
docs/formats/deepspeed-writing.md says what each file holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.formats.deepspeed.autoep_layers import LAYERS
from reshard.formats.deepspeed.inventory import Inventory, take_inventory
from reshard.formats.deepspeed.local_names import refuse_several_sizes
from reshard.formats.deepspeed.native_checks import check_native, native_warnings
from reshard.formats.deepspeed.native_experts import Experts
from reshard.formats.deepspeed.native_model import ModelFiles
from reshard.formats.deepspeed.native_optimizer import OptimizerFiles, written_groups
from reshard.formats.deepspeed.native_options import NativeOptions, native_options
from reshard.formats.deepspeed.native_pipeline import layer_files
from reshard.formats.deepspeed.resume import Resume, resume_of
from reshard.plan.arrangement import Arrangement
from reshard.plan.lay_out import LaidTensor, lay_out
from reshard.plan.output import FileBytes, Output, Written
from reshard.plan.target import Target
from reshard.storage.torch_output import TorchOutput

LATEST = "latest"

TOLD = {*LAYERS, "universal_checkpoint_info"}
"""What AutoEP's ranks say for themselves, which is written anew for every rank."""


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """The folder as arrays with their places.

    Args:  target: see `native_options.OPTIONS`.
    Raises: ReshardError[unknown-option | bad-option | uneven-target | target-stages |
            deepspeed-experts | deepspeed-layer | deepspeed-missing-state | deepspeed-mixed-group |
            numbers-disagree], and those of `check_native`.
    """
    output = TorchOutput()
    inventory = take_inventory(arrangement)
    resume = resume_of(arrangement, inventory.extra_tensors(output))
    refuse_several_sizes(arrangement)
    options = native_options(arrangement, target, inventory, resume)
    check_native(inventory, resume, options)
    run = _Run(arrangement, inventory, resume, options, output)
    run.write()
    latest = FileBytes(LATEST, 0, options.tag.encode())

    def finish(written: Sequence[Written]) -> tuple[FileBytes, ...]:
        return (*output.finish(written), latest)

    return Output(
        tuple(output.placed),
        output.files,
        tuple(output.head),
        finish,
        native_warnings(inventory, resume, options, run.unused_ranks()),
        inventory.dropped(output),
        inventory.folded_tensors(),
        beside="",
    )


class _Run:
    """The files of all ranks."""

    def __init__(
        self,
        arrangement: Arrangement,
        inventory: Inventory,
        resume: Resume,
        options: NativeOptions,
        output: TorchOutput,
    ) -> None:
        self._arrangement = arrangement
        self._inventory = inventory
        self._resume = resume
        self._options = options
        self._output = output
        self._experts = Experts(arrangement, inventory, resume, options)
        self._models = ModelFiles(arrangement, inventory, resume, options, output)
        self._optimizers = OptimizerFiles(inventory, resume, options, output)
        self._laid = lay_out(arrangement, options.mesh)
        self._used: set[str] = set()

    def write(self) -> None:
        """Plan every file."""
        options = self._options
        for tp in range(options.tp):
            stages = []
            for pp in range(options.pp):
                held = [self._held({"pp": pp, "tp": tp, "ep": ep}) for ep in range(options.ep)]
                self._mp_rank(pp * options.tp + tp, held)
                stages.append(held[0])
            for name, content in layer_files(self._resume, options, self._models, stages, tp):
                self._add(name, content)

    def unused_ranks(self) -> tuple[str, ...]:
        """Files of the source whose own entries are in no file of the target."""
        return tuple(
            file
            for file, own in self._resume.ranks.items()
            if file not in self._used and not (self._experts.any_described and own.keys() <= TOLD)
        )

    def _mp_rank(self, mp_rank: int, held: Sequence[Mapping[str, LaidTensor]]) -> None:
        options = self._options
        groups = [
            written_groups(own, self._inventory, self._resume, options, ep)
            for ep, own in enumerate(held)
        ]
        mp = f"mp_rank_{mp_rank:02d}"
        for dp in range(options.dp):
            ep = options.ep_rank(dp)
            if options.zero == 3 or dp == 0:
                name = f"zero_pp_rank_{dp}_{mp}" if options.zero == 3 else mp
                name = f"{name}_model_states.pt"
                dense = {n: t for n, t in held[ep].items() if not self._experts.owns(n)}
                own = {**self._own(name), **self._experts.described(dp)}
                self._add(name, self._models.root(dense, groups[ep], dp, own))
            name = f"{options.prefix}zero_pp_rank_{dp}_{mp}_optim_states.pt"
            own = {**self._own(name), **self._experts.partition_groups(groups[ep], dp)}
            kept = self._resume.kept_in(name)
            self._add(name, self._optimizers.root(groups[ep], dp, own, kept))
        for start, content in self._experts.files(held, self._output):
            self._add(f"{start}_{mp}_model_states.pt", content)

    def _own(self, name: str) -> dict[str, object]:
        """What the source's file of the same rank says for itself, if there is that rank."""
        mesh, options = self._resume.mesh, self._options
        same = (mesh.get("pp", 1), mesh.get("tp", 1)) == (options.pp, options.tp)
        if "zero_pp_rank" in name:
            same = same and mesh.get("dp", 1) == options.dp
        own = self._resume.own(name) if same else {}
        if own:
            self._used.add(name)
        return own

    def _add(self, name: str, root: object) -> None:
        self._output.add(f"{self._options.tag}/{name}", root)

    def _held(self, coord: Mapping[str, int]) -> dict[str, LaidTensor]:
        """The tensors of one coordinate, by the name of the whole one."""
        return {
            tensor.whole: tensor
            for tensor in self._laid
            if all(coord.get(axis, 0) == index for axis, index in tensor.coord)
        }
