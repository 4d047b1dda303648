"""Plain text tables: columns stand under one another, whatever the rows hold."""

from __future__ import annotations

from fsseg.process.tables import aligned


def test_first_column_is_left_and_the_others_right_with_two_blanks_between() -> None:
    assert aligned([("", "mIoU", "n"), ("fold 0", "7.1", "1000"), ("mean", "61.25", "")]) == "\n".join(
        (
            "         mIoU     n",
            "fold 0    7.1  1000",
            "mean    61.25",
        )
    )


def test_other_columns_may_be_left_and_no_line_ends_in_a_blank() -> None:
    rows = [["1", "old", "a"], ["22", "done", ""]]
    assert aligned(rows, left={1}) == " 1  old   a\n22  done"
    assert aligned(rows, left=()) == " 1   old  a\n22  done"


def test_short_rows_end_early_and_no_rows_are_no_text() -> None:
    assert aligned([["a", "10"], ["head"], ["b", "9"]]) == "a     10\nhead\nb      9"
    assert aligned([]) == ""
