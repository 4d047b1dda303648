from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from trees import SBD_MASKS, TRAIN_AUG, TRAIN_PAIRS, VAL_PAIRS, VOC_MASKS, make_voc, write_jpeg, write_list, write_png

from fsseg.config.compose import compose
from fsseg.config.schema import PascalConfig
from fsseg.data.images import read_labels
from fsseg.data.source import ClassIndex, Split
from fsseg.data.sources.voc import PascalSource
from fsseg.errors import UserError


def source(root: Path, **changes) -> PascalSource:
    return PascalSource(PascalConfig(name="pascal5i", root=str(root), **changes))


def triples(index: ClassIndex) -> list[tuple[int, int, int]]:
    return list(zip(index.pair_image.tolist(), index.pair_class.tolist(), index.pair_pixels.tolist()))


@pytest.mark.parametrize("masks", ["sbd", "aug", "both"])
def test_png_mat_and_ready_made_masks_give_the_same_lists(tmp_path: Path, masks: str) -> None:
    voc = source(make_voc(tmp_path / "VOC2012", masks))
    train, val = voc.index("train"), voc.index("val")
    assert list(train.image_ids) == TRAIN_AUG
    assert triples(train) == TRAIN_PAIRS
    assert list(val.image_ids) == ["2007_v1", "2007_v2"]
    assert triples(val) == VAL_PAIRS


def test_sbd_is_found_where_its_archive_unpacks(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "VOCdevkit" / "VOC2012")
    (tmp_path / "benchmark_RELEASE").mkdir()
    (root / "SBD").rename(tmp_path / "benchmark_RELEASE" / "dataset")
    assert triples(source(root).index("train")) == TRAIN_PAIRS
    assert triples(source(root, sbd_root=str(tmp_path / "benchmark_RELEASE")).index("train")) == TRAIN_PAIRS
    with pytest.raises(UserError, match="sbd_root"):
        source(root, sbd_root=str(root / "JPEGImages")).index("train")


def test_derived_list_says_what_it_comes_from(tmp_path: Path) -> None:
    assert "SBD" in source(make_voc(tmp_path / "a")).list_origin("train")
    aug = make_voc(tmp_path / "b", "aug")
    assert "all masks" in source(aug).list_origin("train")
    write_list(aug / "ImageSets" / "Segmentation" / "train_aug.txt", TRAIN_AUG)
    assert "list train_aug" in source(aug).list_origin("train")
    assert list(source(aug).index("train").image_ids) == TRAIN_AUG


def test_the_default_pool_has_a_name(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    named, default = (source(root, train_list=name) for name in ("train_aug_10582", None))
    assert named.list_origin("train") == default.list_origin("train")
    assert named.index("train").fingerprint == default.index("train").fingerprint


def with_noval(root: Path, folder: Path, lines: str = "2008_s2\n2007_t2\n2007_v2\n") -> Path:
    """Adds a `train_noval.txt` that names an image of VOC's train list too, and, unlike SBD's, one of VOC's val."""
    (folder / "train_noval.txt").write_bytes(lines.encode())
    return root


@pytest.mark.parametrize("lines", ["2008_s2\n2007_t2\n2007_v2\n", "\ufeff2008_s2\r\n\r\n2007_t2\r\n2007_v2"])
@pytest.mark.parametrize(("masks", "place"), [("sbd", "SBD"), ("sbd", "ImageSets/Segmentation"),
                                              ("aug", "ImageSets/Segmentation")])  # fmt: skip
def test_the_merged_pool_is_train_noval_and_vocs_train_each_image_once_and_without_val(
    tmp_path: Path, masks: str, place: str, lines: str
) -> None:
    root = make_voc(tmp_path, masks)
    merged = source(with_noval(root, root / place, lines), train_list="merged_5953")
    assert merged.index("train").image_ids == ("2007_t1", "2007_t2", "2008_s2")
    assert merged.list_origin("train") == f"SBD train_noval ({root / place}/train_noval.txt) plus VOC train, minus val"
    assert PascalSource.check_folder(PascalConfig(name="pascal5i", root=str(root), train_list="merged_5953")) == []


def test_the_evaluation_list_is_taken_out_of_the_merged_pool_too(tmp_path: Path) -> None:
    root = with_noval(make_voc(tmp_path), tmp_path / "SBD")
    write_list(tmp_path / "mine.txt", ["2008_s2"])
    merged = source(root, train_list="merged_5953", val_list=str(tmp_path / "mine.txt"))
    assert merged.index("train").image_ids == ("2007_t1", "2007_t2")


def test_a_list_of_the_merged_pools_name_is_used(tmp_path: Path) -> None:
    root = make_voc(tmp_path, "aug")
    write_list(root / "ImageSets" / "Segmentation" / "merged_5953.txt", ["2008_s1", "2007_t1", "2007_v1"])
    merged = source(root, train_list="merged_5953")
    assert merged.index("train").image_ids == ("2007_t1", "2008_s1")
    assert merged.list_origin("train") == "the list merged_5953, minus val"


def test_without_its_files_the_merged_pool_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "v")
    cfg = PascalConfig(name="pascal5i", root=str(root), train_list="merged_5953")
    (error,) = PascalSource.check_folder(cfg)
    assert PascalSource.check_folder(cfg, ["val"]) == []
    for part in ("merged_5953", f"{root}/SBD/train_noval.txt", f"{root}/ImageSets/Segmentation/train_noval.txt"):
        assert part in error.what
    for part in ("https://www.cs.cornell.edu/~bharathh/train_noval.txt", "79bff800c5f0b1ec6b21080a3c066722",
                 f"fsseg prepare dataset=pascal5i dataset.root={root} --download",
                 "protocol.train_pool=train_aug_10582"):  # fmt: skip
        assert part in error.fix
    with pytest.raises(UserError) as caught:
        source(root, train_list="merged_5953").index("train")
    assert str(caught.value) == str(error)
    with_noval(root, root / "SBD")
    (root / "ImageSets" / "Segmentation" / "train.txt").unlink()
    (error,) = PascalSource.check_folder(cfg)
    assert f"VOC's own train list: there is no {root}/ImageSets/Segmentation/train.txt" in error.what


