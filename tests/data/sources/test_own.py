"""Novel classes and splits of a user's own data."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_folder import SORTED, make, source
from trees import write_list

from fsseg.config.checks import faults
from fsseg.config.compose import compose
from fsseg.config.schema import FolderConfig
from fsseg.data.folds import base_classes, uneven_fold
from fsseg.data.sources.own import drawn, listed, same_names
from fsseg.errors import UserError

IDS = [f"img{n}" for n in range(30)]


def test_folds_are_cut_over_the_sorted_names_the_first_ones_larger() -> None:
    assert [uneven_fold(7, 3, fold) for fold in range(3)] == [(0, 1, 2), (3, 4), (5, 6)]
    assert [uneven_fold(20, 4, fold) for fold in range(4)] == [tuple(range(5 * f, 5 * f + 5)) for f in range(4)]
    with pytest.raises(UserError, match="fold=3"):
        uneven_fold(7, 3, 3)
    with pytest.raises(UserError, match="only 2 classes"):
        uneven_fold(2, 3, 0)


@given(st.integers(1, 60), st.data())
def test_every_class_is_novel_in_exactly_one_fold(classes: int, data: st.DataObject) -> None:
    folds = data.draw(st.integers(1, classes))
    parts = [uneven_fold(classes, folds, fold) for fold in range(folds)]
    assert [c for part in parts for c in part] == list(range(classes))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("form", ["indexed", "classes"])
def test_novel_classes_by_name_and_by_fold(form: str, tmp_path: Path) -> None:
    root = make(tmp_path, form)
    by_name = source(root, novel=["zebra", "ant"])
    assert [SORTED[c] for c in by_name.novel_classes(0)] == ["ant", "zebra"]
    assert [SORTED[c] for c in source(root).novel_classes(1)] == ["zebra"]
    # models that know the base classes ask the configuration, which looks at the disk
    assert base_classes(FolderConfig(name="folder", root=str(root), image_size=81, novel=["okapi"]), 0) == (0, 2)
    assert base_classes(FolderConfig(name="folder", root=str(root), image_size=81), 1) == (0, 1)


def test_named_classes_are_fold_0_alone() -> None:
    line = ["dataset=folder", "dataset.novel=[zebra]", "method=prototype", "backbone.pretrained=false"]
    assert not faults(compose([*line, "fold=0"]).cfg)
    (fault,) = faults(compose([*line, "fold=1"]).cfg)
    assert "fold=1: with dataset.novel=['zebra'] there is fold 0 alone" in fault.what
    (fault,) = faults(compose(["dataset=folder", "method=prototype", "backbone.pretrained=false", "fold=2"]).cfg)
    assert "folder has folds 0 to 1" in fault.what


@given(st.floats(0.01, 1), st.integers(0, 5), st.integers(0, 40))
def test_no_image_is_drawn_for_both_sides(share: float, seed: int, number: int) -> None:
    ids = [f"img{n}" for n in range(number)]
    evaluated = drawn(ids, share, seed)
    assert abs(len(evaluated) - share * number) <= 0.5
    assert evaluated == drawn(ids[::-1], share, seed)
    assert evaluated <= set(ids)


def test_the_draw_depends_on_the_seed_and_moves_one_image_at_most_when_one_comes() -> None:
    assert drawn(IDS, 0.3, 0) != drawn(IDS, 0.3, 1)
    before, after = drawn(IDS, 0.3, 0), drawn([*IDS, "new"], 0.3, 0)
    assert len(before ^ after) <= 2


def test_splits_by_lists_and_by_what_a_list_leaves(tmp_path: Path) -> None:
    root = make(tmp_path / "data", "indexed")
    write_list(tmp_path / "val.txt", ["images/day 1/c.jpg", "a"])
    folder = source(root, val_list=str(tmp_path / "val.txt"))
    assert list(folder.index("val").image_ids) == ["day 1/c", "a"]  # in the order of the list
    assert list(folder.index("train").image_ids) == ["b", "d"]
    assert "does not name" in folder.list_origin("train")
    write_list(tmp_path / "train.txt", ["a.jpg", "b"])
    both = source(root, val_list=str(tmp_path / "val.txt"), train_list=str(tmp_path / "train.txt"))
    with pytest.raises(UserError, match=r"images of both .*\(1\): .*a\.jpg"):
        both.check()


def test_faults_of_a_list_are_told_with_their_lines(tmp_path: Path) -> None:
    write_list(tmp_path / "l.txt", ["img1", "", "img99.jpg", "img1.png"])
    found, told = listed(str(tmp_path / "l.txt"), "dataset.val_list", IDS, "mine")
    assert found == ["img1"]
    assert [f.detail for f in told] == ["line 3, img99.jpg: no annotated image of mine", "line 4 names img1 again"]
    with pytest.raises(UserError, match=r"dataset\.val_list=.*none\.txt cannot be read: No such file"):
        listed(str(tmp_path / "none.txt"), "dataset.val_list", IDS, "mine")
    write_list(tmp_path / "empty.txt", [""])
    with pytest.raises(UserError, match="names no image"):
        listed(str(tmp_path / "empty.txt"), "dataset.val_list", IDS, "mine")


def test_names_that_only_differ_by_case_and_blanks_are_the_same() -> None:
    assert same_names(["a", "B", "b", "c  d", "C d"]) == [("B", "b"), ("c  d", "C d")]
