"""Overrides before Hydra reads them: texts stay as written, and what would choke its parser is refused."""

from __future__ import annotations

import pytest

from fsseg.cell.key import cell_key
from fsseg.config.compose import compose, composer
from fsseg.config.line import as_written
from fsseg.errors import UserError


@pytest.mark.parametrize("name", ["1.10", "1e3", "1_000", "true", "007", "1.0", "2012", "-0.50", "1.10-b", "inf"])
def test_a_text_stays_as_written(name: str) -> None:
    one = compose([f"name={name}", f"variant={name}", "dataset=pascal5i", f"dataset.train_list={name}"]).cfg
    assert (one.name, one.variant, one.dataset.train_list) == (name, name, name)


def test_so_it_does_in_a_sweep_and_in_the_directory() -> None:
    with composer() as c:
        cells = [made for _, made in c.grid(["name=1.10,1.20,2", "variant=3.50"])]
    keys = [cell_key(made.cfg, made.task_overrides) for made in cells if not isinstance(made, UserError)]
    assert [(key.name, key.variant) for key in keys] == [("1.10", "3.50"), ("1.20", "3.50"), ("2", "3.50")]


@pytest.mark.parametrize(
    "word",
    ["name=v1", "name=2012", "variant=null", "train.lr=1e-3", "name='1.10'", "seed=0,1", "model.neck_prior=false",
     "dataset.val_list=val", "name=${variant}", "experiment=smoke", "protocol.seeds=[0,1]", "-m", "--cfg", "~variant"],
)  # fmt: skip
def test_what_needs_no_quotes_is_left_alone(word: str) -> None:
    """The text of an override is part of a directory's name."""
    assert as_written([word]) == [word]


@pytest.mark.parametrize("opened", ["{b:", "[", "choice("])
@pytest.mark.parametrize("depth", [21, 10_000])
def test_brackets_have_a_depth(opened: str, depth: int) -> None:
    closed = {"{b:": "}", "[": "]", "choice(": ")"}[opened]
    with pytest.raises(UserError, match=f"{depth} brackets") as caught:
        compose([f"+a={opened * depth}1{closed * depth}"])
    assert len(str(caught.value)) < 600
    assert len(str(caught.value).splitlines()) == 2


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(UserError, match="not UTF-8"):
        compose([b"name=\xff".decode(errors="surrogateescape")])


@pytest.mark.parametrize(
    "word", ["seed=" + "1" * 5000, "train.lr=" + "9" * 400, "name='" + "x" * 100_000 + "'", "train.lr=[1", "=", "a=b=c"]
)
def test_a_line_that_hydra_cannot_read_ends_in_two_lines(word: str) -> None:
    from fsseg.config.checks import validate

    with pytest.raises(UserError) as caught:
        validate(compose([word]).cfg)
    assert len(str(caught.value).splitlines()) == 2
    assert len(str(caught.value)) < 1500
