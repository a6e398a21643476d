"""Writes a step that torchtitan resumes from.

Source: torchtitan components/checkpointer/dcp.py, trainer.py `state_dict`, components/optimizer/
utils.py `get_flat_optim_state_dict`, components/optimizer/lr_scheduler.py (b5bcd76 and later).
"""

from __future__ import annotations

from collections.abc import Mapping

from reshard.errors import Diagnostic
from reshard.formats.dcp.contents import Contents, contents_of
from reshard.formats.dcp.form import Form, joined
from reshard.formats.dcp.rank_files import RankFiles, grid_of
from reshard.formats.dcp.write import output_of
from reshard.plan.arrangement import Arrangement
from reshard.plan.output import Output
from reshard.plan.target import Target

OPTIONS = ("dp", "tp", "step", "fused")
_FUSED, _PARTS = ".qkv_linear.wqkv.", tuple(f".qkv_linear.{w}." for w in ("wq", "wk", "wv"))
_FORM = Form((), ("optimizer",), flattened=True)


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """The folder `step-N`, N being the steps done, or the option `step`.

    Args:  target: options `dp` and `tp`, ranks; `step`, the number of the folder; `fused`, 1 for a
           model whose `fuse_qkv` is set.
    Raises: ReshardError[unknown-option | bad-option | dcp-tensor-parallel].
    """
    target.reject_unknown(OPTIONS)
    grid = grid_of(arrangement, target)
    contents = contents_of(arrangement, group_keys={"initial_lr": "lr"})
    _keep_fused_states(contents)
    step = target.integer("step", contents.iteration or 0, least=0) or 0
    files = RankFiles(arrangement, grid, f"step-{step}/")
    files.add_weights(contents, _FORM)
    files.add_optimizer(contents, _FORM)
    files.add_rest(contents)
    assumed = _add_counters(files, contents, step)
    has_loader = any(path[0] == "dataloader" for path, _ in contents.objects)
    contents.warned += _warnings(assumed, has_loader=has_loader)
    return output_of(contents, [files], beside=f"step-{step}/")


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
            contents.fold(name, state, "its parts, which the model has apart")
        for part in parts:
            for state in contents.states.pop(part, {}):
                contents.fold(part, state, f"part of `{name}`")
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


def _warnings(assumed: Mapping[str, int], *, has_loader: bool) -> list[Diagnostic]:
    out = []
    if assumed:
        listed = ", ".join(f"`{key}` as {value}" for key, value in assumed.items())
        out.append(
            Diagnostic(
                "titan-counters",
                "the source does not record all counters that torchtitan resumes with",
                "warning",
                notes=(f"written: {listed}",),
                helps=("state the step with `torchtitan:step=N` where it is not known",),
            )
        )
    if not has_loader:
        out.append(
            Diagnostic(
                "titan-dataloader",
                "there is no state of torchtitan's data loader, which it asks for",
                "warning",
                helps=('resume with `--checkpoint.exclude_from_loading=["dataloader"]`',),
            )
        )
    return out
