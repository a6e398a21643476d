"""What is fuzzed: seeds, how they are changed, and what must stand every change.

Whatever the input, a target returns or raises `ReshardError`. Every other exception is a bug.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from random import Random

from byte_changes import (
    closed,
    mutate_bytes,
    mutate_json,
    mutate_program,
    mutate_text,
    mutate_tree,
    opened,
)

from reshard import convert, plan
from reshard.api.inspection import inspect
from reshard.dtypes import DType
from reshard.errors import ReshardError
from reshard.formats.universal.manifest import own_digest
from reshard.language import format_document, load_layout, parse
from reshard.language import layout as compiled
from reshard.language.library import shipped
from reshard.plan.bind import bind
from reshard.plan.catalog import Catalog, Fragment, LocalTensor
from reshard.run.run import Run
from reshard.storage.index import read_index
from reshard.storage.kept import encode
from reshard.storage.pickle_reader import read_pickle
from reshard.storage.pickle_writer import write_pickle
from reshard.storage.safetensors import layout_header, read_header
from reshard.storage.torch_file import TensorRef, open_torch_file, read_small, walk
from torch_files import Tensor, loaded, saved

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


class Fuzzed(ABC):
    """One target.  A subclass makes its seeds in a folder of its own."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def mutated(self, random: Random) -> bytes:
        """A new input."""

    @abstractmethod
    def run(self, data: bytes) -> None:
        """Read an input.  Raises: ReshardError, and whatever is a bug."""


def odd_tensor(random: Random) -> Tensor:
    """A small tensor of an odd shape or type."""
    shape = random.choice(((), (0,), (1,), (3,), (2, 2), (1, 0, 5)))
    dtype = random.choice((DType.F32, DType.BF16, DType.I64, DType.U8))
    return Tensor(dtype, shape, bytes(prod(shape) * dtype.itemsize))


def fixture(case: str, folder: Path) -> Path:
    """A copy of the checkpoint of a case of fixtures/."""
    import tarfile

    packed = FIXTURES / case / "case.tar.xz"
    if packed.is_file():
        with tarfile.open(packed) as archive:
            archive.extractall(folder / case, filter="data")
        return folder / case / "ckpt"
    shutil.copytree(FIXTURES / case / "ckpt", folder / case)
    return folder / case


class TorchFile(Fuzzed):
    """Files of `torch.save`: their zip directory, and their pickles."""

    name = "torch-file"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        source = fixture("z1_bf16_dp4_tied", folder)
        self.seeds = [path.read_bytes() for path in sorted(source.rglob("*.pt"))]
        files = [open_torch_file(path) for path in sorted(source.rglob("*.pt"))]
        self.pickles = [file.record("data.pkl") for file in files]
        self.path = folder / "input.pt"

    def mutated(self, random: Random) -> bytes:
        number = random.randrange(len(self.seeds))
        if random.random() < 0.3:
            return mutate_bytes(self.seeds[number], self.seeds, random)
        with zipfile.ZipFile(io.BytesIO(self.seeds[number])) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, raw in members.items():
                own = name.endswith("/data.pkl")
                archive.writestr(name, mutate_program(raw, self.pickles, random) if own else raw)
        return out.getvalue()

    def run(self, data: bytes) -> None:
        self.path.write_bytes(data)
        opened = open_torch_file(self.path)
        tensors: list[TensorRef] = []
        walk(opened.root, lambda _, ref: tensors.append(ref))
        for ref in tensors[:20]:
            if ref.nbytes <= 1 << 16:
                read_small(ref)
        encode(opened.root, lambda ref: [str(ref.dtype), list(ref.shape)])
        opened.check_all_crcs()


class DcpMetadata(Fuzzed):
    """`.metadata` of PyTorch's distributed checkpoints, whose data files are sound."""

    name = "dcp-metadata"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        cases = ("dcp_dp2", "dcp_hsdp2x2_bf16", "dcp_fsdp1_dp2", "dcp_dp4_odd")
        self.sources = []
        for case in cases:
            found = next(fixture(case, folder).rglob(".metadata"))
            self.sources.append((found, found.read_bytes()))
        self.trees = [opened(read_pickle(seed, "seed")) for _, seed in self.sources]

    def mutated(self, random: Random) -> bytes:
        number = random.randrange(len(self.sources))
        seeds = [seed for _, seed in self.sources]
        if random.random() < 0.7:
            try:
                root = mutate_tree(self.trees[number], random, lambda _: ["$record"])
                return bytes([number]) + write_pickle(closed(root))
            except (TypeError, ValueError, RecursionError):
                pass
        return bytes([number]) + mutate_program(seeds[number], seeds, random)

    def run(self, data: bytes) -> None:
        path, _ = self.sources[data[0] % len(self.sources) if data else 0]
        path.write_bytes(data[1:])
        plan(path.parent, "universal")


class Safetensors(Fuzzed):
    """Headers of safetensors files."""

    name = "safetensors"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "input.safetensors"
        head, _, nbytes = layout_header(
            {"a": (DType.F32, (2, 3)), "b": (DType.BF16, ()), "c": (DType.I64, (0, 4))},
            {"format": "pt"},
        )
        self.head, self.nbytes = head, nbytes

    def mutated(self, random: Random) -> bytes:
        seed = self.head + bytes(self.nbytes - len(self.head))
        if random.random() < 0.3:
            return mutate_bytes(seed, [seed], random)
        text = mutate_json(self.head[8:], random)
        return struct.pack("<Q", len(text)) + text + bytes(random.choice((26, 26, 26, 0, 27)))

    def run(self, data: bytes) -> None:
        self.path.write_bytes(data)
        read_header(self.path)


