"""Pickles that would execute something, never end, or lie about what they hold."""

from __future__ import annotations

from pathlib import Path

from corpus import CANARY, Corpus
from forge_pickle import (
    BUILD,
    DUP,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    MARK,
    NONE,
    REDUCE,
    call,
    entries,
    get,
    items,
    listed,
    name,
    number,
    program,
    put,
    storage,
    table,
    tensor,
    text,
)
from forge_zip import torch_file

CORPUS = Corpus("pickle")
SHELL = f"touch {CANARY}"
RUN = call(name("os", "system"), text(SHELL))


def write(folder: Path, pickle: bytes, storages: dict[str, bytes] | None = None) -> None:
    """A DeepSpeed checkpoint (stage 0, one rank) whose only file holds this pickle."""
    step = folder / "src" / "global_step1"
    step.mkdir(parents=True)
    (step / "mp_rank_00_model_states.pt").write_bytes(torch_file(pickle, storages))


def model(**more: bytes) -> bytes:
    """The pickle of a sound model file with further entries."""
    return program(table(**{**sound(), **more}))


def sound() -> dict[str, bytes]:
    """The entries of a model file of one weight, trained without an optimizer."""
    return {
        "module": entries({"w": tensor()}),
        "buffer_names": EMPTY_LIST,
        "optimizer": NONE,
        "param_shapes": NONE,
        "global_steps": number(1),
        "dp_world_size": number(1),
        "mp_world_size": number(1),
        "ds_config": EMPTY_DICT,
        "ds_version": text("0.19.8"),
    }


def pickled(case: str, pickle: bytes, storages: dict[str, bytes] | None = None) -> None:
    """One case: a file with this pickle."""
    CORPUS.add(case, lambda folder: write(folder, pickle, storages))


# ---- what would execute something: kept as inert data, or refused --------------------------------

pickled("sound", model())
pickled("root_is_a_call", program(RUN))
pickled("call_of_os_system", model(evil=RUN))
pickled("call_of_posix_system", model(evil=call(name("posix", "system"), text(SHELL))))
pickled(
    "call_of_subprocess",
    model(evil=call(name("subprocess", "check_output"), listed(text("touch"), text(CANARY)))),
)
SCRIPT = f"open({CANARY!r}, 'w')"
for word in ("exec", "eval"):
    for module in ("builtins", "__builtin__"):
        pickled(f"call_of_{module}_{word}", model(evil=call(name(module, word), text(SCRIPT))))
