"""One table in its three forms, against text written by hand."""

from __future__ import annotations

from pathlib import Path

from fsseg.report.formats import TextTable

PLAIN = TextTable("Title", ["", "ours", "paper"], [["baseline", "60.00", ""], ["a|b", "7.5 ±0.1", "61.48"]])
WIDE = TextTable(
    "T_1",
    ["", *["fold 0", "mean"] * 2],
    [["ours", "1.0 (*)", "—", "3.0 ±0.5", "—"], ["  paper", "", "", "4.0", ""]],
    groups=["1-shot", "5-shot"],
    notes=["* without x"],
)


def test_a_plain_table_for_a_terminal() -> None:
    table = TextTable(**{**vars(PLAIN), "notes": ["one", "two"], "pictures": [Path("out/p.png")]})
    assert table.to_text() == (
        "Title\n\n"
        "              ours  paper\n"
        "baseline     60.00\n"
        "a|b       7.5 ±0.1  61.48\n\n"
        "  one\n"
        "  two\n"
        "  picture: out/p.png\n"
    )
    assert PLAIN.to_text().endswith("61.48\n")


def test_groups_stand_over_their_columns_with_a_wider_gap() -> None:
    assert WIDE.to_text() == (
        "T_1\n\n"
        "           --- 1-shot --    --- 5-shot ---\n"
        "            fold 0  mean      fold 0  mean\n"
        "ours       1.0 (*)     —    3.0 ±0.5     —\n"
        "  paper                          4.0\n"
        "  * without x\n"
    )


def test_a_table_too_wide_is_cut_into_groups_without_what_is_empty_there() -> None:
    groups, columns = [f"{shot}-shot" for shot in (1, 2, 3)], 8
    number = ["77.7 ±1.1"] * columns
    rows = [
        ["ours", *number, *["—"] * columns, *number],
        ["  paper", *["72.9"] * columns, *[""] * columns * 2],
        ["other", *["—"] * columns * 2, *number],
    ]
    text = TextTable("Wide", ["", *["fold"] * 3 * columns], rows, groups, notes=["note"]).to_text()
    first, second = text.removeprefix("Wide\n\n").split("\n\n")
    assert " 1-shot " in first
    assert " 3-shot " in second  # nothing has a number under 2-shot
    assert [line.split()[0] for line in first.splitlines()[2:]] == ["ours", "paper", "other"]
    assert [line.split()[0] for line in second.splitlines()[2:]] == ["ours", "other", "note"]
    assert max(map(len, text.splitlines())) <= 118


def test_markdown_names_group_and_column_and_escapes() -> None:
    assert WIDE.to_markdown() == (
        "### T_1\n\n"
        "|  | 1-shot fold 0 | 1-shot mean | 5-shot fold 0 | 5-shot mean |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| ours | 1.0 (*) | — | 3.0 ±0.5 | — |\n"
        "| paper |  |  | 4.0 |  |\n\n"
        "- \\* without x\n"
    )
    table = TextTable(**{**vars(PLAIN), "pictures": [Path("out/p.png")]})
    assert table.to_markdown().splitlines()[5:] == ["| a\\|b | 7.5 ±0.1 | 61.48 |", "", "", "![p](p.png)"]


def test_latex_has_a_rule_under_each_group() -> None:
    lines = [line.strip() for line in WIDE.to_latex().splitlines()]
    assert r"\caption{T\_1}" in lines
    assert r"\begin{tabular}{lrrrr}" in lines
    assert r"& \multicolumn{2}{c}{1-shot} & \multicolumn{2}{c}{5-shot} \\" in lines
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}" in lines
    assert r"& fold 0 & mean & fold 0 & mean \\" in lines
    assert r"ours & 1.0$^{*}$ & --- & 3.0 $\pm$ 0.5 & --- \\" in lines
    assert r"\quad paper &  &  & 4.0 &  \\" in lines
    assert lines[-1] == "% * without x"