def test_the_digest_of_train_noval_is_torchvisions() -> None:
    torchvision = pytest.importorskip("torchvision.datasets").SBDataset
    parts = PascalSource.parts(PascalConfig(name="pascal5i", root="/no/such/folder"))
    (archive,) = (part.archive for part in parts if part.only_for)
    assert archive.name == torchvision.voc_split_filename
    assert archive.urls == (torchvision.voc_train_url,)
    assert archive.md5 == torchvision.voc_split_md5


def test_a_list_that_is_not_there_is_found_by_name_alone(tmp_path: Path) -> None:
    root = str(make_voc(tmp_path))
    cfg = PascalConfig(name="pascal5i", root=root, train_list="no_such", val_list="none/such.txt")
    errors = [error.what for error in PascalSource.check_folder(cfg)]
    assert ["dataset.train_list=no_such: neither" in errors[0], "dataset.val_list=none/such.txt" in errors[1]] == [
        True
    ] * 2


def test_a_file_of_the_current_folder_is_written_with_a_dot(tmp_path: Path, monkeypatch) -> None:
    """A bare name is the identity of a cell; a file of that name in whatever folder one stands in is another list."""
    root = make_voc(tmp_path / "v")
    monkeypatch.chdir(tmp_path)
    for name in ("mine.txt", "train", "val", "merged_5953"):
        write_list(tmp_path / name, ["2008_s2", "2007_v1"])
    with pytest.raises(UserError, match="neither") as caught:
        source(root, train_list="mine.txt").index("train")
    assert "dataset.train_list=./mine.txt" in caught.value.fix
    assert source(root, train_list="./mine.txt").index("train").image_ids == ("2008_s2", "2007_v1")
    assert source(root, train_list="train").index("train").image_ids == ("2007_t1", "2007_t2")
    with pytest.raises(UserError, match="needs SBD's train_noval"):
        source(root, train_list="merged_5953").index("train")


def test_a_path_is_the_file_that_the_identity_is_made_of(tmp_path: Path, monkeypatch) -> None:
    """The file under ImageSets/Segmentation of the same relative path is another one."""
    root = make_voc(tmp_path / "v")
    monkeypatch.chdir(tmp_path)
    write_list(root / "ImageSets" / "Segmentation" / "my" / "list.txt", ["2007_t1"])
    assert source(root, train_list="my/list.txt").index("train").image_ids == ("2007_t1",)
    write_list(tmp_path / "my" / "list.txt", ["2007_t2"])
    assert source(root, train_list="my/list.txt").index("train").image_ids == ("2007_t2",)