pickled(
    "getattr_chain",
    model(
        evil=call(
            call(
                name("builtins", "getattr"),
                call(name("builtins", "__import__"), text("os")),
                text("system"),
            ),
            text(SHELL),
        )
    ),
)
pickled("dotted_name", model(evil=call(name("builtins", "open.__call__"), text(CANARY), text("w"))))
pickled("runpy", model(evil=call(name("runpy", "_run_code"), text(SCRIPT), EMPTY_DICT)))
pickled("nested_pickle", model(evil=call(name("pickle", "loads"), b"C\x04\x80\x02N.")))
pickled("call_as_key", program(EMPTY_DICT, MARK, RUN, NONE, b"u"))
pickled("call_in_module", model(module=entries({"w": tensor(), "evil": RUN})))
pickled("call_as_module", model(module=RUN))
pickled("call_in_persistent_id", program(RUN, b"Q"))
pickled(
    "call_within_persistent_id",
    program(
        items(text("storage"), name("torch", "FloatStorage"), RUN, text("cpu"), number(4)), b"Q"
    ),
)
pickled("persistent_id_of_text", program(b"Pos.system\n"))
pickled("call_as_storage", model(module=entries({"w": tensor(of=RUN)})))
pickled(
    "call_as_hooks",
    model(
        module=entries(
            {
                "w": call(
                    name("torch._utils", "_rebuild_tensor_v2"),
                    storage(),
                    number(0),
                    items(number(4)),
                    items(number(1)),
                    b"\x89",
                    RUN,
                )
            }
        )
    ),
)
pickled(
    "build_with_state",
    model(evil=name("os", "_Environ") + EMPTY_TUPLE + b"\x81" + table(__reduce__=RUN) + BUILD),
)
pickled("build_on_a_dict", model(evil=EMPTY_DICT + table(__class__=RUN) + BUILD))
pickled("build_on_a_list", model(evil=EMPTY_LIST + table(__class__=RUN) + BUILD))
pickled("newobj", model(evil=name("subprocess", "Popen") + items(text(SHELL)) + b"\x81"))
pickled(
    "newobj_ex",
    model(evil=name("subprocess", "Popen") + items(text(SHELL)) + table(shell=b"\x88") + b"\x92"),
)
pickled("inst", model(evil=MARK + text(SHELL) + b"ios\nsystem\n"))
pickled("obj", model(evil=MARK + name("os", "system") + text(SHELL) + b"o"))
pickled(
    "stack_global", model(evil=text("os") + text("system") + b"\x93" + items(text(SHELL)) + REDUCE)
)
pickled("global_with_a_line_end", model(evil=text("os\nsystem") + text("x") + b"\x93"))
pickled("global_of_a_number", model(evil=number(1) + number(2) + b"\x93"))
pickled("extension_1", model(evil=b"\x82\x01"))
pickled("extension_2", model(evil=b"\x83\x01\x00"))
pickled("extension_4", model(evil=b"\x84\x01\x00\x00\x00"))
pickled("out_of_band_buffer", model(evil=b"\x97"))
pickled("read_only_buffer", model(evil=b"\x98"))
pickled("call_of_text", model(evil=text("os.system") + items(text(SHELL)) + REDUCE))
pickled("call_without_a_tuple", model(evil=name("os", "system") + text(SHELL) + REDUCE))
pickled("load_from_bytes", model(evil=call(name("torch.storage", "_load_from_bytes"), b"C\x01.")))
pickled(
    "from_type_of_a_call",
    model(
        evil=call(
            name("torch._tensor", "_rebuild_from_type_v2"),
            name("os", "system"),
            name("torch", "Tensor"),
            items(text(SHELL)),
            EMPTY_DICT,
        )
    ),
)

# ---- what would never end, or fill the memory ----------------------------------------------------


def laughs(make: bytes, levels: int, width: int, leaf: bytes) -> bytes:
    """A container of copies of a container of copies ... of a leaf."""
    out = leaf + put(0)
    for level in range(1, levels):
        own = b"".join([get(level - 1)] * width)
        out += b"0" + (MARK + own + b"t" if make == b"t" else EMPTY_LIST + MARK + own + b"e")
        out += put(level)
    return out


