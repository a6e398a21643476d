"""What is left of a source, in words."""

from reshard.plan.catalog import Left
from reshard.plan.left_text import left_lines, left_warnings

LEFT = (
    Left("rank0.pt", "optimizer.grads.0", "no target has a place for it"),
    Left("rank0.pt", "optimizer.grads.1", "no target has a place for it"),
    Left("rank1.pt", "optimizer.grads.0", "no target has a place for it"),
    Left("rank1.pt", "optimizer.grads.1", "no target has a place for it"),
    Left("other.pt", "hook", "it is a function"),
    Left("core.1234", "", "it is no file of a checkpoint"),
)


def test_inspect_groups_by_reason() -> None:
    assert left_lines(()) == []
    assert left_lines(LEFT) == [
        "not read: 1 file and 5 keys",
        "  no target has a place for it",
        "      optimizer.grads.{0,1} in rank0.pt and 1 file more",
        "  it is a function",
        "      hook in other.pt",
        "  it is no file of a checkpoint",
        "      core.1234",
    ]


def test_a_conversion_warns_of_files_and_of_keys() -> None:
    assert left_warnings(()) == ()
    assert [item.render() for item in left_warnings(LEFT)] == [
        "warning[side-file-left]: 1 file of the source is not copied to the target\n"
        "  = note: it is no file of a checkpoint: `core.1234`\n"
        "  = help: copy them yourself if you need them",
        "warning[keys-left]: 5 keys of the source are not converted\n"
        "  = note: no target has a place for it: "
        "`optimizer.grads.{0,1} in rank0.pt and 1 file more`\n"
        "  = note: it is a function: `hook in other.pt`\n"
        "  = help: keep the source if you need them",
    ]
