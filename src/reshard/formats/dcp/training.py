"""What a distributed checkpoint knows besides tensors."""

from __future__ import annotations

from reshard.errors import Diagnostic
from reshard.formats.dcp.collect import Collected
from reshard.formats.dcp.folders import Folder
from reshard.formats.dcp.side_files import Told
from reshard.run.run import Group, Run
from reshard.storage.kept import encode
from reshard.storage.numbers import steps_done

_COUNTERS = ("train_state.step", "trainer.global_step", "global_step", "step")
"""Keys that count the steps of the optimizer, the surest first."""

_SCHEDULE = "lr_scheduler.last_epoch"
"""It counts the steps of the schedule: those of the optimizer, or epochs."""

_SCHEDULERS = ("lr_scheduler", "lr_schedulers", "scheduler")


def read_training(
    folder: Folder, found: Collected, files: Told
) -> tuple[Run, tuple[Diagnostic, ...]]:
    """The state of training, and a warning where its step is stated several times.

    Args:  files: what lies beside the folders of the checkpoint.
    """
    state: dict[str, object] = {}
    schedule = files.scheduler if files.scheduler is not None else _schedule(found)
    if schedule:
        state["lr_scheduler"] = schedule
    framework: dict[str, object] = {
        "name": "dcp",
        "version": found.version,
        "form": _form(folder, found),
        "objects": found.objects,
        "paths": {key: list(path) for key, path in found.paths.items()},
    }
    if found.rank_objects:
        framework["rank_objects"] = found.rank_objects
    if found.unlike:
        framework["unlike"] = {key: list(owner) for key, owner in found.unlike.items()}
    iteration, warnings = _iteration(folder, found, files)
    return Run(iteration, _param_groups(found), state, framework), warnings


def unlike_states(found: Collected) -> tuple[Diagnostic, ...]:
    """A warning of states that are not cut as their parameter is."""
    if not found.unlike:
        return ()
    states = dict.fromkeys(state for _, state in found.unlike.values())
    listed = ", ".join(f"`{state}`" for state in states)
    word, verb = ("state", "is") if len(states) == 1 else ("states", "are")
    return (
        Diagnostic(
            "kept-as-is",
            f"optimizer {word} {listed} cannot be resharded, and {verb} kept unchanged",
            level="warning",
            notes=(
                "it has neither the shape of its parameter nor one number "
                "(Adafactor keeps rows and columns)",
                f"first `{next(iter(found.unlike))}`",
                "`universal` has it, and `dcp` under the same names; other targets leave it out",
            ),
        ),
    )


def _form(folder: Folder, found: Collected) -> dict[str, object]:
    """How the state dict was put together, for a way back."""
    form: dict[str, object] = {"kind": folder.kind, "flattened": found.flat}
    for key, path in (("model", found.model), ("optimizer", found.optimizer)):
        if path is not None:
            form[key] = list(path)
    return form | {key: names for key, names in found.called.kept().items() if names}


def _schedule(found: Collected) -> dict[str, object]:
    """The state dict of the learning rate's scheduler, put together again."""
    out: dict[str, object] = {}
    for key, value in found.objects.items():
        path = found.paths.get(key, (key,))
        if len(path) == 2 and path[0] in _SCHEDULERS:
            out[str(path[1])] = value
        elif len(path) == 1 and path[0] in _SCHEDULERS and isinstance(value, dict):
            out.update(value)
    return out


def _iteration(
    folder: Folder, found: Collected, files: Told
) -> tuple[int | None, tuple[Diagnostic, ...]]:
    """The number of the step, and a warning where a checkpoint has several.

    What is stated goes before what the optimizer's states have counted, and the count of the
    schedule is the last.
    """
    stated = [] if files.iteration is None else [(files.iteration, files.iteration_at)]
    stated += [(n, f"`{key}`") for key in _COUNTERS if (n := _number(found, key)) is not None]
    counted, scheduled = steps_done(folder.root, found.tensors), _number(found, _SCHEDULE)
    last = [] if stated or scheduled is None else [(scheduled, f"`{_SCHEDULE}`")]
    if counted is not None:
        stated.append((counted, "the optimizer's states"))
    stated += last
    if not stated:
        return None, ()
    first, where = stated[0]
    if all(number == first for number, _ in stated):
        return first, ()
    warning = Diagnostic(
        "steps-disagree",
        f"the checkpoint states several numbers of steps; {first:,}, by {where}, is taken",
        level="warning",
        notes=tuple(f"{number:,} by {at}" for number, at in stated[1:] if number != first),
        helps=(
            "a loss scaler skips steps of the optimizer, and a schedule may count epochs; else "
            "files of two steps may lie together",
        ),
    )
    return first, (warning,)


def _number(found: Collected, key: str) -> int | None:
    value = found.numbers.get(key, found.objects.get(key))
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _param_groups(found: Collected) -> tuple[Group, ...]:
    """Groups as they were; those of parameters that have their own, grouped by their values."""
    numbered: dict[tuple[object, int], dict[str, object]] = {}
    owned: dict[str, dict[str, object]] = {}
    for key, value in found.groups.items():
        if key.owner is None:
            for index, group in enumerate(value if isinstance(value, list) else ()):
                numbered[key.optimizer, index] = dict(group)
        elif isinstance(key.owner, int):
            numbered.setdefault((key.optimizer, key.owner), {})[key.key] = value
        else:
            owned.setdefault(found.called.of(key.owner, ""), {})[key.key] = value
    order = {name: at for at, name in enumerate(dict.fromkeys(t.name for t in found.tensors))}
    out = [numbered[key] for key in sorted(numbered, key=lambda item: (str(item[0]), item[1]))]
    made: list[tuple[dict[str, object], list[str]]] = []
    for name in sorted(owned, key=lambda item: order.get(item, len(order))):
        settings = {str(key): _json(value) for key, value in owned[name].items()}
        for known, names in made:
            if known == settings:
                names.append(name)
                break
        else:
            made.append((settings, [name]))
    for group in out:
        params = group.get("params")
        if isinstance(params, list):
            group["params"] = [found.listed_name(item) for item in params]
            if "param_names" in group:
                group["param_names"] = group["params"]
    return (
        *(Group.of({str(key): _json(value) for key, value in group.items()}) for group in out),
        *(Group(settings, params) for settings, params in made),
    )


def _json(value: object) -> object:
    return encode(value)
