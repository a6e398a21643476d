"""What a distributed checkpoint knows besides tensors."""

from __future__ import annotations

from collections.abc import Sequence

from reshard.errors import Diagnostic, warning
from reshard.formats.dcp.collect import Collected
from reshard.formats.dcp.folders import Folder
from reshard.formats.dcp.names import Path
from reshard.formats.dcp.side_files import SideFiles
from reshard.run.run import Group, Run
from reshard.storage.kept import encode
from reshard.storage.numbers import first_count, steps_done

_COUNTERS = ("train_state.step", "trainer.global_step", "global_step", "step")
"""Keys that count the steps of the optimizer, the surest first."""

_SCHEDULE = "lr_scheduler.last_epoch"
"""It counts the steps of the schedule: those of the optimizer, or epochs."""

_SCHEDULERS = ("lr_scheduler", "lr_schedulers", "scheduler")


def read_training(
    folder: Folder, collected: Collected, files: SideFiles
) -> tuple[Run, tuple[Diagnostic, ...]]:
    """The state of training, and a warning where its step is stated several times.

    Args:  files: what lies beside the folders of the checkpoint.
    """
    schedule = files.scheduler if files.scheduler is not None else _schedule(collected)
    form: dict[str, object] = {"kind": folder.kind, "flattened": collected.flat}
    form |= {key: names for key, names in collected.called.kept().items() if names}
    for key, path in (("model", collected.model), ("optimizer", collected.optimizer)):
        if path is not None:
            form[key] = list(path)
    framework: dict[str, object] = {
        "name": "dcp",
        "version": collected.version,
        "form": form,
        "objects": collected.objects,
        "paths": {key: list(path) for key, path in collected.paths.items()},
    }
    if collected.rank_objects:
        framework["rank_objects"] = collected.rank_objects
    if collected.unlike:
        framework["unlike"] = {key: list(owner) for key, owner in collected.unlike.items()}
    iteration, warnings = _iteration(folder, collected, files)
    state = {"lr_scheduler": schedule} if schedule else {}
    groups, paths = _param_groups(collected)
    form |= _optimizers(collected, groups, paths)
    return Run(iteration, groups, state, framework), warnings


def unlike_states(collected: Collected) -> tuple[Diagnostic, ...]:
    """A warning of states that are not cut as their parameter is."""
    if not collected.unlike:
        return ()
    states = dict.fromkeys(state for _, state in collected.unlike.values())
    listed = ", ".join(f"`{state}`" for state in states)
    word, verb = ("state", "is") if len(states) == 1 else ("states", "are")
    return (
        warning(
            "kept-as-is",
            f"optimizer {word} {listed} cannot be resharded, and {verb} kept unchanged",
            "it has neither the shape of its parameter nor one number "
            "(Adafactor keeps rows and columns)",
            f"first `{next(iter(collected.unlike))}`",
            "`universal` has it, and `dcp` under the same names; other targets leave it out",
        ),
    )


def _schedule(collected: Collected) -> dict[str, object]:
    """The state dict of the learning rate's scheduler, put together again."""
    out: dict[str, object] = {}
    for key, value in collected.objects.items():
        head, *rest = collected.paths.get(key, (key,))
        if head in _SCHEDULERS and len(rest) == 1:
            out[str(rest[0])] = value
        elif head in _SCHEDULERS and not rest and isinstance(value, dict):
            out.update(value)
    return out


def _iteration(
    folder: Folder, collected: Collected, files: SideFiles
) -> tuple[int | None, tuple[Diagnostic, ...]]:
    """The number of the step, and a warning where a checkpoint has several.

    What is stated goes before what the optimizer's states have counted, and the count of the
    schedule is the last.
    """
    counted = {key: collected.numbers.get(key, collected.objects.get(key)) for key in _COUNTERS}
    stated: dict[str, object] = {files.iteration_at: files.iteration}
    stated |= {f"`{key}`": value for key, value in counted.items()}
    schedule = collected.numbers.get(_SCHEDULE, collected.objects.get(_SCHEDULE))
    last = {} if any(map(_is_count, stated.values())) else {f"`{_SCHEDULE}`": schedule}
    stated |= {"the optimizer's states": steps_done(folder.root, collected.tensors), **last}
    return first_count([(at, n) for at, n in stated.items() if isinstance(n, int) and _is_count(n)])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _optimizers(
    collected: Collected, groups: Sequence[Group], paths: Sequence[Path]
) -> dict[str, object]:
    """Where several optimizers stand, and what each has; nothing where there is only one.

    Args:  paths: of the optimizer of each group.
    """
    grouped = {name for group in groups for name in group.members}
    alone = {name: at for name, at in collected.optimizer_of.items() if name not in grouped}
    found = dict.fromkeys((*paths, *alone.values()))
    if len(found) < 2:
        return {}
    return {
        "optimizers": [
            {
                "path": list(path),
                "groups": [index for index, at in enumerate(paths) if at == path],
                "params": [name for name, at in alone.items() if at == path],
            }
            for path in found
        ]
    }


def _param_groups(collected: Collected) -> tuple[tuple[Group, ...], tuple[Path, ...]]:
    """Groups as they were; those of parameters that have their own, grouped by their values.

    And the path of the optimizer of each.
    """
    owned: dict[str, dict[str, object]] = {}
    path_of: dict[str, Path] = {}
    for key, value in collected.groups.items():
        if isinstance(key.owner, str):
            name = collected.called.of(key.owner, "")
            owned.setdefault(name, {})[key.key] = value
            path_of.setdefault(name, key.optimizer)
    order = {name: at for at, name in enumerate(dict.fromkeys(t.name for t in collected.tensors))}
    made: list[tuple[Path, dict[str, object], list[str]]] = []
    for name in sorted(owned, key=lambda item: order.get(item, len(order))):
        settings = {str(key): encode(value) for key, value in owned[name].items()}
        path = path_of[name]
        alike = next((names for *known, names in made if known == [path, settings]), None)
        if alike is None:
            made.append((path, settings, [name]))
        else:
            alike.append(name)
    numbered = collected.groups_of_optimizers()
    for _, group in numbered:
        params = group.get("params")
        if isinstance(params, list):
            group["params"] = [collected.listed_name(item) for item in params]
            if "param_names" in group:
                group["param_names"] = group["params"]
    groups = (
        *(Group.of({str(key): encode(value) for key, value in own.items()}) for _, own in numbered),
        *(Group(settings, params) for _, settings, params in made),
    )
    return groups, (*(path for path, _ in numbered), *(path for path, *_ in made))
