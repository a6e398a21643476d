"""UCL texts that would take for ever, or are none."""

from __future__ import annotations

from pathlib import Path

from cases_pickle import model, write
from corpus import CONVERT, Corpus
from forge_pickle import entries, tensor

CORPUS = Corpus("language")


def checked(case: str, text: str | bytes, *words: str) -> None:
    """One case: `layout check` of a text."""

    def build(folder: Path) -> None:
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        (folder / "src.ucl").write_bytes(raw)

    CORPUS.add(case, build, *(words or ("layout", "check", "src.ucl")))


def used(case: str, text: str, *more: str, names: tuple[str, ...] = ("w",)) -> None:
    """One case: a checkpoint read through a text."""

    def build(folder: Path) -> None:
        write(folder, model(module=entries({name: tensor() for name in names})))
        (folder / "own.ucl").write_text(text, encoding="utf-8")

    CORPUS.add(case, build, *CONVERT, "--layout", "own.ucl", *more)


def rule(pattern: str, dims: str = "...") -> str:
    """A layout of one rule."""
    return f'layout own {{ mesh dp "{pattern}" = [{dims}] }}'


checked("empty", "")
checked("spaces", " \t\n" * 3_000_000)
checked("comments", "# nothing\n" * 200_000)
checked("one_long_comment", "#" + "x" * 10_000_000)
checked("one_long_word", "x" * 10_000_000)
checked("one_long_string", f'layout own {{ "{"a" * 5_000_000}" = [...] }}')
checked("string_without_an_end", 'layout own { "' + "a" * 5_000_000)
checked("string_of_backslashes", 'layout own { "' + "\\" * 1_000_001)
checked("many_rules", "layout own {" + "".join(f'"a{i}" = [...]\n' for i in range(2_000)) + "}")
checked("more_rules_than_are_read", "layout own {" + '"a" = [...]\n' * 500_000 + "}")
checked("many_layouts", "".join(f'layout l{i} {{ "a" = [...] }}\n' for i in range(100_000)))
checked("many_axes", "model m {" + "".join(f"axis a{i}\n" for i in range(5_000)) + "}")
checked("open_parentheses", "model m { axis a = " + "(" * 100_000)
checked("nested_parentheses", "model m { axis a = " + "(" * 5_000 + "1" + ")" * 5_000 + " }")
checked("nested_negations", "model m { tensor t [a] when " + "not " * 10_000 + "true }")
checked("nested_signs", "model m { axis a = " + "-" * 10_000 + "1 }")
checked("nested_groups", 'layout l { "a" = [' + "(" * 5_000 + "a" + ")" * 5_000 + "] }")
checked("long_sum", "model m { axis a = " + "1 + " * 5_000 + "1 }")
checked("long_product_of_axes", 'layout l { "a" = [' + "a " * 2_000 + "] }")
checked("long_sum_of_axes", 'layout l { "a" = [(' + "a + " * 2_000 + "a)] }")
checked("huge_number", "model m { axis a = " + "9" * 100_000 + " }")
checked("number_of_2_to_the_63", f"model m {{ axis a = {1 << 63} }}")
checked("huge_split", 'layout l { mesh tp "a" = [x over tp as (' + "1, " * 5_000 + "1)] }")
checked("null_bytes", "layout\0own { }")
checked("no_unicode", b"\xff\xfe")
checked("byte_order_mark", "\ufefflayout own { }")
checked("other_letters", "layout owń { }")
checked("letters_that_look_alike", "l\u0430yout own { }")
checked("writing_direction", 'layout own { # \u202e } "x" = [...]\n }')
checked("escape_sequences", "layout \x1b[2J { }")
checked("line_separators", "layout own {\u2028}")
checked("digits_of_other_scripts", "model m { axis a = \u0663 }")
checked("pattern_of_open_braces", rule("{" * 10_000))
checked("pattern_of_indices", rule("{a}." * 2_000))
checked("pattern_of_sizes", rule("{local e over dp as (" + "1, " * 50_000 + "1)}"))
checked("is_a_folder", b"", "layout", "check", ".")
checked("is_not_there", b"", "layout", "check", "nothing.ucl")

LONG = "a" * 5_000
used("sound", rule("*"))
used("flood_of_wildcards", rule("**a" * 16 + "b"), names=("a" * 200,))
used("flood_of_single_wildcards", rule("*a" * 16 + "b"), names=(LONG,))
used(
    "flood_of_wildcards_and_indices",
    rule("".join(f"**{{i{n}}}" for n in range(8)) + "b"),
    names=("1" * 200,),
)
used("flood_of_matching_wildcards", rule("**" * 16), names=(LONG,))
used("more_wildcards_than_are_matched", rule("**a" * 30))
used("name_longer_than_is_matched", rule("**"), names=("a" * 100_000,))
used("division_by_zero", 'layout own { mesh dp = 1 / 0 "*" = [...] }')
used(
    "power_of_products",
    "layout own { mesh dp = " + " * ".join(["9223372036854775807"] * 2_000) + ' "*" = [...] }',
)
used("mesh_of_2_to_the_62", f'layout own {{ mesh dp = {1 << 62} "*" = [...] }}')
used("padded_to_2_to_the_62", rule("*", f"x padded to a multiple of {1 << 62}"))
used("truncated_to_nothing", rule("*", "x truncated to 0"))
used("axis_of_2_to_the_62", rule("*", f"x:{1 << 62} y"))
used("set_beyond_64_bits", rule("*"), "--set", f"x={1 << 70}")
used("set_of_text", rule("*"), "--set", "x=\x1b[2J")
used("name_of_no_layout", rule("*"), "--step", "\x1b[2J")


@CORPUS.case("layout", "check", "src.ucl")
def device(folder: Path) -> None:
    """A device that never ends."""
    (folder / "src.ucl").symlink_to("/dev/zero")
