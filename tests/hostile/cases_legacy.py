"""Files in the format of torch before 1.6 that lie about their pickles and storages."""

from __future__ import annotations

from pathlib import Path

from cases_pickle import RUN, model
from corpus import Corpus
from forge_legacy import MAGIC, VERSION, legacy
from forge_pickle import (
    EMPTY_DICT,
    entries,
    items,
    listed,
    name,
    number,
    program,
    storage,
    table,
    tensor,
    text,
)

CORPUS = Corpus("legacy")
PICKLE = model()
DATA = {"0": bytes(range(16))}
SOUND = legacy(PICKLE, DATA)


def file(case: str, data: bytes) -> None:
    """One case: a DeepSpeed checkpoint (stage 0, one rank) whose only file is this."""

    def build(folder: Path) -> None:
        step = folder / "src" / "global_step1"
        step.mkdir(parents=True)
        (step / "mp_rank_00_model_states.pt").write_bytes(data)

    CORPUS.add(case, build)


file("sound", SOUND)
file("call_of_os_system", legacy(model(evil=RUN), DATA))
file("call_in_the_first_pickle", b"\x80\x02" + MAGIC[2:-1] + b"0" + program(RUN)[2:])
file("call_as_the_list_of_storages", legacy(PICKLE, DATA, keys=program(RUN)))
file("only_the_magic_number", MAGIC)
file("ends_in_the_version", MAGIC + VERSION[:-2])
file("ends_in_the_pickle", SOUND[: len(MAGIC) + 200])
file("ends_in_a_length", SOUND[:-20])
file("ends_in_a_storage", SOUND[:-1])
file("bytes_behind", SOUND + b"more")
file("another_version", legacy(PICKLE, DATA, version=program(number(1002))))
file("big_endian", legacy(PICKLE, DATA, machine=program(table(little_endian=b"\x89"))))
file("machine_of_nothing", legacy(PICKLE, DATA, machine=program(EMPTY_DICT)))
file("length_negative", legacy(PICKLE, DATA, numel=-1))
file("length_huge", legacy(PICKLE, DATA, numel=2**62))
file("length_beyond_the_file", legacy(PICKLE, DATA, numel=2**40))
file("length_of_less", legacy(PICKLE, DATA, numel=3))
file("storage_not_listed", legacy(PICKLE, DATA, keys=program(listed())))
file("storage_listed_twice", legacy(PICKLE, DATA, keys=program(listed(text("0"), text("0")))))
file("storages_that_are_numbers", legacy(PICKLE, DATA, keys=program(listed(number(0)))))
file(
    "tensor_out_of_its_storage",
    legacy(model(module=entries({"w": tensor(offset=1)})), DATA),
)
VIEW = items(
    *(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(4)),
    items(text("1"), number(1), number(2)),
)
file(
    "view_of_a_storage",
    legacy(model(module=entries({"w": tensor((2,), of=VIEW + b"Q")})), DATA),
)
file(
    "storage_of_two_lengths",
    legacy(
        model(
            module=entries({"v": tensor(), "w": tensor((2,), of=storage("0", numel=2))}),
        ),
        DATA,
    ),
)
file("frame_without_an_end", MAGIC + VERSION + b"\x80\x04\x95" + (2**60).to_bytes(8, "little"))