def test_nothing_to_derive_the_training_list_from(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    (root / "SBD").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="nothing to derive train_aug from") as caught:
        source(root).index("train")
    assert "dataset.train_list=train" in caught.value.fix
    assert list(source(root, train_list="train").index("train").image_ids) == ["2007_t1", "2007_t2"]


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "JPEGImages/{}.jpg SegmentationClassAug/{}.png",
        "/JPEGImages/{}.jpg /SegmentationClassAug/{}.png",
        "{}__15",
    ],
)
def test_lists_are_read_in_every_published_form_and_in_their_order(tmp_path: Path, line: str) -> None:
    root = make_voc(tmp_path / "v")
    write_list(tmp_path / "mine.lst", [line.replace("{}", i) for i in ("2008_s2", "2007_t1")] + [""])
    assert source(root, train_list=str(tmp_path / "mine.lst")).index("train").image_ids == ("2008_s2", "2007_t1")


def test_an_image_may_stand_in_a_pair_list_once_per_class(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "v")
    write_list(tmp_path / "pairs.txt", ["2007_t1__01", "2008_s2__15", "2007_t1__15"])
    assert source(root, train_list=str(tmp_path / "pairs.txt")).index("train").image_ids == ("2007_t1", "2008_s2")


def test_unknown_list_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.val_list=vall: .*train, val"):
        source(make_voc(tmp_path), val_list="vall").index("val")


def test_every_fault_of_masks_and_list_is_told_in_one_go(tmp_path: Path) -> None:
    root = make_voc(tmp_path, "aug")
    masks = root / "SegmentationClassAug"
    (masks / "2007_t1.png").unlink()
    (masks / "2007_t2.png").write_bytes(b"nonsense")
    write_png(masks / "2008_s1.png", np.full((4, 5), 21, np.uint8))
    write_list(tmp_path / "l.txt", [*TRAIN_AUG, "2008_s2"])
    with pytest.raises(UserError) as caught:
        source(root, train_list=str(tmp_path / "l.txt")).index("train")
    message = str(caught.value)
    for part in ("2007_t1", "2007_t2.png", "2008_s1.png: holds 21", "line 5 names 2008_s2 again"):
        assert part in message


def test_mask_marks_the_class_the_boundary_and_what_is_to_be_ignored(tmp_path: Path) -> None:
    voc = source(make_voc(tmp_path))
    labels = VOC_MASKS["2007_t1"]  # 500 pixels of value 1, 30 of 15, 20 of 255
    expected = np.zeros_like(labels)
    expected[labels == 1] = 1
    expected[labels == 255] = 255
    np.testing.assert_array_equal(voc.mask("train", "2007_t1", 0), expected)
    expected[labels == 15] = 255
    np.testing.assert_array_equal(voc.mask("train", "2007_t1", 0, ignore_classes=[14, 3]), expected)
    assert not voc.mask("train", "2008_s1", 0).any()


def test_sbd_mask_is_read_where_voc_has_none_and_vocs_where_both_are(tmp_path: Path) -> None:
    voc = source(make_voc(tmp_path))
    for image_id, labels in {"2008_s1": SBD_MASKS["2008_s1"], "2007_t2": VOC_MASKS["2007_t2"]}.items():
        np.testing.assert_array_equal(read_labels(voc.mask_path("train", image_id)), labels)


