"""`fsseg verify --deep`: what it lists, and what it finds."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from trees import make_coco, make_voc

from fsseg.config.schema import CocoConfig, PascalConfig
from fsseg.data.setup.digests import LIST
from fsseg.data.setup.verify import VerifyReport, verify
from fsseg.data.sources.coco import CocoSource
from fsseg.data.sources.voc import PascalSource
from fsseg.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def deep(root: Path, digests: Path | None = None, sbd: Path | None = None) -> VerifyReport:
    cfg = PascalConfig(name="pascal5i", root=str(root), sbd_root=None if sbd is None else str(sbd))
    return verify(PascalSource(cfg), decode=False, deep=True, digests=digests)


def sums(root: Path, names: list[str]) -> str:
    """What `sha256sum` prints, by hand."""
    return "".join(f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(names))


def flip_a_bit(path: Path) -> None:
    """In place, with size and time as they were."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_list_is_that_of_sha256sum_with_every_image_and_mask(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "data", "aug")
    ids = ["2007_t1", "2007_t2", "2007_v1", "2007_v2", "2008_s1", "2008_s2"]
    expected = sums(root, [f"JPEGImages/{i}.jpg" for i in ids] + [f"SegmentationClassAug/{i}.png" for i in ids])
    report = deep(root)
    assert report.ready
    assert (root / ".fsseg" / LIST).read_text() == expected
    mark = hashlib.sha256(expected.encode()).hexdigest()[:16]
    assert f"content of 12 image and mask files: fingerprint {mark}" in report.text()
    assert f"their SHA-256 are now in {root / '.fsseg' / LIST}" in report.text()


def test_coco_lists_its_annotation_files_once(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "data")
    verify(CocoSource(CocoConfig(name="coco20i", root=str(root))), decode=False, deep=True)
    files = [f"annotations/instances_{split}2014.json" for split in ("train", "val")]
    files += [f"{s}2014/COCO_{s}2014_00000000000{n}.jpg" for s in ("train", "val") for n in (7, 9)]
    assert (root / ".fsseg" / LIST).read_text() == sums(root, files)


@pytest.mark.parametrize("name", ["JPEGImages/2007_v1.jpg", "SegmentationClassAug/2008_s1.png"])
def test_a_flipped_bit_is_found_where_size_and_time_tell_nothing(name: str, tmp_path: Path) -> None:
    root = make_voc(tmp_path / "data", "aug")
    first = deep(root)
    again = deep(root)
    assert again.ready
    assert again.content[0] == first.content[0]
    assert f"12 as in {root / '.fsseg' / LIST}, 0 of other content, 0 not listed" in again.text()
    flip_a_bit(root / name)
    for _ in range(2):  # the list stays as it is
        report = deep(root)
        assert not report.ready
        assert [fault.path for fault in report.faults if "other content" in fault.kind] == [str(root / name)]
        assert "11 as in" in report.text()
        assert report.content[0] != first.content[0]


def test_two_machines_are_compared_by_a_list_that_is_carried_over(tmp_path: Path) -> None:
    """SBD lies in another place on the second; that changes nothing."""
    one, carried = make_voc(tmp_path / "one" / "VOC2012"), tmp_path / "carried.sha256"
    first = deep(one, carried)
    two = shutil.copytree(one, tmp_path / "two" / "VOC2012", ignore=shutil.ignore_patterns(".fsseg"))
    (two / "SBD").rename(tmp_path / "two" / "elsewhere")
    shutil.move(one / "SBD", tmp_path / "one" / "SBD")
    assert deep(one, tmp_path / "beside.sha256").content[0] != first.content[0]  # now both lie outside
    second = deep(two, tmp_path / "beside.sha256", sbd=tmp_path / "two" / "elsewhere")
    assert second.ready
    assert "0 of other content, 0 not listed" in second.text()
    assert not (two / ".fsseg" / LIST).exists()
    flip_a_bit(two / "JPEGImages" / "2007_t1.jpg")
    (two / "JPEGImages" / "2007_t2.jpg").unlink()
    third = deep(two, tmp_path / "beside.sha256", sbd=tmp_path / "two" / "elsewhere")
    assert [Path(fault.path).name for fault in third.faults] == ["2007_t1.jpg"]
    assert third.missing_images["train"] == [str(two / "JPEGImages" / "2007_t2.jpg")]


@pytest.mark.parametrize("content", ["", "nonsense\n", "12ab  x.jpg\n"])
def test_a_list_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(content)
    with pytest.raises(UserError, match="is no list of SHA-256 digests"):
        deep(make_voc(tmp_path / "data", "aug"), tmp_path / "list")


def test_a_list_that_cannot_be_written_or_read_is_refused(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "data", "aug")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        deep(root, tmp_path / "file" / "list")
    with pytest.raises(UserError, match="cannot be read"):
        deep(root, tmp_path)