pickled("laughing_lists", model(evil=laughs(b"e", 20, 10, EMPTY_LIST)))
pickled("laughing_tuples", model(evil=laughs(b"t", 60, 2, items(number(1)))))
pickled("laughing_key", model(evil=EMPTY_DICT + laughs(b"t", 60, 2, items(NONE)) + NONE + b"s"))
pickled(
    "laughing_set",
    model(evil=call(name("builtins", "set"), listed(laughs(b"t", 60, 2, items(NONE))))),
)
pickled("laughing_frozenset", model(evil=MARK + laughs(b"t", 60, 2, items(NONE)) + b"\x91"))
pickled(
    "laughing_ordered_dict",
    model(
        evil=call(
            name("collections", "OrderedDict"),
            listed(items(laughs(b"t", 60, 2, items(NONE)), NONE)),
        )
    ),
)
pickled(
    "laughing_state",
    model(
        evil=call(
            name("torch._tensor", "_rebuild_from_type_v2"),
            name("torch._utils", "_rebuild_tensor_v2"),
            name("torch", "Tensor"),
            EMPTY_TUPLE,
            laughs(b"t", 60, 2, EMPTY_TUPLE),
        )
    ),
)
pickled(
    "long_text_many_times", model(evil=listed(text("x" * 100_000) + put(0), *[get(0)] * 50_000))
)
pickled(
    "large_tensor_many_times",
    model(evil=listed(*[tensor((100_000,), (1,), of=storage("1", numel=100_000))] * 2_000)),
    {"0": bytes(16), "1": bytes(400_000)},
)
pickled("list_in_itself", model(evil=EMPTY_LIST + put(0) + get(0) + b"a"))
pickled("dict_in_itself", model(evil=EMPTY_DICT + put(0) + text("me") + get(0) + b"s"))
pickled("root_in_itself", program(EMPTY_DICT, put(0), text("module"), get(0), b"s"))
pickled(
    "object_in_itself", model(evil=name("a", "B") + EMPTY_TUPLE + b"\x81" + put(0) + get(0) + BUILD)
)
pickled("nested_lists", model(evil=EMPTY_LIST * 50_000 + b"a" * 49_999))
pickled("nested_tuples", model(evil=EMPTY_TUPLE + b"\x85" * 50_000))
pickled(
    "nested_calls", model(evil=name("a", "b") * 50_000 + EMPTY_TUPLE + (b"R" + b"\x85") * 50_000)
)
pickled(
    "nested_by_memory",
    model(
        evil=EMPTY_LIST
        + put(0)
        + b"".join(b"0" + EMPTY_LIST + put(n) + get(n - 1) + b"a" for n in range(1, 5_000))
    ),
)
pickled("marks", program(MARK * 3_000_000))
pickled("sets", program(b"\x8f" * 300_000))
pickled("pops", program(b"0" * 10))
pickled(
    "copies_of_a_list",
    model(
        evil=listed(*[number(1)] * 10_000)
        + put(0)
        + b"0"
        + MARK
        + (
            call(name("collections", "OrderedDict"), EMPTY_LIST)
            + b"0"
            + (name("builtins", "frozenset") + get(0) + b"\x85R") * 10_000
        )
        + b"t"
    ),
)
pickled(
    "copies_of_text",
    model(
        evil=text("x" * 1_000_000)
        + put(0)
        + b"0"
        + MARK
        + ((name("_codecs", "encode") + get(0) + text("latin1") + b"\x86R") * 5_000)
        + b"t"
    ),
)
pickled(
    "colliding_integers",
    model(
        evil=EMPTY_DICT
        + MARK
        + b"".join(number(1 + n * (2**61 - 1)) + NONE for n in range(20_000))
        + b"u"
    ),
)
pickled("long_integer", model(evil=number(1 << 100_000)))
pickled("declared_integer", model(evil=b"\x8b\xff\xff\xff\x7f"))
pickled("long_decimal", model(evil=b"I" + b"9" * 100_000 + b"\n"))
pickled("decimal_of_python_2", model(evil=b"L" + b"9" * 100_000 + b"L\n"))
pickled("memory_slot_of_many_digits", model(evil=NONE + b"p" + b"9" * 100_000 + b"\n"))
pickled("declared_text", model(evil=b"X\xff\xff\xff\xff"))
pickled("declared_text_of_8_bytes", model(evil=b"\x8d" + b"\xff" * 8))
pickled("declared_bytes", model(evil=b"\x8e" + b"\xff" * 7 + b"\x7f"))
pickled("declared_bytearray", model(evil=b"\x96" + b"\xff" * 8))
pickled("declared_frame", b"\x80\x04\x95" + b"\xff" * 8 + b".")
pickled("bytes_of_a_number", model(evil=call(name("builtins", "bytes"), number(1 << 40))))
pickled("bytearray_of_a_number", model(evil=call(name("builtins", "bytearray"), number(1 << 40))))
pickled("line_without_an_end", program(b"I1234"))

# ---- what is no sound program --------------------------------------------------------------------

pickled("empty", b"")
pickled("only_stop", b"\x80\x04.")
pickled("protocol_9", b"\x80\x09N.")
pickled("no_stop", b"\x80\x04N")
pickled("two_objects", program(NONE, NONE))
pickled("unknown_opcode", program(b"\xff"))
pickled("memory_not_set", program(get(7)))
pickled("key_without_a_value", program(EMPTY_DICT, MARK, text("a"), b"u"))
pickled("item_to_a_number", program(number(1), number(2), b"a"))
pickled("key_of_a_list", program(EMPTY_DICT, EMPTY_LIST, NONE, b"s"))
pickled("no_mark", program(EMPTY_LIST, b"e"))
pickled("mark_on_top", program(MARK, DUP))
pickled("text_that_is_no_unicode", model(evil=text(b"\xff\xfe")))
pickled("quotes_missing", program(b"Sabc\n"))
pickled("number_that_is_none", program(b"Fnumber\n"))
pickled("codec_zlib", model(evil=call(name("_codecs", "encode"), text("x"), text("zlib_codec"))))
pickled("root_is_a_list", program(EMPTY_LIST))
pickled("root_is_a_tensor", program(tensor()))

