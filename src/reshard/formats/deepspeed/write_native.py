"""Writes the folder that `engine.load_checkpoint` loads, for a run of any size and ZeRO stage.

Source: DeepSpeed 0.19.8 runtime/engine.py `_save_checkpoint` and `_save_zero_checkpoint`;
docs/formats/deepspeed-writing.md says what each file holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.dtypes import DType
from reshard.formats.deepspeed.inventory import Inventory, take_inventory
from reshard.formats.deepspeed.native_groups import flat_groups
from reshard.formats.deepspeed.native_model import ModelFiles
from reshard.formats.deepspeed.native_optimizer import OptimizerFiles
from reshard.formats.deepspeed.native_options import NativeOptions, native_options
from reshard.formats.deepspeed.resume import Resume, resume_of
from reshard.formats.deepspeed.torch_output import TorchOutput
from reshard.plan.arrangement import Arrangement
from reshard.plan.lay_out import LaidTensor, lay_out
from reshard.plan.output import FileBytes, Output, Written
from reshard.plan.target import Target

LATEST = "latest"


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """The folder as arrays with their places.

    Args:  target: see `native_options.OPTIONS`.
    Raises: ReshardError[unknown-option | bad-option | uneven-target | target-stages |
            deepspeed-steps | deepspeed-missing-state | deepspeed-mixed-group | numbers-disagree].
    """
    output = TorchOutput()
    inventory = take_inventory(arrangement)
    resume = resume_of(arrangement, inventory.extra_tensors(output))
    inventory.check_steps(resume.groups)
    options = native_options(arrangement, target, inventory, resume)
    _Run(arrangement, inventory, resume, options, output).write()
    latest = FileBytes(LATEST, 0, options.tag.encode())

    def finish(written: Sequence[Written]) -> tuple[FileBytes, ...]:
        return (*output.finish(written), latest)

    return Output(
        tuple(output.placed),
        output.files,
        tuple(output.head),
        finish,
        resume.warning(),
        inventory.dropped(),
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
        self._inventory = inventory
        self._resume = resume
        self._options = options
        self._output = output
        self._models = ModelFiles(arrangement, inventory, resume, options, output)
        self._optimizers = OptimizerFiles(inventory, resume, options, output)
        self._laid = lay_out(arrangement, options.mesh)

    def write(self) -> None:
        """Plan every file."""
        options = self._options
        for pp in range(options.pp):
            for tp in range(options.tp):
                self._mp_rank(pp * options.tp + tp, {"pp": pp, "tp": tp})

    def _mp_rank(self, mp_rank: int, coord: Mapping[str, int]) -> None:
        options = self._options
        by_ep = [self._held({**coord, "ep": ep}) for ep in range(options.ep)]
        groups = [
            flat_groups(self._resume.groups, held, self._inventory, options, ep)
            for ep, held in enumerate(by_ep)
        ]
        mp = f"mp_rank_{mp_rank:02d}"
        prefix = "bf16_" if options.dtype is DType.BF16 else ""
        for dp in range(options.dp):
            ep = dp % options.ep
            if options.zero == 3 or dp == 0:
                name = f"zero_pp_rank_{dp}_{mp}" if options.zero == 3 else mp
                root = self._models.root(by_ep[ep], groups[ep], dp)
                self._add(f"{name}_model_states.pt", root)
            root = self._optimizers.root(groups[ep], dp)
            self._add(f"{prefix}zero_pp_rank_{dp}_{mp}_optim_states.pt", root)

    def _add(self, name: str, root: object) -> None:
        self._output.add(f"{self._options.tag}/{name}", root)

    def _held(self, coord: Mapping[str, int]) -> dict[str, LaidTensor]:
        """The tensors of one coordinate, by the name of the whole one."""
        return {
            tensor.whole: tensor
            for tensor in self._laid
            if all(coord.get(axis, 0) == index for axis, index in tensor.coord)
        }
