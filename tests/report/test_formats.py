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
from fsseg.report.formats import Number, TextTable, csv_cell
from fsseg.report.latex import latex
from fsseg.report.statistics import Interval

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
    assert r"ours & 1.0$^{*}$ & --- & 3.0{\scriptsize\,$\pm$0.5} & --- \\" in lines
    assert r"\quad paper &  &  & 4.0 &  \\" in lines
    assert lines[-1] == "% * without x"


def test_latex_sets_the_best_of_ours_bold_published_rows_grey_and_intervals_small() -> None:
    table = TextTable("T", ["", "a", "b"], scores=(1,), published={1})
    interval, below = Interval(58.04, 63.25, "query images"), Interval(-4.0, -0.5, "runs")
    table.rows = [["one", Number("60.7 ±0.2", 60.71, 0.21, interval), "9.0"], ["  paper", "72.9", "9.5"],
                  ["two", Number("60.7", 60.66), Number("1.0", 1.0, None, below)],
                  ["three", "-5.0", "2"], ["four", "90.0 (*)", "—"]]  # fmt: skip
    lines = [line.strip() for line in table.to_latex().splitlines()]
    start = lines.index(r"\midrule") + 1
    assert lines[start : start + 7] == [
        r"one & \textbf{60.7}{\scriptsize\,$\pm$0.2} & 9.0 \\",
        r"\quad{\scriptsize 95\,\% interval} & {\scriptsize [58.0, 63.2]} &  \\",
        r"\textcolor{gray}{\quad paper} & \textcolor{gray}{72.9} & \textcolor{gray}{9.5} \\",
        r"two & \textbf{60.7} & 1.0 \\",
        r"\quad{\scriptsize 95\,\% interval} &  & {\scriptsize [$-$4.0, $-$0.5]} \\",
        r"three & $-$5.0 & 2 \\",
        r"four & 90.0$^{*}$ & --- \\",
    ]
    assert r"\caption{T. 95 \% intervals are over query images, or runs.}" in lines


def test_csv_and_json_keep_all_decimals_and_hold_no_formula() -> None:
    table = TextTable("T", ["", "mean", "mean", "-1"], groups=[], published={1}, notes=["n"])
    table.rows = [["=cmd", Number("60.7 ±0.2", 60.71, 0.21, Interval(58.04, 63.25, "runs")), "+1.50", "@x"],
                  ["  paper", "72.9", "—", ""]]  # fmt: skip
    assert list(csv.reader(io.StringIO(table.to_csv()))) == [
        ["row", "kind", "mean", "mean std", "mean low", "mean high", "mean (2)", "'-1"],
        ["'=cmd", "ours", "60.71", "0.21", "58.04", "63.25", "1.5", "'@x"],
        ["paper", "published", "72.9", "", "", "", "", ""],
    ]
    found = table.to_json()
    assert found["rows"][0]["cells"]["mean"] == {
        "text": "60.7 ±0.2", "value": 60.71, "std": 0.21, "low": 58.04, "high": 63.25,
    }  # fmt: skip
    assert found["rows"][0]["cells"]["-1"] == {"text": "@x"}
    assert found["rows"][1] == {"row": "paper", "kind": "published", "cells": {
        "mean": {"text": "72.9", "value": 72.9}, "mean (2)": {"text": "—", "value": None},
        "-1": {"text": "", "value": None},
    }}  # fmt: skip


def test_latex_writes_every_character_so_that_any_tex_can_show_it() -> None:
    for text, written in (
        ("a_b%c&d#e$f", r"a\_b\%c\&d\#e\$f"),
        ("x^y~{q}|\\w", r"x\textasciicircum{}y\textasciitilde{}\{q\}\textbar{}\textbackslash{}w"),
        ("é ñ Å ç ž í", r"\'{e} \~{n} \r{A} \c{c} \v{z} \'{\i}"),
        ("ł ß ± —", r"\l{} \ss{} $\pm$ ---"),
        ("a--b ,,", "a-{}-b ,{},"),
        ("日本!", r"\ifdefined\Umathcode 日本\else{}[U+65E5 U+672C]\fi{}!"),
        ("[x]", "{}[x]"),
        ("*", "{}*"),
        ("\x1b[2J\n", r"\textbackslash{}x1b[2J\textbackslash{}n"),
    ):
        assert latex(text) == written


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


@given(st.text(st.one_of(st.characters(max_codepoint=127), st.sampled_from("\\|`*_~<>&[](){}$#%^=+-@!:\t\r\n\x1b'\""))))
def test_latex_holds_no_special_character_of_a_text(text: str) -> None:
    written = latex(text).removeprefix("{}")
    back = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<",
            r"\textgreater{}": ">", r"\textbar{}": "|", r"\`{}": "`", r"\char34{}": '"', "{}": "",
            **{"\\" + c: c for c in "&%$#_{}"}}  # fmt: skip
    pattern = "|".join(map(re.escape, sorted(back, key=len, reverse=True)))
    assert not set(re.sub(pattern, "", written)) & set('\\~^&%$#_{}<>|`"')
    assert re.sub(pattern, lambda found: back[found[0]], written) == visible(text)
    assert "--" not in written
    assert latex(text)[:1] not in ("[", "*")  # after \\ they would be its arguments


@given(ANYTHING)
def test_latex_of_any_text_has_its_braces_and_conditions_closed(text: str) -> None:
    written = latex(text)
    plain = re.sub(r"\\[{}\\]", "", written.replace(r"\textbackslash{}", ""))
    assert plain.count("{") == plain.count("}")
    assert written.count("\\ifdefined") == written.count("\\fi{}") == written.count("\\else{}")
    assert "\n" not in written


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