# ---- tensors that lie ----------------------------------------------------------------------------


def weight(case: str, value: bytes, storages: dict[str, bytes] | None = None) -> None:
    """One case: a model of one weight."""
    pickled(case, model(module=entries({"w": value})), storages)


weight("storage_missing", tensor(of=storage(key="7")))
weight("storage_key_leads_out", tensor(of=storage(key="../data.pkl")))
weight("storage_key_is_absolute", tensor(of=storage(key="/etc/passwd")))
weight("storage_size_lies", tensor(of=storage(numel=5)))
weight("storage_size_negative", tensor(of=storage(numel=-4)))
weight("storage_size_huge", tensor(of=storage(numel=1 << 63)))
weight("storage_of_an_unknown_class", tensor(of=storage(kind="QInt8Storage")))
weight("shape_negative", tensor((-4,), (1,)))
weight("shape_huge", tensor((1 << 63,), (1,)))
weight("shape_beyond_64_bits", tensor((1 << 70,), (0,)))
weight("shape_overflows", tensor((1 << 32, 1 << 32), (1 << 32, 1)))
weight(
    "shape_of_truth",
    call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage(),
        number(0),
        items(b"\x88"),
        items(number(1)),
        b"\x89",
        NONE,
    ),
)
weight("strides_negative", tensor((4,), (-1,), 3))
weight("strides_huge", tensor((4,), (1 << 62,)))
weight("strides_too_few", tensor((2, 2), (1,)))
weight("strides_overlap", tensor((2, 3), (1, 1)))
weight("offset_negative", tensor(offset=-1))
weight("offset_huge", tensor(offset=1 << 62))
weight(
    "offset_of_truth",
    call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage(),
        b"\x88",
        items(number(1)),
        items(number(1)),
        b"\x89",
        NONE,
    ),
)
weight("last_element_outside", tensor((5,), (1,)))
weight("one_element_a_million_million_times", tensor((1 << 20, 1 << 20), (0, 0)))
weight("hundred_dimensions", tensor((1,) * 100, (1,) * 100))
weight(
    "shape_is_text",
    call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage(),
        number(0),
        text("4"),
        text("1"),
        b"\x89",
        NONE,
    ),
)
weight(
    "dtype_unknown",
    call(
        name("torch._utils", "_rebuild_tensor_v3"),
        storage(),
        number(0),
        items(number(4)),
        items(number(1)),
        b"\x89",
        NONE,
        name("torch", "quint8"),
    ),
)
weight("arguments_missing", call(name("torch._utils", "_rebuild_tensor_v2")))
weight(
    "element_size_grows",
    call(
        name("torch._utils", "_rebuild_tensor_v3"),
        storage(),
        number(0),
        items(number(4)),
        items(number(1)),
        b"\x89",
        NONE,
        name("torch", "float64"),
    ),
)
weight("sparse_tensor", call(name("torch._utils", "_rebuild_sparse_tensor"), NONE))
REBUILD_PARAMETER = name("torch._utils", "_rebuild_parameter")
weight("parameter_of_a_call", call(REBUILD_PARAMETER, RUN, b"\x88", NONE))

# ---- names ---------------------------------------------------------------------------------------

ODD_NAMES = {
    "escape_sequences": "\x1b]0;owned\x07\x1b[31mred\x9b2J",
    "line_ends": "w\nerror[fake]: all is well\n",
    "null_bytes": "w\0.bias",
    "writing_direction": "w\u202eetirw",
    "half_of_a_pair": "w\ud800",
    "leads_out": "../../w",
    "absolute": "/etc/passwd",
    "long": "w" * 5_000,
    "empty": "",
}
for label, odd in ODD_NAMES.items():
    pickle = model(module=entries({odd: tensor()}))
    pickled(f"name_with_{label}", pickle)
    CORPUS.add(
        f"inspected_name_with_{label}",
        lambda folder, pickle=pickle: write(folder, pickle),  # type: ignore[misc]
        *("inspect", "src"),
    )

CORPUS.add(
    "inspected_as_json",
    lambda folder: write(folder, model(module=entries({"\x1b\x9b\ud800\u202e": tensor()}))),
    *("inspect", "src", "--json"),
)
