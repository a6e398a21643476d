"""Every message about a distributed checkpoint, in full."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import reshard
from formats.dcp.dcp_forge import METADATA, Forge, blob, counted, made
from reshard.errors import ReshardError
from reshard.storage.inert import Global, Size
from reshard.storage.pickle_writer import write_pickle

Find = Callable[[str], Path]


def _refused(folder: Path, step: str | None = None) -> str:
    with pytest.raises(ReshardError) as caught:
        reshard.open(folder, step=step)
    return str(caught.value).replace(f"{folder.parent}/", "")


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    """A folder with one tensor in two halves, and an object."""
    forge = Forge(tmp_path / "ckpt")
    forge.tensor("w", counted(4, 3), [((0, 0), (2, 3)), ((2, 0), (2, 3))])
    return forge.object("note", "text")


def test_a_save_that_did_not_come_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / ".metadata.tmp").touch()
    assert _refused(tmp_path / "ckpt") == (
        "error[incomplete-dcp]: ckpt was not written to the end\n"
        "  = note: there is `.metadata.tmp`, but no `.metadata`, which is written last\n"
        "  = help: go back to an earlier checkpoint"
    )


def test_data_without_metadata(forge: Forge) -> None:
    (forge.write() / ".metadata").unlink()
    assert _refused(forge.folder) == (
        "error[incomplete-dcp]: ckpt was not written to the end\n"
        "  = note: there are `.distcp` files, but no `.metadata`, which is written last\n"
        "  = help: go back to an earlier checkpoint"
    )


def test_a_step_that_was_not_written_to_its_end(tmp_path: Path, forge: Forge) -> None:
    forge.folder = tmp_path / "run" / "step-1"
    forge.write()
    (tmp_path / "run" / "step-2").mkdir()
    (tmp_path / "run" / "step-2" / ".metadata.tmp").touch()
    assert _refused(tmp_path / "run", "step-2") == (
        "error[incomplete-dcp]: run/step-2 was not written to the end\n"
        "  = note: there is `.metadata.tmp`, but no `.metadata`, which is written last\n"
        "  = help: go back to an earlier checkpoint"
    )


def test_a_step_that_is_not_there(tmp_path: Path, forge: Forge) -> None:
    forge.folder = tmp_path / "run" / "step-1"
    forge.write()
    assert _refused(tmp_path / "run", "7") == (
        "error[unknown-step]: run has no step `7`\n"
        "  = note: steps: `step-1`\n"
        "  = help: give the name of one of these folders, or the number at its end"
    )
    assert _refused(tmp_path / "run" / "step-1", "7") == (
        "error[unknown-step]: step-1 is the folder of `step-1`, not of step `7`\n"
        "  = help: give the folder above it, or leave `--step` out"
    )


def test_a_missing_file(forge: Forge) -> None:
    (forge.write() / "__0_1.distcp").unlink()
    assert _refused(forge.folder) == (
        "error[missing-file]: ckpt/__0_1.distcp is missing\n"
        "  = note: `.metadata` in ckpt names it\n"
        "  = help: copy the whole folder; every rank wrote a part of it"
    )


def test_a_truncated_file(forge: Forge) -> None:
    file = forge.write() / "__0_1.distcp"
    file.write_bytes(file.read_bytes()[:100])
    assert _refused(forge.folder) == (
        "error[truncated]: ckpt/__0_1.distcp is shorter than its index says\n"
        f"  = note: bytes 0 to {len(forge.files['__0_1.distcp'])} are needed, but it has 100\n"
        "  = help: the file was not written or copied completely; copy it again"
    )


def test_an_empty_file(forge: Forge) -> None:
    (forge.write() / "__0_1.distcp").write_bytes(b"")
    assert _refused(forge.folder) == (
        "error[truncated]: ckpt/__0_1.distcp is shorter than its index says\n"
        f"  = note: bytes 0 to {len(forge.files['__0_1.distcp'])} are needed, but it has 0\n"
        "  = help: the file was not written or copied completely; copy it again"
    )


def test_files_of_two_checkpoints(forge: Forge, tmp_path: Path) -> None:
    forge.write()
    other = Forge(tmp_path / "other").tensor("w", counted(3, 2))
    file = forge.folder / "__0_1.distcp"
    data = bytes(other.files["__0_0.distcp"])
    file.write_bytes(data + bytes(len(forge.files["__0_1.distcp"]) - len(data)))
    key = next(k for k in forge.places if k.attributes["index"] == 1)
    forge.places[key].state[0]["length"] = len(data)  # type: ignore[index]
    forge.files["__0_1.distcp"] = bytearray(data)
    forge.write()
    assert _refused(forge.folder) == (
        "error[chunk-mismatch]: the chunk of `w` at [2, 0] does not match `.metadata`\n"
        "  = note: it is F32 of shape [3, 2], in ckpt/__0_1.distcp at byte 0\n"
        "  = note: expected: F32 of shape [2, 3]\n"
        "  = help: the folder mixes files of two checkpoints, or is damaged; copy it again"
    )


def test_an_object_where_a_tensor_should_be(forge: Forge) -> None:
    data = blob(write_pickle("text"))
    forge.files["__0_1.distcp"] = bytearray(data)
    key = next(k for k in forge.places if k.attributes["index"] == 1)
    forge.places[key].state[0]["length"] = len(data)  # type: ignore[index]
    assert _refused(forge.write()) == (
        "error[chunk-mismatch]: the chunk of `w` at [2, 0] does not match `.metadata`\n"
        "  = note: it is no tensor, in ckpt/__0_1.distcp at byte 0\n"
        "  = note: expected: F32 of shape [2, 3]\n"
        "  = help: the folder mixes files of two checkpoints, or is damaged; copy it again"
    )


def test_boxes_that_do_not_add_up(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt").tensor("w", counted(4, 3), [((0, 0), (2, 3))])
    assert _refused(forge.write()) == (
        "error[missing-chunk]: `w` is incomplete\n"
        "  = note: its chunks contain 6 of the 12 elements of shape [4, 3]\n"
        "  = help: the checkpoint is damaged, or one rank's part is missing; use an earlier one"
    )


def test_boxes_that_overlap(tmp_path: Path) -> None:
    boxes = [((0, 0), (2, 3)), ((1, 0), (2, 3))]
    folder = Forge(tmp_path / "ckpt").tensor("w", counted(4, 3), boxes).write()
    assert _refused(folder).startswith(
        "error[coverage-overlap]: elements of `w` (param) are stored twice\n"
    )


def test_a_chunk_that_is_stored_nowhere(forge: Forge) -> None:
    key = next(k for k in forge.places if k.attributes["index"] == 1)
    del forge.places[key]
    assert _refused(forge.write()) == (
        "error[missing-chunk]: the chunk of `w` at [2, 0] is not stored\n"
        "  = note: listed in ckpt/.metadata, shape [2, 3] of [4, 3]\n"
        "  = help: the checkpoint is damaged; go back to an earlier one"
    )


def test_a_box_that_leaves_its_tensor(forge: Forge) -> None:
    chunks = forge.entries["w"].state[0]["chunks"]  # type: ignore[index]
    chunks[1].state[0]["sizes"] = Size((3, 3))
    assert _refused(forge.write()) == (
        "error[bad-metadata]: ckpt/.metadata cannot be understood\n"
        "  = note: a chunk of `w` at [2, 0] of [3, 3] exceeds its shape [4, 3]\n"
        "  = help: the file is damaged, or was written by an unknown program"
    )


def test_an_object_that_is_stored_nowhere(forge: Forge) -> None:
    forge.entries["lost"] = made(METADATA, "BytesStorageMetadata")
    assert _refused(forge.write()) == (
        "error[bad-metadata]: ckpt/.metadata cannot be understood\n"
        "  = note: object `lost` is stored nowhere\n"
        "  = help: the file is damaged, or was written by an unknown program"
    )


def test_a_name_that_leads_out(forge: Forge) -> None:
    key = next(k for k in forge.places if k.attributes["index"] == 1)
    forge.places[key].state[0]["relative_path"] = "../passwd"  # type: ignore[index]
    assert _refused(forge.write()) == (
        "error[bad-metadata]: ckpt/.metadata cannot be understood\n"
        "  = note: file name `../passwd` leads out of the folder\n"
        "  = help: the file is damaged, or was written by an unknown program"
    )


def test_an_element_type_that_is_not_known(forge: Forge) -> None:
    forge.entries["w"].state[0]["properties"] = made(  # type: ignore[index]
        METADATA, "TensorProperties", dtype=Global("torch", "quint4x2")
    )
    assert _refused(forge.write()) == (
        "error[bad-metadata]: ckpt/.metadata cannot be understood\n"
        "  = note: `w` has an unknown element type\n"
        "  = help: the file is damaged, or was written by an unknown program"
    )


def test_another_pickle(forge: Forge) -> None:
    (forge.write() / ".metadata").write_bytes(write_pickle([1, 2]))
    assert _refused(forge.folder) == (
        "error[bad-metadata]: ckpt/.metadata cannot be understood\n"
        "  = note: its root is a list\n"
        "  = help: the file is damaged, or was written by an unknown program"
    )


def test_a_tensor_through_an_extension(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt")
    forge.tensor("w", counted(4, 3), transform_descriptors=["stream.zstd"])
    assert _refused(forge.write()) == (
        "error[unsupported-dcp]: `w` in ckpt is stored through stream.zstd\n"
        "  = note: only plain files are read\n"
        "  = help: load and save it again without stream extensions"
    )


def test_the_serialization_that_torch_cannot_read(fixture_checkpoint: Find) -> None:
    assert _refused(fixture_checkpoint("dcp_safetensors_dp2") / "ckpt") == (
        "error[unsupported-dcp]: ckpt/__0_0.distcp was written with "
        "`SerializationFormat.SAFETENSORS`\n"
        "  = note: torch notes wrong places for the tensors of such a file, and cannot load it "
        "either\n"
        "  = help: save it again with `SerializationFormat.TORCH_SAVE`, the default"
    )


def test_the_flat_parameters_of_fsdp(fixture_checkpoint: Find) -> None:
    assert _refused(fixture_checkpoint("dcp_fsdp1_local_dp2") / "ckpt") == (
        "error[unsupported-dcp]: ckpt holds the flat parameters of FSDP's `LOCAL_STATE_DICT`\n"
        "  = note: `model._flat_param` is [5104] elements without names or shapes\n"
        "  = help: load it where it was trained, and save it with `SHARDED_STATE_DICT`, or "
        "`torch.distributed.checkpoint.state_dict.get_state_dict`"
    )


def test_numbers_that_several_names_fit(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt")
    for name in ("b", "a"):
        forge.tensor(f"model.{name}", counted(2), path=("model", name))
    for number in (0, 1):
        path = ("optim", "state", str(number), "exp_avg")
        forge.tensor(f"optim.state.{number}.exp_avg", counted(2), path=path)
        forge.object(
            f"optim.param_groups.{number}.params",
            [number],
            path=("optim", "param_groups", number, "params"),
        )
    assert _refused(forge.write()) == (
        "error[ambiguous-optimizer-ids]: the optimizer states in ckpt cannot be given names\n"
        "  = note: several orders of the weights fit the shapes of the states\n"
        "  = note: number 0 may be `b` or `a`\n"
        "  = note: `Optimizer.state_dict()` numbers parameters and does not name them\n"
        "  = help: leave the states out with `--states weights`\n"
        "  = help: or load it where it was trained, and save it with "
        "`torch.distributed.checkpoint.state_dict.get_state_dict`"
    )


def test_numbers_that_no_names_fit(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt").tensor("model.a", counted(2), path=("model", "a"))
    path = ("optim", "state", "0", "exp_avg")
    forge.tensor("optim.state.0.exp_avg", counted(3), path=path)
    assert "number 0 has a state of shape [3], and no parameter has that shape" in _refused(
        forge.write()
    )
    forge.object("optim.param_groups.0.params", [0, 1], path=("optim", "param_groups", 0, "params"))
    assert "the optimizer numbers 2 parameters, and the model has 1" in _refused(forge.write())


def test_two_models_that_an_optimizer_may_train(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt")
    for name in ("net", "ema"):
        forge.tensor(f"{name}.w", counted(2), path=(name, "w"))
    forge.tensor("optim.state.w.exp_avg", counted(2), path=("optim", "state", "w", "exp_avg"))
    assert _refused(forge.write()) == (
        "error[several-models]: ckpt holds several models or optimizers\n"
        "  = note: the optimizer trains names that are in `net`, `ema`\n"
        "  = help: save the one that is trained as `model`"
    )


def test_two_models_of_accelerate(tmp_path: Path) -> None:
    for name in ("pytorch_model_fsdp_0", "pytorch_model_fsdp_1"):
        Forge(tmp_path / "run" / name).tensor("w", counted(2)).write()
    assert _refused(tmp_path / "run") == (
        "error[several-models]: run holds several models or optimizers\n"
        "  = note: folders: `pytorch_model_fsdp_0`, `pytorch_model_fsdp_1`\n"
        "  = help: give one of these folders"
    )


def test_ranks_that_tell_different_shapes(tmp_path: Path) -> None:
    for rank in range(2):
        forge = Forge(tmp_path / "ckpt", rank=rank).tensor("w", counted(2 + rank))
        forge.write(f"__{rank}.metadata")
    assert _refused(tmp_path / "ckpt") == (
        "error[bad-metadata]: ckpt/__0.metadata cannot be understood\n"
        "  = note: `w` is F32 of shape [2] for one rank, and F32 of shape [3] for another\n"
        "  = help: the file is damaged, or was written by an unknown program"
    )


def test_a_rank_of_several_that_is_missing(fixture_checkpoint: Find, tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    shutil.copytree(fixture_checkpoint("dcp_dp2_alone") / "ckpt", folder)
    (folder / "__1.metadata").unlink()
    assert _refused(folder).startswith(
        "error[missing-chunk]: `model.model.embed_tokens.weight` is incomplete\n"
        "  = note: its chunks contain 304 of the 592 elements of shape [37, 16]\n"
    )


def test_raw_bytes_that_end_too_early(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt", raw=True).tensor("w", counted(4))
    (forge.write() / "__0_0.distcp").write_bytes(bytes(12))
    assert _refused(forge.folder) == (
        "error[truncated]: ckpt/__0_0.distcp is shorter than its index says\n"
        "  = note: bytes 0 to 16 are needed, but it has 12\n"
        "  = help: the file was not written or copied completely; copy it again"
    )


def test_a_large_file_beside_it_is_told(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reshard.formats.run_files.MAX_NBYTES", 4)
    (forge.write() / "tokenizer.model").write_bytes(bytes(5))
    [left] = reshard.inspect(forge.folder).left
    assert (left.file, left.key) == ("tokenizer.model", "")
    assert left.why == "beyond 64 MiB or 1000 files in all"


def test_every_flipped_byte_of_a_tensor_is_seen(forge: Forge) -> None:
    file = forge.write() / "__0_1.distcp"
    good = file.read_bytes()
    assert reshard.verify(forge.folder).ok
    at = good.index(counted(4, 3)[2:].tobytes())
    for byte in range(24):
        bad = bytearray(good)
        bad[at + byte] ^= 1
        file.write_bytes(bad)
        [problem] = reshard.verify(forge.folder).faults
        assert problem.code == "crc-mismatch"
    assert (
        problem.render()
        .replace(f"{forge.folder}/", "")
        .startswith(
            "error[crc-mismatch]: the bytes of `data/0` in __0_1.distcp do not match their "
            "checksum\n"
        )
    )
