"""Files of a run that hold no tensors: configuration, tokenizer, states of trainers, logs.

Inside the folder that a user gives every file is accounted for: it is read by the format, goes
along as a side file, is told of in a few words (logs, other steps), or is left with the reason.
Above it only files with the names that runs use are looked for, and only if the folder is one step
of a run, or one part of a step.

Sources: transformers/trainer.py `_save_checkpoint`; accelerate/checkpointing.py; DeepSpeed
runtime/engine.py `_copy_recovery_script`; Megatron-Bridge training/utils/checkpoint_utils.py;
NeMo lightning/io/mixin.py; OLMo-core train/checkpoint.py; modelopt torch/opt/plugins.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from reshard.errors import ReshardError
from reshard.models.config_json import model_config_of
from reshard.plan.catalog import Catalog, Left, SourceFile
from reshard.store.owned import RECEIPT
from reshard.store.source import LocalSource

MAX_NBYTES = 64 << 20
"""Of all the files that go along; a larger one is no part of a tokenizer."""

_MAX_FILES = 1000
_MAX_ENTRIES = 200_000
_MAX_DEPTH = 6
_MAX_SHOWN = 8

_MODEL = re.compile(
    r"(.*/)?("
    r"config\.json|\w+_config\.json|params\.json|model_args\.json|modules\.json"
    r"|tokenizer\.\w+|tokenizer_config\.json|tokenizer[-_]\w+\.\w+|vocab\.\w+|merges\.txt"
    r"|special_tokens_map\.json|added_tokens\.json|chat_template\.\w+|\w+\.(jinja|tiktoken|spm)"
    r"|(sentencepiece|spiece|source|target)\S*\.(model|spm)|normalizer\.json"
    r")|(tokenizer|additional_chat_templates)/.*"
)
"""What belongs to the model, whoever trained it."""

_TRAINING = re.compile(
    r"(.*/)?("
    r"trainer_state\.json|rng_state\w*\.pth|random_states_\d+\.pkl|training_args\.(bin|json)"
    r"|scheduler\w*\.(pt|bin)|scaler\w*\.(pt|bin)|sampler\w*\.bin|dl_state_dict\w*\.bin"
    r"|custom_checkpoint_\d+\.pkl|run_config\.yaml|(latest_)?train_state\.pt|(meta|step_scheduler)\.pt"
    r"|modelopt_\w+(\.\w+)?|zero_to_(fp32|torch)\.py|\.metadata\.json|io\.json|model\.yaml"
    r"|transformer_config\.json|metadata|data_loader\w*\.\w+|dataloader\w*\.\w+"
    r"|config\.yaml|optimizer_config\.json"
    r")|(train|context|modelopt_state|random|lr_scheduler|extra_state|loader_ckpt|rng|dataloader)/.*"
)
"""What belongs to the run, and is of use to who goes on with it."""

_TRACKERS = re.compile(
    r"latest|latest\.txt|latest_universal|latest_checkpointed_iteration\.txt|LATEST|LOWEST_VAL"
    r"|latest_wandb_artifact_path\.txt"
)
"""Files that name a step; a reader follows them, and a target has its own."""

_TENSORS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack|onnx|ot|distcp|pkl|npz|npy|index\.json)"
    r"(\.\w{1,8}|~)?"
)
_RESERVED = re.compile(r"manifest\.json|layout\.ucl|extra(/.*)?")
"""Names that a universal checkpoint has a meaning for."""

_LOGS = re.compile(
    r".*\.(log|out|err)|events\.out\.tfevents\S*|progress\.txt|(wandb|runs|tensorboard|tb|logs?"
    r"|tb_logs|lightning_logs|mlruns)/"
)
_STEP = re.compile(
    r"((.*[-_.=])?(step|iter|iteration|global_step|epoch|checkpoint|ckpt)s?[-_.=]?\d+\S*|\d+"
    r"|release)/"
)
"""The folder of a step."""
_PART = frozenset({"weights", "model_and_optim", "model", "checkpoint", "universal"})
"""Names of folders that are one part of a step."""

HF_CONFIG = "hf/config.json"
"""transformers' `config.json` where a framework has a file of that name too."""

HF_FOLDER = "huggingface/"
"""Of transformers' files in a step of verl; other targets have them next to the weights."""

