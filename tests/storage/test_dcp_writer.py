"""The container of a distributed checkpoint is read back as it was described."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from reshard.dtypes import DType
from reshard.plan.output import FileBytes, PlacedSpec, Written
from reshard.plan.plan import Array, ArraySpec, Placed
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.dcp_metadata import read_metadata
from reshard.storage.dcp_writer import DcpWriter, NewChunk, data_file


def _spec(shape: tuple[int, ...], label: str, dtype: DType = DType.F32) -> ArraySpec:
    return ArraySpec(label, "param", dtype, int(np.prod(shape)), (), shape)


def _write(folder: Path, writer: DcpWriter, fill: dict[str, bytes]) -> None:
    """Put everything in its place, as the engine does."""
    data = {name: bytearray(b"\x55" * nbytes) for name, nbytes in writer.files.items()}

    def put(item: FileBytes) -> None:
        data[item.file][item.byte_offset : item.byte_offset + len(item.data)] = item.data

    for item in writer.head:
        put(item)
    written = []
    for placed in writer.placed:
        raw = fill[placed.spec.label]
        assert len(raw) == placed.spec.nbytes
        put(FileBytes(placed.file, placed.byte_offset, raw))
        written.append(Written(_placed(placed), None, zlib.crc32(raw)))
    for item in writer.finish(written):
        put(item)
    metadata = writer.metadata({"w": ("w",)}, more=3)
    data[metadata.file] = bytearray(metadata.data)
    for name, content in data.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def _placed(item: PlacedSpec) -> Placed:
    return Placed(Array(item.spec, ()), item.file, item.byte_offset, item.digest, item.crc)


def test_tensors_and_objects_are_read_back(tmp_path: Path) -> None:
    writer = DcpWriter("step/")
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    top, bottom = _spec((1, 6), "top"), _spec((3, 6), "bottom")
    none, empty = _spec((0, 6), "none"), _spec((0,), "empty", DType.BF16)
    first, second = data_file(0), data_file(1, 2)
    writer.add_tensor(
        "w",
        DType.F32,
        (4, 6),
        [
            NewChunk((0, 0), top, first),
            NewChunk((1, 0), bottom, second),
            NewChunk((4, 0), none, second),
        ],
    )
    writer.add_tensor("e", DType.BF16, (0,), [NewChunk((0,), empty, first)])
    step = writer.small_tensor(_spec((), "step"))
    known = writer.constant(DType.U8, (2,), b"\1\2")
    writer.add_object("state", {"step": step, "rng": known, "betas": (0.9, 0.999)}, second)
    assert writer.nbytes(first) + writer.nbytes(second) == sum(writer.files.values())
    number = np.float32(7).tobytes()
    _write(
        tmp_path,
        writer,
        {"top": whole[:1].tobytes(), "bottom": whole[1:].tobytes(), "step": number},
    )

    folder = tmp_path / "step"
    metadata = read_metadata(folder)
    assert metadata.paths == {"w": ("w",)}
    assert metadata.version == "1.0.0"
    assert metadata.extra["more"] == 3
    tensors = {item.name: item for item in metadata.tensors}
    assert (tensors["w"].dtype, tensors["w"].shape) == (DType.F32, (4, 6))
    assert [chunk.lo for chunk in tensors["w"].chunks] == [(0, 0), (1, 0), (4, 0)]
    assert [chunk.file for chunk in tensors["w"].chunks] == [first, second, second]
    reader = ChunkReader(folder)
    found = np.concatenate(
        [
            np.frombuffer(
                (folder / ref.file).read_bytes(), np.float32, ref.numel, ref.byte_offset
            ).reshape(ref.shape)
            for ref in (reader.open(tensors["w"], chunk) for chunk in tensors["w"].chunks)
        ]
    )
    assert found.tobytes() == whole.tobytes()
    assert reader.open(tensors["e"], tensors["e"].chunks[0]).shape == (0,)
    ((name, value),) = reader.objects(metadata)
    assert name == "state"
    assert value == {
        "step": {"$tensor": {"dtype": "F32", "shape": [], "data": "AADgQA=="}},
        "rng": {"$tensor": {"dtype": "U8", "shape": [2], "data": "AQI="}},
        "betas": {"$tuple": [0.9, 0.999]},
    }


def test_a_key_is_given_once() -> None:
    writer = DcpWriter()
    writer.add_object("state", None, data_file(0))
    with pytest.raises(ValueError, match="state is written twice"):
        writer.add_object("state", None, data_file(0))


def test_the_chunks_of_a_tensor_are_of_its_type() -> None:
    writer = DcpWriter()
    chunk = NewChunk((0,), _spec((2,), "w", DType.BF16), data_file(0))
    with pytest.raises(ValueError, match="is not of F32"):
        writer.add_tensor("w", DType.F32, (2,), [chunk])
