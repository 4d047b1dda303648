"""How faults and foreign text are shown: no character of it acts on a terminal, and no text forges a line."""

from __future__ import annotations

import os
import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsseg.errors import Lines, UserError, merge_errors, visible


@given(st.text(st.characters()))
def test_what_is_shown_is_one_line_without_controls(text: str) -> None:
    shown = visible(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown)
    assert visible(shown) == shown
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ±1 — ü 中", "plain ±1 — ü 中"),
        ("\x1b[31m\x07\x9b", r"\x1b[31m\x07\x9b"),
        ("a\r\n\tb\x00", r"a\r\n\tb\x00"),
        ("\u202egnp.exe\u2066\u200b\ufeff", r"\u202egnp.exe\u2066\u200b\ufeff"),
        ("\u2028\u2029\x85", r"\u2028\u2029\x85"),
        (os.fsdecode(b"\xff\xc3("), r"\xff\xc3("),
        ("\ud800", r"\ud800"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_each_kind_of_character(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_fault_has_two_lines_whatever_it_names() -> None:
    error = UserError("no a\nforged: \x1b[2J", "b\r\nc")
    assert str(error).split("\n") == [r"no a\nforged: \x1b[2J", r"  -> b\r\nc"]
    assert str(UserError("a\nb")) == r"a\nb"
    again = pickle.loads(pickle.dumps(error))
    assert (again.what, str(again)) == (error.what, str(error))


def test_several_faults_keep_their_lines_and_no_more() -> None:
    merged = merge_errors([UserError("a\nforged", "x"), UserError("b")])
    wanted = ["2 faults:", r"- a\nforged", "  -> x", "- b"]
    assert str(merged).split("\n") == wanted
    assert str(pickle.loads(pickle.dumps(merged))).split("\n") == wanted
    assert str(UserError(Lines("c\nd"))) == "c\nd"
