"""What Megatron will not restore of what was written, and with which arguments it resumes."""

from __future__ import annotations

from collections.abc import Iterator

from reshard.errors import Diagnostic
from reshard.formats.megatron.write_options import WriteOptions
from reshard.formats.megatron.write_resume import Resume


def legacy_warnings(
    resume: Resume, options: WriteOptions, has_optimizer: bool, has_rng: bool
) -> tuple[Diagnostic, ...]:
    """For the files of ranks: what they lack, Megatron must be told."""
    return tuple(_warnings(resume, options, has_optimizer, has_rng, legacy=True))


def dist_warnings(
    resume: Resume, options: WriteOptions, has_optimizer: bool, has_rng: bool
) -> tuple[Diagnostic, ...]:
    """For `torch_dist`: its arguments say what is not there."""
    return tuple(_warnings(resume, options, has_optimizer, has_rng, legacy=False))


def _warnings(
    resume: Resume, options: WriteOptions, has_optimizer: bool, has_rng: bool, *, legacy: bool
) -> Iterator[Diagnostic]:
    if options.iteration is None:
        return  # a release: Megatron asks for nothing but weights
    if not has_optimizer:
        yield _told(
            "the optimizer starts anew",
            ("no states of an optimizer with their param groups are written",),
            ("resume with `--no-load-optim`, or with `--finetune`",) if legacy else (),
        )
    elif resume.scheduler is None:
        yield _told(
            "the source has no learning rate schedule of Megatron's",
            (
                f"a constant one at {options.samples or 0} samples is written",
                *(("the number of samples is not known",) if options.samples is None else ()),
            ),
            (
                "resume with `--override-opt-param-scheduler`",
                *(
                    ("give the samples consumed with `samples=N`",)
                    if options.samples is None
                    else ()
                ),
            ),
        )
    if not has_rng:
        why = "the source has none for these ranks" if resume.rng else "the source has none"
        yield _told(
            "random number generators start anew",
            (why,),
            ("resume with `--no-load-rng`",) if legacy else (),
        )


def remainder_warnings(
    resume: Resume, has_optimizer: bool, has_remainders: bool
) -> tuple[Diagnostic, ...]:
    """Where a precision-aware optimizer would take whole masters for what it keeps of them."""
    if not resume.args.get("use_precision_aware_optimizer") or not has_optimizer or has_remainders:
        return ()
    return (
        _told(
            "master weights are written whole, in fp32",
            (
                "the run had `--use-precision-aware-optimizer`, which keeps the lower half of each",
                "it would take the whole ones for these",
            ),
            ("resume without `--use-precision-aware-optimizer`",),
        ),
    )


def _told(headline: str, notes: tuple[str, ...], helps: tuple[str, ...]) -> Diagnostic:
    return Diagnostic("megatron-resume", headline, "warning", notes=notes, helps=helps)