_CACHE = frozenset({"blobs", "refs", ".no_exist"})
_STEPS, _LOG = "other steps", "logs"
_OTHER_TENSORS = "it looks like a file of other tensors, or their index"
_BEYOND = f"beyond {MAX_NBYTES >> 20} MiB or {_MAX_FILES} files in all"


def with_run_files(path: Path, catalog: Catalog) -> Catalog:
    """A catalog with everything that lies around what its format has read.

    Args:  path: as the user gave it: the folder of a run, or of one of its steps.
    """
    root = Path(catalog.root)
    account = _Account(root, frozenset(file.path for file in catalog.files))
    given, real = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    account.look_into(_Folder(LocalSource(root)), is_run=False)
    above, prefix = real, ""
    while above != given and given in above.parents:
        above, prefix = above.parent, f"{prefix}../"
        folder = Path(os.path.normpath(root / prefix))
        account.look_into(_Folder(LocalSource(folder), prefix), is_run=True)
    while above.name in _PART or _STEP.fullmatch(f"{above.name}/"):
        is_part = above.name in _PART
        above, prefix = above.parent, f"{prefix}../"
        account.look_for_known(_Folder(LocalSource(root / prefix), prefix))
        if not is_part:
            break
    return account.added_to(catalog)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder that is looked at.

    Args:  prefix: its path from the root of the catalog.
    """

    source: LocalSource
    prefix: str = ""


@dataclass(slots=True)
class _Account:
    """What becomes of every file and folder.

    Args:  read: paths that the format has read.
           side_files: by the name under which a file goes along, where it lies; the nearest wins.
    """

    root: Path
    read: frozenset[str]
    side_files: dict[str, SourceFile] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    nearby: dict[str, list[str]] = field(default_factory=dict)
    entries: int = 0
    _folders: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._folders = {
            f"{parent}/" for path in self.read for parent in PurePosixPath(path).parents
        }

    def look_into(self, folder: _Folder, *, is_run: bool) -> None:
        """Account for every entry of a folder.

        Args:  is_run: it holds the folders of steps; folders of no known use are not entered.
        """
        for name in self._files(folder, "", 0, is_run=is_run):
            self._file(folder, name)

    def look_for_known(self, folder: _Folder) -> None:
        """Take the files of a folder that have the names of a run's files, and no others."""
        source = folder.source
        try:
            names = sorted((*source.files(), *source.folders()))[:_MAX_ENTRIES]
        except OSError:
            return
        for name in names:
            if name in ("tokenizer", "context") and source.has_folder(name):
                for inner in self._files(folder, name, 1, is_run=False):
                    self._file(folder, inner)
            elif _is_known(name) and source.has(name) and not _TRACKERS.fullmatch(name):
                self._take(folder, name)

    def added_to(self, catalog: Catalog) -> Catalog:
        """The catalog with all of it, and with the configuration of the model where that is a file
        next to it.
        """
        side: dict[str, str] = {}
        files = {file.path: file for file in catalog.files}
        total = 0
        for name in sorted(self.side_files, key=lambda name: (not _MODEL.fullmatch(name), name)):
            file = self.side_files[name]
            if total + file.nbytes > MAX_NBYTES or len(side) == _MAX_FILES:
                self._leave(file.path, _BEYOND)
                continue
            total += file.nbytes
            side[name] = file.path
            files[file.path] = file
        side |= catalog.side_files
        for name in [name for name in side if name.startswith(HF_FOLDER)]:
            if name.removeprefix(HF_FOLDER) not in side:
                side[name.removeprefix(HF_FOLDER)] = side.pop(name)
        if HF_CONFIG in side and "config.json" not in side:
            side["config.json"] = side.pop(HF_CONFIG)
        config = catalog.config
        if config is None and "config.json" in side:
            config = model_config_of(self.root / side["config.json"])
        reported = {(item.file, item.key) for item in catalog.left}
        return replace(
            catalog,
            config=config,
            files=tuple(files.values()),
            side_files=side,
            nearby={what: tuple(names) for what, names in self.nearby.items()},
            left=(*catalog.left, *(x for x in self.left if (x.file, x.key) not in reported)),
        )

    def _files(self, folder: _Folder, inner: str, depth: int, *, is_run: bool) -> Iterator[str]:
        """Names of files below a folder in it; what is not entered is noted."""
        source, prefix = folder.source, folder.prefix
        try:
            folders = source.folders(inner)
            names = sorted((*source.files(inner), *folders))
        except OSError as error:
            self._leave(f"{prefix}{inner}{'/' if inner else ''}", _unread(error))
            return
        for name in names:
            self.entries += 1
            if self.entries > _MAX_ENTRIES:
                self._leave(f"{prefix}{name}", "there are too many files")
                return
            is_read = f"{prefix}{name}/" in self._folders  # a link to it was followed
            if name not in folders or (source.is_link(name) and not is_read):
                yield name
            elif self._is_entered(folder, name, is_run=is_run):
                if depth == _MAX_DEPTH and f"{prefix}{name}/" not in self._folders:
                    self._leave(f"{prefix}{name}/", "it lies too deep")
                else:
                    yield from self._files(folder, name, depth + 1, is_run=False)

    def _is_entered(self, folder: _Folder, name: str, *, is_run: bool) -> bool:
        path = f"{folder.prefix}{name}/"
        above, _, base = name.rpartition("/")
        if path in self._folders:
            return True
        if is_run and base in _CACHE and folder.source.has(f"{above}/refs/main".lstrip("/")):
            return False  # of the hub's cache: links in the snapshot lead to what is needed of it
        if is_run and folder.source.root / name in (self.root, *self.root.parents):
            return False  # it holds what was read
        if base.startswith("."):
            self._leave(path, "it is a hidden folder")
        elif _LOGS.fullmatch(f"{base}/"):
            self._near(_LOG, f"{base}/")
        elif _STEP.fullmatch(f"{base}/"):
            self._near(_STEPS, base)
        elif is_run and not _is_known(f"{base}/"):
            self._leave(path, "it is no part of this step")
        else:
            return True
        return False

    def _near(self, what: str, name: str) -> None:
        names = self.nearby.setdefault(what, [])
        if name not in names:
            names.append(name)

    def _leave(self, path: str, why: str) -> None:
        self.left.append(Left(path, "", why))

    def _file(self, folder: _Folder, name: str) -> None:
        path = f"{folder.prefix}{name}"
        base = name.rpartition("/")[2]
        if path in self.read or base == RECEIPT or _TRACKERS.fullmatch(name):
            return
        if _LOGS.fullmatch(base):
            self._near(_LOG, base)
        elif not _is_known(name) and _TENSORS.fullmatch(base):
            if not _is_empty(folder.source, name):  # a rank that had nothing to write
                self._leave(path, _OTHER_TENSORS)
        elif _RESERVED.fullmatch(name):
            self._leave(path, "its name is taken in a universal checkpoint")
        elif not name.isprintable() or "\\" in name or len(name) > 250:
            escaped = repr(path)[1:-1][:200]
            self._leave(escaped, "its name has characters that a path here may not have")
        elif base.startswith(".") and not _is_known(name):
            self._leave(path, "it is a hidden file")
        else:
            self._take(folder, name)

    def _take(self, folder: _Folder, name: str) -> None:
        """Let a file go along, if it is one, and if no nearer one has its name."""
        path = f"{folder.prefix}{name}"
        nearer = self.side_files.get(name)
        if nearer is not None:
            self._leave(path, f"`{nearer.path}` has its name, and lies nearer")
            return
        source = folder.source
        try:
            source.path(name)
            if source.has(name):
                self.side_files[name] = replace(source.stat(name), path=path)
            else:
                self._leave(path, "it is no ordinary file")
        except ReshardError:
            self._leave(path, "it is a link that points outside of the folder")
        except OSError as error:
            self._leave(path, _unread(error))


def _is_empty(source: LocalSource, name: str) -> bool:
    try:
        return source.has(name) and not source.stat(name).nbytes
    except (OSError, ReshardError):
        return False


def _unread(error: OSError) -> str:
    return f"it cannot be read: {error.strerror}"


def _is_known(name: str) -> bool:
    return is_of_model(name) or is_of_training(name)


def is_of_model(name: str) -> bool:
    """Whether a side file belongs to a model, whoever trained it."""
    return _MODEL.fullmatch(name) is not None


def is_of_training(name: str) -> bool:
    """Whether a side file belongs to a run, and not to its model."""
    return _TRAINING.fullmatch(name) is not None
