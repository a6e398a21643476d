"""Writes what `torch.distributed.checkpoint.load` reads, for any number of ranks.

`dcp` is a plain state dict; `torchtitan`, `olmo-core`, and `accelerate` are steps that these resume
from.
Source: torchtitan components/checkpointer/dcp.py, trainer.py `state_dict`, components/optimizer/
utils.py `get_flat_optim_state_dict`, components/optimizer/lr_scheduler.py (b5bcd76 and later);
OLMo-core train/checkpoint.py `Checkpointer`, distributed/checkpoint/__init__.py (fa6c501);
accelerate/utils/fsdp_utils.py `load_fsdp_model`, `load_fsdp_optimizer` (1.15).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reshard.errors import Diagnostic, warning
from reshard.formats.dcp.contents import Contents, contents_of
from reshard.formats.dcp.form import Form, form_of, joined
from reshard.formats.dcp.rank_files import RankFiles, grid_of
from reshard.formats.run_files import HF_CONFIG
from reshard.models.config_json import CONFIG, model_config_of
from reshard.plan.arrangement import Arrangement
from reshard.plan.catalog import Catalog
from reshard.plan.output import FileBytes, Output, Written
from reshard.plan.target import Target
from reshard.store.side_files import read_side_files


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """The folder as arrays with their places.

    Args:  target: options `dp` (ranks of FSDP) and `tp` (tensor-parallel ranks); of `dcp` and
           `olmo-core` also `flatten` (1 for the optimizer as `flatten_optimizer_state_dict` makes
           it, 0 for nested); of `torchtitan` also `step`, the number of the folder, and `fused`, 1
           for a model whose `fuse_qkv` is set.
    Raises: ReshardError[unknown-option | bad-option | dcp-tensor-parallel].
    """
    options, make = _TARGETS[target.format]
    target.reject_unknown(("dp", "tp", *options))
    return make(arrangement, target)


def _dcp(arrangement: Arrangement, target: Target) -> Output:
    form = form_of(arrangement.catalog.training) or Form()
    flatten = target.integer("flatten", least=0)
    if flatten is not None:
        form = replace(form, flattened=bool(flatten), weights={}, states={})
    return _Step(arrangement, target).whole("", form)


def _accelerate(arrangement: Arrangement, target: Target) -> Output:
    """Two folders with `.metadata`: of the model, and of the optimizer where there is one."""
    step = _Step(arrangement, target)
    form = Form(("model",), ("optimizer",))
    model = step.folder("pytorch_model_fsdp_0/")
    model.add_weights(step.contents, form)
    model.add_rest(step.contents)
    if step.contents.states:
        step.folder("optimizer_0/").add_optimizer(step.contents, form)
    return step.output()


def _olmo_core(arrangement: Arrangement, target: Target) -> Output:
    """The folder `model_and_optim`, and beside it what the source has of OLMo-core."""
    step, catalog = _Step(arrangement, target), arrangement.catalog
    mark = json.dumps({"version": "2.0"}).encode()  # it takes a folder without it for incomplete
    if _OLMO_MARK in catalog.side_files:
        mark = read_side_files(catalog, [_OLMO_MARK])[_OLMO_MARK]
    if _OLMO_TRAINER not in catalog.side_files:
        step.contents.warned.append(_NO_TRAINER)
    elsewhere = _elsewhere(catalog)
    if elsewhere:
        step.contents.warned.append(_MOVED)
    form = Form(("model",), ("optim",), target.integer("flatten", 0, least=0) == 1)
    output = step.whole("model_and_optim/", form, last=[FileBytes(_OLMO_MARK, 0, mark)])
    return replace(output, elsewhere=elsewhere)


def _torchtitan(arrangement: Arrangement, target: Target) -> Output:
    """The folder `step-N`, N being the steps done, or the option `step`."""
    step = _Step(arrangement, target, {"initial_lr": "lr"})
    contents = step.contents
    _keep_fused_states(contents)
    number = target.integer("step", contents.iteration or 0, least=0) or 0
    files = step.folder(f"step-{number}/")
    form = Form((), ("optimizer",), flattened=True)
    files.add_weights(contents, form)
    files.add_optimizer(contents, form)
    files.add_rest(contents)
    assumed = _add_counters(files, contents, number)
    if assumed:
        contents.warned.append(_unknown_counters(assumed))
    if not any(path[0] == "dataloader" for path, _ in contents.objects):
        contents.warned.append(_NO_LOADER)
    return step.output(beside=f"step-{number}/")


_TARGETS = {
    "dcp": (("flatten",), _dcp),
    "accelerate": ((), _accelerate),
    "olmo-core": (("flatten",), _olmo_core),
    "torchtitan": (("step", "fused"), _torchtitan),
}
"""Further options, and what prepares them."""


class _Step:
    """One or several folders with `.metadata`.

    Args:  group_keys: see `contents_of`.
    """

    def __init__(
        self,
        arrangement: Arrangement,
        target: Target,
        group_keys: Mapping[str, str] | None = None,
    ) -> None:
        self._arrangement = arrangement
        self._grid = grid_of(arrangement, target)
        self._folders: list[RankFiles] = []
        self.contents = contents_of(arrangement, group_keys)

    def folder(self, name: str) -> RankFiles:
        """A new one, by its name with `/` behind, or empty."""
        self._folders.append(RankFiles(self._arrangement, self._grid, name))
        return self._folders[-1]

    def whole(self, name: str, form: Form, last: Sequence[FileBytes] = ()) -> Output:
        """The output of one folder with everything."""
        files = self.folder(name)
        files.add_weights(self.contents, form)
        files.add_optimizer(self.contents, form)
        files.add_rest(self.contents)
        return self.output(last)

    def output(self, last: Sequence[FileBytes] = (), beside: str = "") -> Output:
        """The output of all folders.

        Args:  last: files that are written after everything else.  beside: see `Output`.
        """
        folders = self._folders
        counts = [len(folder.writer.placed) for folder in folders]
        metadata = [folder.metadata() for folder in folders]

        def finish(written: Sequence[Written]) -> tuple[FileBytes, ...]:
            out: list[FileBytes] = []
            at = 0
            for folder, count in zip(folders, counts, strict=True):
                out += folder.writer.finish(written[at : at + count])
                at += count
            return (*out, *metadata, *last)

        contents = self.contents
        return Output(
            tuple(item for folder in folders for item in folder.writer.placed),
            {name: size for folder in folders for name, size in folder.writer.files.items()},
            tuple(item for folder in folders for item in folder.writer.head),
            finish,
            (*contents.settings.warning(), *contents.warned),
            tuple((name, state, why) for (name, state), why in contents.dropped.items()),
            tuple((name, state, how) for (name, state), how in contents.folded.items()),
            beside,
            tuple(item.file for item in last),
        )


# OLMo-core.

_OLMO_MARK = ".metadata.json"
_OLMO_TRAINER = "train/rank0.pt"
_MOVED = warning(
    "side-file-moved",
    f"the `{CONFIG}` of transformers is written as `{HF_CONFIG}`",
    f"OLMo-core reads a `{CONFIG}` of its own form in the folder of a step",
    helps=("reshard finds it there on the way back",),
)
_NO_TRAINER = warning(
    "olmo-trainer-state",
    "there is no state of OLMo-core's trainer to write",
    f"it reads the step and the data that were seen from `{_OLMO_TRAINER}`",
    helps=("give OLMo-core the folder `model_and_optim` inside of it as `load_path`",),
)


def _elsewhere(catalog: Catalog) -> dict[str, str]:
    """transformers' `config.json`, which OLMo-core would take for its own."""
    path = catalog.side_files.get(CONFIG)
    if path is None or model_config_of(Path(catalog.root) / path) is None:
        return {}
    return {CONFIG: HF_CONFIG}