class Manifest(Fuzzed):
    """Manifests of universal checkpoints, and the other JSON files beside them."""

    name = "manifest"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        source = fixture("z1_bf16_dp4_tied", folder)
        self.root = folder / "universal"
        convert(source, self.root, "universal")
        self.files = [self.root / "manifest.json", self.root / "model.safetensors.index.json"]
        self.seeds = [path.read_bytes() for path in self.files]

    def mutated(self, random: Random) -> bytes:
        number = random.choice((0, 0, 0, 1))
        if random.random() < 0.3:
            return bytes([number]) + mutate_bytes(self.seeds[number], self.seeds, random)
        text = mutate_json(self.seeds[number], random)
        return bytes([number]) + (signed(text) if number == 0 else text)

    def run(self, data: bytes) -> None:
        number = data[0] % 2 if data else 0
        if number:
            (self.folder / "index.json").write_bytes(data[1:])
            read_index(self.folder / "index.json")
            return
        self.files[0].write_bytes(data[1:])
        inspect(self.root)


def signed(text: bytes) -> bytes:
    """A manifest that states its own digest."""
    try:
        root = json.loads(text)
        if isinstance(root, dict) and isinstance(root.get("digest"), str):
            known = root["digest"].encode()
            return text.replace(known, own_digest(text).encode())
    except (ValueError, RecursionError):
        pass
    return text


class Layout(Fuzzed):
    """UCL texts: read, printed again, compiled, and bound to tensors."""

    name = "layout"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        cases = Path(__file__).resolve().parents[1] / "cases"
        self.seeds = [path.read_text(encoding="utf-8") for path in sorted(cases.glob("*.ucl"))]
        self.seeds += [format_document(family.document) for family in shipped()]
        self.words = sorted({word for seed in self.seeds for word in seed.split()})

    def mutated(self, random: Random) -> bytes:
        text = mutate_text(random.choice(self.seeds), self.words, random)
        return text.encode("utf-8", "surrogatepass")

    def run(self, data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        document = parse(text, "input.ucl")
        printed = format_document(document)
        if format_document(parse(printed, "printed.ucl")) != printed:
            raise AssertionError("the canonical text is not its own canonical text")
        for block in document.blocks:
            name = block.name.text
            try:
                layout = load_layout(text, "input.ucl", name)
                bind(layout, _catalog(layout), settings={"layer": 2})
            except ReshardError:
                continue


def _catalog(layout: compiled.Layout) -> Catalog:
    shapes = {
        "model.embed_tokens.weight": (6, 4),
        "model.layers.0.self_attn.q_proj.weight": (4, 4),
        "model.layers.1.self_attn.q_proj.weight": (4, 4),
        "model.norm.weight": (4,),
    }
    tensors = tuple(
        LocalTensor(key, "param", (), shape, DType.F32, (Fragment(0, prod(shape), "x", 0),))
        for key, shape in shapes.items()
    )
    config = {"hidden_size": 4, "num_hidden_layers": 2, "vocab_size": 6, "args": {"tp": 0}}
    return Catalog("fuzz", "", "", {}, tensors, layout, Run(), config=config)


class Tree(Fuzzed):
    """A checkpoint one of whose files holds another tree of objects."""

    case = ""
    pattern = "*.pt"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.root = fixture(self.case, folder)
        paths = sorted(self.root.rglob(self.pattern))
        self.files = [(path, path.read_bytes(), opened(loaded(path))) for path in paths]

    def mutated(self, random: Random) -> bytes:
        number = random.randrange(len(self.files))
        path, seed, tree = self.files[number]
        try:
            data = saved(closed(mutate_tree(tree, random, odd_tensor)), path.stem)
        except (TypeError, ValueError, RecursionError):  # no such file could be written
            data = seed
        return bytes([number]) + data

    def run(self, data: bytes) -> None:
        number = data[0] % len(self.files) if data else 0
        path, seed, _ = self.files[number]
        path.write_bytes(data[1:])
        try:
            plan(self.root, "universal")
        finally:
            path.write_bytes(seed)


class DeepSpeed(Tree):
    """A DeepSpeed checkpoint of ZeRO-1."""

    name = "deepspeed"
    case = "z1_bf16_dp4_tied"


class DeepSpeed3(Tree):
    """A DeepSpeed checkpoint of ZeRO-3 with tensor parallelism."""

    name = "deepspeed-3"
    case = "autotp_tp2_dp2_z3_bf16"


TARGETS: dict[str, Callable[[Path], Fuzzed]] = {
    made.name: made
    for made in (TorchFile, DcpMetadata, Safetensors, Manifest, Layout, DeepSpeed, DeepSpeed3)
}


@dataclass
class Counts:
    """What became of the inputs.

    Args:  refused: by code.
    """

    runs: int = 0
    read: int = 0
    refused: dict[str, int] | None = None

    def note(self, error: ReshardError | None) -> None:
        """Count one input."""
        self.runs += 1
        if error is None:
            self.read += 1
            return
        self.refused = self.refused or {}
        code = error.diagnostics[0].code
        self.refused[code] = self.refused.get(code, 0) + 1
