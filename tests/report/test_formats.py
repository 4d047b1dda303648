"""One table in its three forms, against text written by hand."""

from __future__ import annotations

import csv
import html
import io
import re
from pathlib import Path

from hypothesis import assume, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fsseg.errors import visible
from fsseg.report.formats import TextTable, csv_cell, latex

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


ANYTHING = st.text(st.one_of(st.characters(), st.sampled_from("\\|`*_~<>&[](){}$#%^=+-@!:\t\r\n\x1b\u202e\udcff '\"")))


@given(ANYTHING)
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    """By another implementation of Markdown: what it renders is the text, with no mark-up of its own."""
    wanted = visible(text).strip()
    assume(wanted and "(*)" not in wanted)
    table = TextTable(text, ["", text], [[text, "1"]], notes=[text])
    page = MarkdownIt("commonmark").enable("table").render(table.to_markdown())
    for tag in ("h3", 'th style="text-align:right"', "td", "li"):
        (shown,) = re.findall(f"<{tag}>(.*?)</{tag.split()[0]}>", page)[:1]
        assert "<" not in shown, (tag, page)
        assert html.unescape(shown).split() == wanted.split(), (tag, page)


@given(ANYTHING)
def test_latex_holds_no_special_character_of_a_text(text: str) -> None:
    written = latex(text)
    back = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<",
            r"\textgreater{}": ">", r"\textbar{}": "|", **{"\\" + c: c for c in "&%$#_{}"}}  # fmt: skip
    pattern = "|".join(map(re.escape, sorted(back, key=len, reverse=True)))
    assert not set(re.sub(pattern, "", written.removeprefix("{}"))) & set("\\~^&%$#_{}<>|")
    assert re.sub(pattern, lambda found: back[found[0]], written.removeprefix("{}")) == visible(text)
    assert written[:1] not in ("[", "*")  # after \\ they would be its arguments


@given(ANYTHING)
def test_a_note_stays_in_its_latex_comment(text: str) -> None:
    *_, last = TextTable("T", ["", "a"], [["r", "1"]], groups=["g"], notes=[text]).to_latex().rstrip("\n").split("\n")
    assert last == f"% {visible(text)}"
    assert all(c not in last for c in "\n\r\x0b\x0c\x85\u2028")


@given(st.lists(st.one_of(ANYTHING, st.integers(), st.floats(allow_nan=False), st.none()), min_size=1, max_size=5))
def test_csv_reads_back_and_holds_no_formula(values: list[str | float | None]) -> None:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(map(csv_cell, values))
    (row,) = csv.reader(io.StringIO(file.getvalue()))
    for value, cell in zip(values, row, strict=True):
        if isinstance(value, str):
            assert cell.removeprefix("'") == visible(value).removeprefix("'")
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        else:
            assert cell == ("" if value is None else repr(value))


def test_what_a_spreadsheet_takes_for_a_formula_is_a_text() -> None:
    assert csv_cell('=HYPERLINK("http://x","y")') == '\'=HYPERLINK("http://x","y")'
    assert [csv_cell(x) for x in ("+1", "-1", "@SUM(A1)", "a=b", -1.5, 7, None)] == [
        "'+1", "'-1", "'@SUM(A1)", "a=b", -1.5, 7, None,
    ]  # fmt: skip


def test_foreign_text_starts_no_line_on_a_terminal() -> None:
    table = TextTable(
        "ti\ntle", ["", "a\x1b[2J"], [["r\nforged", "1"]], notes=["n\u202eote"], pictures=[Path("p\n.png")]
    )
    assert table.to_text() == (
        "ti\\ntle\n\n           a\\x1b[2J\nr\\nforged         1\n\n  n\\u202eote\n  picture: p\\n.png\n"
    )