def test_mask_of_another_size_than_its_image_is_refused(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    write_jpeg(root / "JPEGImages" / "2007_t1.jpg", (40, 51))
    with pytest.raises(UserError, match=r"2007_t1\.png is 50x40 pixels, but image .*2007_t1\.jpg is 51x40"):
        source(root).mask("train", "2007_t1", 0)


def test_index_needs_no_images_but_check_does(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    (root / "JPEGImages" / "2008_s1.jpg").unlink()
    voc = source(root)
    assert triples(voc.index("train")) == TRAIN_PAIRS
    assert voc.missing_images("train") == ["2008_s1"]
    assert voc.missing_images("val") == []
    with pytest.raises(UserError, match=r"missing images of the train list \(1\).*2008_s1\.jpg"):
        voc.check()
    voc.check(["val"])


def test_pickled_source_is_small_and_works(tmp_path: Path) -> None:
    voc = source(make_voc(tmp_path))
    before = voc.index("train").fingerprint
    copy = pickle.loads(pickle.dumps(voc))
    assert len(pickle.dumps(voc)) < 2000
    assert copy.index("train").fingerprint == before
    assert copy.image("train", "2007_t1").shape == (40, 50, 3)


def test_folder_check_says_what_is_expected_found_and_how_to_get_it(tmp_path: Path) -> None:
    def check(root: Path) -> list[UserError]:
        return PascalSource.check_folder(PascalConfig(name="pascal5i", root=str(root)))

    (absent,) = check(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in absent.what
    assert "SegmentationClass" in absent.what
    assert f"fsseg prepare dataset=pascal5i dataset.root={tmp_path / 'nowhere'} --download" in absent.fix
    (tmp_path / "empty").mkdir()
    assert "it is empty" in check(tmp_path / "empty")[0].what
    (tmp_path / "empty" / "VOCdevkit").mkdir()
    assert "it holds VOCdevkit" in check(tmp_path / "empty")[0].what
    assert check(make_voc(tmp_path / "good")) == []


@pytest.mark.parametrize(
    ("line", "images"),
    [
        ("fold=2", 4767),
        ("fold=2 protocol.train_pool=merged_5953", 2752),
        ("fold=2 protocol=bam", 2752),
        ("fold=2 protocol=pfenet", 4097),  # keep
        ("fold=2 protocol.list_rule=grid", None),
        ("fold=2 dataset.train_list=train_aug protocol=hsnet", None),  # HSNet's lists take objects of any size
        ("fold=2 dataset.train_list=train_aug protocol.novel_in_training=background", 7154),
        ("fold=2 dataset.train_list=train", None),
        ("fold=4 dataset.num_folds=5", None),  # not the published folds
    ],
)
def test_training_images_are_known_where_the_lists_are_the_published_ones(line: str, images: int | None) -> None:
    cfg = compose(["dataset=pascal5i", *line.split()]).cfg
    assert PascalSource.training_images(cfg) == images


def real(shared: Path, tmp: Path, **changes) -> PascalSource:
    return source(shared / "data" / "voc_part", cache=str(tmp), **changes)


def with_area(index: ClassIndex, classes: list[int], least: int) -> dict[int, set[int]]:
    keep = index.pair_pixels >= least
    return {c: set(index.pair_image[keep & (index.pair_class == c)].tolist()) for c in classes}


@pytest.mark.shared
@pytest.mark.parametrize("fold", range(4))
def test_real_masks_give_the_published_list_sizes(shared_dir, voc_cache: Path, fold: int) -> None:
    facts = json.loads((shared_dir / "facts" / "folds.json").read_text())["pascal5i"]
    sizes = facts["list_sizes_from_masks"]["folds"][str(fold)]
    names, novel = facts["classes"], facts["folds"][str(fold)]
    base = [c for c in range(20) if c not in novel]

    val = with_area(real(shared_dir, voc_cache).index("val"), novel, 2048)
    assert {names[c]: len(images) for c, images in val.items()} == sizes["val"]["per_class"]
    assert len(set().union(*val.values())) == sizes["val"]["images"]

    for pool, train_list in (("train_aug_10582", None), ("pfenet_list_5953", "pfenet_train")):
        index = real(shared_dir, voc_cache, train_list=train_list).index("train")
        assert len(index.image_ids) == int(pool.rsplit("_", 1)[1])
        train = with_area(index, base, 2048)
        assert len(set().union(*train.values())) == sizes[pool]["images_keep"]
        holds_novel = set().union(*with_area(index, novel, 1).values())
        assert {names[c]: len(images - holds_novel) for c, images in train.items()} == sizes[pool]["per_class_drop"]
        assert len(set().union(*train.values()) - holds_novel) == sizes[pool]["images_drop"]


@pytest.mark.shared
def test_lists_of_the_real_part_have_all_their_images(shared_dir, voc_cache: Path) -> None:
    part = real(shared_dir, voc_cache, train_list="part_train", val_list="part_val")
    splits: list[Split] = ["train", "val"]
    part.check(splits)
    assert [len(part.index(s).image_ids) for s in splits] == [422, 445]
    everything = real(shared_dir, voc_cache)
    here = {name.removesuffix(".jpg") for name in os.listdir(shared_dir / "data/voc_part/JPEGImages")}
    for split, size in (("train", 10582), ("val", 1449)):
        missing, listed = everything.missing_images(split), everything.index(split).image_ids
        assert len(listed) == size
        assert missing == [image_id for image_id in listed if image_id not in here]
        assert 0 < len(missing) < size