# torchtitan.

_FUSED, _PARTS = ".qkv_linear.wqkv.", tuple(f".qkv_linear.{w}." for w in ("wq", "wk", "wv"))
_NO_LOADER = warning(
    "titan-dataloader",
    "there is no state of torchtitan's data loader, which it asks for",
    helps=('resume with `--checkpoint.exclude_from_loading=["dataloader"]`',),
)


def _keep_fused_states(contents: Contents) -> None:
    """Leave each of queries, keys and values where a model with `fuse_qkv` has it.

    Its state dict has the weights apart, and its optimizer knows the fused one alone.
    Source: torchtitan models/common/attention.py `FusedQKVLinear` (0.3.0).
    """
    for name in [name for name in contents.weights if _FUSED in name]:
        stem, _, last = name.partition(_FUSED)
        parts = [f"{stem}{part}{last}" for part in _PARTS]
        if not {*parts} <= contents.weights.keys():
            continue
        del contents.weights[name]
        for state in contents.kinds_of(name):
            contents.folded[name, state] = "its parts, which the model has apart"
        for part in parts:
            for state in contents.states.pop(part, {}):
                contents.folded[part, state] = f"part of `{name}`"
    contents.settings = contents.settings.of(contents.states)


def _add_counters(files: RankFiles, contents: Contents, step: int) -> Mapping[str, int]:
    """The counters that torchtitan asks for; those that the source does not tell."""
    wanted = {
        ("train_state", "step"): contents.iteration,
        ("lr_scheduler", "last_epoch"): contents.iteration,
        ("train_state", "ntokens_seen"): None,
    }
    assumed = {}
    for path, value in wanted.items():
        if not files.has(path):
            made = value if value is not None else (0 if path[1] == "ntokens_seen" else step)
            files.add_object(path, made)
            if value is None:
                assumed[joined(path)] = made
    return assumed


def _unknown_counters(assumed: Mapping[str, int]) -> Diagnostic:
    listed = ", ".join(f"`{key}` as {value}" for key, value in assumed.items())
    return warning(
        "titan-counters",
        "the source does not record all counters that torchtitan resumes with",
        f"written: {listed}",
        helps=("state the step with `torchtitan:step=N` where it is not known",),
    )
