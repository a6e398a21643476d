"""The catalog of a Megatron checkpoint of any form: its tensors, and what it knows besides them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from reshard.errors import Diagnostic, ReshardError
from reshard.formats.megatron.groups import Groups, optimizers_in
from reshard.formats.megatron.modules import is_buffer, is_vocabulary
from reshard.formats.steps import TRACKER
from reshard.language import load_layout
from reshard.models.run_arguments import Arguments
from reshard.plan.catalog import Catalog, Left, LocalTensor, SourceFile
from reshard.run.run import Run
from reshard.run.states import PARAM
from reshard.storage.kept import encode
from reshard.store.source import LocalSource

_ELSEWHERE = ("model", "optimizer", "iteration", "args", "rng_state", "opt_param_scheduler")
_STATES = ("state", "param_groups", "fp32_from_fp16_params", "fp32_from_fp16")
_CHUNK = re.compile(r"model\d+")
_ITERATION = re.compile(r"iter_(\d{7,})$")


class Contents:
    """What is read of an iteration's folder, in any form.

    Args:  form: how it is stored.  root: what its files have in common, besides tensors.
           rows: of the embedding.  names: of the weights, over all ranks.

    Attributes:  vocabulary: its true size, where rows behind it are left out.
                 withheld: what is wrong with the states.
    """

    def __init__(
        self,
        folder: Path,
        form: str,
        root: Mapping[object, object],
        args: Arguments,
        weights: Sequence[LocalTensor],
        *,
        rows: int | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.folder, self.form, self.root, self.args = folder, form, root, args
        self.weights = weights
        if names is None:
            names = [tensor.name for tensor in weights if tensor.state == PARAM]
        self.names = list(dict.fromkeys(names))
        embeddings = (t.shape[0] for t in weights if t.name.endswith("word_embeddings.weight"))
        self.rows = next(embeddings, None) if rows is None else rows
        true = args.true_vocabulary(self.rows)
        self.vocabulary = true if true != self.rows else None
        self.states: list[LocalTensor] = []
        self.groups = Groups()
        self.withheld: tuple[Diagnostic, ...] = ()

    def read_optimizer(
        self,
        read: Callable[[], tuple[list[LocalTensor], Groups]],
        faults: Collection[str] | None = None,
    ) -> None:
        """Read the states and the param groups; what is wrong with these alone is remembered.

        Args:  faults: codes of errors that leave the weights as they are; None for all.
        """
        try:
            self.states, self.groups = read()
        except ReshardError as error:
            if faults is not None and not {item.code for item in error.diagnostics} <= {*faults}:
                raise
            self.withheld = error.diagnostics

    def catalog(
        self,
        layout: str,
        files: Sequence[SourceFile],
        *,
        mesh: Mapping[str, int] | None = None,
        objects: Mapping[str, object] | None = None,
        rng: Sequence[object] = (),
        version: str | None = None,
        aliases: Mapping[str, str] | None = None,
        unread: Sequence[Left] = (),
    ) -> Catalog:
        """The catalog.

        Args:  objects: of a distributed checkpoint, by key.  rng: random states, by rank.
        """
        return Catalog(
            format="megatron",
            version=str(self.root.get("checkpoint_version", "")) if version is None else version,
            root=str(self.folder.resolve()),
            mesh=mesh or {},
            tensors=(*self.weights, *self.states),
            layout=load_layout(layout, "megatron layout"),
            training=self._run(objects, rng),
            config=self.args.config(self.rows),
            aliases=aliases,
            buffers=tuple(name for name in self.names if is_buffer(name)),
            padded=tuple(name for name in self.names if is_vocabulary(name)),
            files=tuple(files),
            oddities=tuple(self._oddities()),
            withheld=self.withheld,
            left=tuple(unread),
        )

    def _run(self, objects: Mapping[str, object] | None, rng: Sequence[object]) -> Run:
        """Iteration, scheduler, random states, arguments; nothing is left behind."""
        root = self.root
        iteration, optimizer = root.get("iteration"), root.get("optimizer")
        state = {}
        if "opt_param_scheduler" in root:
            state["lr_scheduler"] = encode(root["opt_param_scheduler"])
        other = {
            str(key): encode(value)
            for key, value in root.items()
            if str(key) not in _ELSEWHERE and not _CHUNK.fullmatch(str(key))
        }
        scaler = _scaler(optimizer)
        if scaler is not None:
            state["loss_scaler"] = scaler
        framework: dict[str, object] = {
            "name": "megatron",
            "args": encode(root.get("args")),
            "other": other,
            "rng_state": [encode(item) for item in rng],
            "optimizer": encode(_settings(optimizer)),
            "form": self.form,
        }
        if objects is not None:
            framework["saved_over"] = self.args.mesh()
            framework["objects"] = {name: encode(value) for name, value in objects.items()}
        number = iteration if isinstance(iteration, int) else None
        return Run(number, self.groups.all(), state, framework)

    def _oddities(self) -> Iterator[Diagnostic]:
        """What the names of folders say otherwise than their contents, or than the tracker; and
        what is not there.
        """
        folder, args = self.folder, self.args
        yield from _of_folder(folder, self.root.get("iteration"))
        if not self.states and not self.withheld:
            yield Diagnostic(
                "no-optimizer",
                f"`{folder.name}` contains weights, but no optimizer",
                "warning",
                notes=("a release, or a run with `--no-save-optim`, stores none",),
            )
        padding = args.padding(self.vocabulary, "")
        if padding is not None:
            yield padding


def _settings(optimizer: object) -> object:
    """An optimizer without its states, its masters and its param groups."""
    if isinstance(optimizer, dict):
        return {k: _settings(v) for k, v in optimizer.items() if k not in _STATES}
    if isinstance(optimizer, list):
        return [_settings(item) for item in optimizer]
    return optimizer


def _scaler(optimizer: object) -> object:
    """The loss scaler; chained optimizers have one each, and all of these say the same."""
    scalers = [
        encode(item["grad_scaler"])
        for item in optimizers_in(optimizer)
        if isinstance(item, Mapping) and "grad_scaler" in item
    ]
    return scalers[0] if scalers and all(item == scalers[0] for item in scalers) else None


def _of_folder(folder: Path, iteration: object) -> Iterator[Diagnostic]:
    match = _ITERATION.match(folder.name)
    if match is None:
        return
    named = int(match.group(1))
    if isinstance(iteration, int) and iteration != named:
        yield Diagnostic(
            "other-iteration",
            f"`{folder.name}` contains iteration {iteration}",
            "warning",
            notes=("Megatron takes the number from the files, not from the folder's name",),
        )
    source = LocalSource(folder.parent)
    tracked = source.note(TRACKER) if source.has(TRACKER) else ""
    if tracked.isdecimal() and tracked.isascii() and int(tracked) < named:
        yield Diagnostic(
            "untracked-iteration",
            f"iteration {named} is newer than {int(tracked)}, which `{TRACKER}` names",
            "warning",
            notes=(
                "Megatron writes that file last: the save of this iteration may not have finished",
            ),
            helps=(
                f"compare with iteration {int(tracked)}, the last one whose save certainly "
                "finished",
            ),
        )
