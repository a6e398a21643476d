"""The errors of files that do not fit together, each kind with its one advice."""

from __future__ import annotations

from reshard.errors import ReshardError, source_error


def mixed_runs(headline: str, *notes: str) -> ReshardError:
    """Files that were not written together."""
    advice = "copy the files of one step of one run into a folder of their own"
    return source_error("mixed-runs", headline, notes=notes, helps=[advice])


def not_one_run(one: str, two: str, *notes: str) -> ReshardError:
    """Two files of different runs."""
    return mixed_runs(f"{one} and {two} are not of one run", *notes)


def missing_rank_file(headline: str, *notes: str) -> ReshardError:
    """A file of a rank, a layer, or an expert that is not there."""
    advice = "copy the files of all ranks; on several machines each one has only its own"
    return source_error("missing-rank-file", headline, notes=notes, helps=[advice])


def partition_mismatch(headline: str, *notes: str) -> ReshardError:
    """Partitions that are not those of the parameters that a model file names."""
    advice = "the files may be of different runs or steps; copy those of one"
    return source_error("partition-mismatch", headline, notes=notes, helps=[advice])


def ranks_disagree(what: str, one: str, file: str, two: str, other: str) -> ReshardError:
    """A value that is not the same in the files of two ranks."""
    return source_error(
        "ranks-disagree",
        f"ranks disagree about {what}: {one}, and {two}",
        notes=[f"{one} in {file}", f"{two} in {other}"],
        helps=["the files may be of different runs or steps; copy those of one"],
    )


def unexpected(headline: str, *notes: str) -> ReshardError:
    """A value of another kind than DeepSpeed writes."""
    advice = "the file was written by another program, or by a version that is not known"
    return source_error("unexpected-content", headline, notes=notes, helps=[advice])


def unsupported_experts(headline: str, *notes: str) -> ReshardError:
    """A placement of experts that is not read."""
    advice = "load the checkpoint and save it with experts in order, as many on every rank"
    return source_error("unsupported-experts", headline, notes=notes, helps=[advice])
