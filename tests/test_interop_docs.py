"""The page about the frameworks names all that the interop run covers, as installed."""

from __future__ import annotations

import interop_table


def test_the_page_has_a_row_for_each_framework_at_its_pinned_version() -> None:
    shown = interop_table.shown().splitlines()
    wanted = [f"| {row.title} | {row.pinned} |" for row in interop_table.ROWS.values()]
    wanted += [f"| {title} | {version} |" for title, version, _ in interop_table.NOT_RUN]
    found = [" | ".join(line.split(" | ")[:2]) + " |" for line in shown[2:]]
    assert found == wanted
    assert "FAILED" not in interop_table.shown()


def test_a_table_tells_what_failed_and_what_has_no_test() -> None:
    class Report:
        def __init__(self, outcome: str, *covers: str) -> None:
            self.outcome = outcome
            self.user_properties = [("covers", list(covers))]

    made = interop_table.table(
        [
            Report("passed", "deepspeed", "read", "write"),
            Report("failed", "deepspeed", "write"),
            Report("passed", "deepspeed", "write"),
            object(),
        ]
    )
    version = interop_table.ROWS["deepspeed"].pinned
    assert f"| DeepSpeed | {version} | yes | FAILED | no test |\n" in made
    assert interop_table.HEAD in made
