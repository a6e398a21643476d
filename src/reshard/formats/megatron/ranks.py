"""The rank files of a legacy checkpoint and their places on the mesh.

Source: Megatron-LM, megatron/training/checkpointing.py `get_checkpoint_name`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import source_error
from reshard.formats.megatron.arguments import Arguments, arguments_of
from reshard.storage.torch_file import TorchFile, open_torch_file

_NAME = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3}))?(?:_(\d{3}))?$")


@dataclass(frozen=True, slots=True)
class RankFile:
    """One `model_optim_rng.pt`.

    Args:  tp, pp, ep: its ranks.  file: relative to the folder of the iteration.
    """

    tp: int
    pp: int
    ep: int
    file: str
    root: Mapping[object, object]
    opened: TorchFile


@dataclass(frozen=True, slots=True)
class Ranks:
    """All rank files.

    Args:  args: of the first one, the same in all.  tp, pp, ep: sizes of the mesh.
    """

    files: tuple[RankFile, ...]
    args: Arguments
    tp: int
    pp: int
    ep: int


def read_ranks(folder: Path) -> Ranks:
    """Open every rank file of an iteration's folder.

    Raises: ReshardError[foreign-rank | missing-ranks | mixed-runs], and what
            `open_torch_file` raises.
    """
    found: list[tuple[Path, tuple[int, int | None, int | None]]] = []
    for path in sorted(folder.glob("mp_rank_*")):
        match = _NAME.match(path.name)
        if match is None or not path.is_dir():
            raise source_error(
                "foreign-rank",
                f"`{path.name}` in {folder} is not the folder of a rank",
                notes=["names are `mp_rank_TT`, `mp_rank_TT_PPP`, `mp_rank_TT_PPP_EEE`"],
                helps=["move it elsewhere if it does not belong to the checkpoint"],
            )
        tp, first, second = (None if text is None else int(text) for text in match.groups())
        found.append((path, (tp or 0, first, second)))
    opened = []
    for path, place in found:
        file = next(
            (n for n in ("model_optim_rng.pt", "model_rng.pt") if (path / n).exists()), None
        )
        if file is None:
            raise source_error(
                "missing-ranks",
                f"{path} has no `model_optim_rng.pt`",
                helps=["copy the folders of all ranks"],
            )
        opened.append((f"{path.name}/{file}", place, open_torch_file(path / file)))
    args = arguments_of(opened[0][2])
    sizes = (args.size("tp"), args.size("pp"), args.size("ep"))
    files = []
    for file, place, torch_file in opened:
        here = arguments_of(torch_file)
        if (here.size("tp"), here.size("pp"), here.size("ep")) != sizes:
            raise source_error(
                "mixed-runs",
                f"{folder / file} is of another run than {folder / opened[0][0]}",
                notes=[
                    f"one says tp={here.size('tp')}, pp={here.size('pp')}, ep={here.size('ep')}",
                    f"the other says tp={sizes[0]}, pp={sizes[1]}, ep={sizes[2]}",
                ],
                helps=["remove what does not belong to the checkpoint"],
            )
        root = torch_file.root
        assert isinstance(root, dict)
        tp, pp, ep = _place(place, sizes)
        files.append(RankFile(tp, pp, ep, file, root, torch_file))
    _check_complete(folder, files, sizes)
    return Ranks(tuple(files), args, *sizes)


def _place(
    name: tuple[int, int | None, int | None], sizes: tuple[int, int, int]
) -> tuple[int, int, int]:
    """A folder's ranks: one suffix is the pipeline's, or the experts' when there is one stage."""
    tp, first, second = name
    if second is not None:
        return tp, first or 0, second
    if first is None:
        return tp, 0, 0
    return (tp, first, 0) if sizes[1] > 1 else (tp, 0, first)


def _check_complete(folder: Path, files: list[RankFile], sizes: tuple[int, int, int]) -> None:
    tp, pp, ep = sizes
    dense = {(f.tp, f.pp) for f in files}
    experts = {(f.ep, f.pp) for f in files}
    missing = [f"tp={t}, pp={p}" for p in range(pp) for t in range(tp) if (t, p) not in dense]
    missing += [f"ep={e}, pp={p}" for p in range(pp) for e in range(ep) if (e, p) not in experts]
    if missing:
        raise source_error(
            "missing-ranks",
            f"{folder} lacks the files of {len(missing)} ranks",
            notes=[
                f"first: {missing[0]}; the run had tp={tp}, pp={pp}, ep={ep}",
                f"{len(files)} rank folders were found",
            ],
            helps=["copy the folders of all ranks"],
        )
