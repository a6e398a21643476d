"""Fuzz one target: `python tests/fuzz/run.py TARGET --minutes M`.

Inputs that are a bug are written to a folder, and the run goes on.  With `--engine atheris`
libFuzzer chooses the inputs, where atheris is installed.  `--input FILE` runs one input again.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))

from targets import TARGETS, Counts, Fuzzed

from reshard.errors import ReshardError

SECONDS = 10
MEMORY_NBYTES = 1 << 30


class TooLongError(Exception):
    """An input took more than ten seconds."""


@contextmanager
def _in_time() -> Iterator[None]:
    def ring(_number: int, _frame: object) -> None:
        raise TooLongError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def _one(target: Fuzzed, data: bytes, counts: Counts, crashes: Path) -> bool:
    """Run one input; whether it stood."""
    try:
        with _in_time():
            target.run(data)
    except ReshardError as error:
        counts.note(error)
    except Exception:  # noqa: BLE001 - whatever it is, it is a bug
        counts.note(None)
        crashes.mkdir(parents=True, exist_ok=True)
        path = crashes / f"{target.name}-{hashlib.sha256(data).hexdigest()[:16]}"
        path.write_bytes(data)
        print(f"{path}\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        return False
    else:
        counts.note(None)
    return True


def main() -> int:
    """Returns 1 if there was a bug."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crashes", type=Path, default=Path("fuzz-crashes"))
    parser.add_argument("--engine", choices=("random", "atheris"), default="random")
    parser.add_argument("--input", type=Path, help="one input, to see what becomes of it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        target = TARGETS[options.target](Path(name))
        counts = Counts()
        if options.input is not None:
            return 0 if _one(target, options.input.read_bytes(), counts, options.crashes) else 1
        if options.engine == "atheris":
            return _atheris(target, options)
        bugs = 0
        random = Random(options.seed)
        start = time.monotonic()
        while time.monotonic() - start < 60 * options.minutes:
            bugs += not _one(target, target.mutated(random), counts, options.crashes)
        seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    refused = sorted((counts.refused or {}).items(), key=lambda item: -item[1])
    print(f"{options.target}: {counts.runs} inputs in {seconds:.0f} s, seed {options.seed}")
    print(f"  {counts.read} read, {sum(n for _, n in refused)} refused, {bugs} bugs")
    print(f"  {', '.join(f'{code} {count}' for code, count in refused)}")
    print(f"  peak of resident memory: {peak:.0f} MiB")
    return 1 if bugs or peak * 2**20 > MEMORY_NBYTES else 0


def _atheris(target: Fuzzed, options: argparse.Namespace) -> int:
    import atheris  # type: ignore[import-not-found]

    def test(data: bytes) -> None:
        try:
            with _in_time():
                target.run(data)
        except ReshardError:
            pass

    corpus = target.folder / "corpus"
    corpus.mkdir()
    for number in range(200):
        (corpus / str(number)).write_bytes(target.mutated(Random(number)))
    atheris.instrument_all()
    words = [sys.argv[0], str(corpus), f"-max_total_time={int(60 * options.minutes)}"]
    atheris.Setup(words, test)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
