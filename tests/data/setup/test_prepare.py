from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from server import Site, serve
from trees import TRAIN_PAIRS, make_coco, make_voc

from fsseg.config.schema import CocoConfig, PascalConfig
from fsseg.data.setup.download import Need, Part
from fsseg.data.setup.prepare import fetch_part, prepare, state_of
from fsseg.data.sources.voc import PascalSource
from fsseg.errors import UserError
from fsseg.process.files import ClaimLost


@pytest.fixture(autouse=True)
def direct(monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def tar_of_tree(root: Path, names: list[str], prefix: str, compress: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w{compress}") as tar:
        for name in names:
            tar.add(root / name, arcname=f"{prefix}/{name}")
    return buffer.getvalue()


@pytest.fixture
def official(tmp_path: Path) -> dict[str, bytes]:
    """Archives of a small VOC2012 and SBD, laid out as the official ones."""
    root = make_voc(tmp_path / "made", "sbd")
    voc = tar_of_tree(root, ["JPEGImages", "SegmentationClass", "ImageSets"], "VOCdevkit/VOC2012")
    sbd = tar_of_tree(root / "SBD", ["cls", "train.txt", "val.txt"], "benchmark_RELEASE/dataset", ":gz")
    return {"/voc.tar": voc, "/sbd.tgz": sbd, "/train_noval.txt": b"2008_s2\n2007_t2\n"}


OFFICIAL = PascalSource.parts
COUNTS = {12031: 6, 2913: 4, 11355: 4}
"""Files of the official archives, and of those of `make_voc`."""


@contextlib.contextmanager
def served(files: dict[str, bytes], **behaviour: Any) -> Iterator[Site]:
    """The archives on a server, and PASCAL made of them: its own parts with the counts of `make_voc`."""

    def small(need: Need) -> Need:
        return replace(need, count=COUNTS.get(need.count, need.count))

    def parts(cfg: PascalConfig, fetch: bool = False) -> tuple[Part, ...]:
        found = []
        for part, path in zip(OFFICIAL(cfg, fetch), ("/voc.tar", "/sbd.tgz", "/train_noval.txt")):
            content = files[path]
            archive = replace(
                part.archive, name=path[1:], urls=(site.url + path,), unpacked=0, md5=hashlib.md5(content).hexdigest(),
                size=None if part.archive.size is None else len(content),
            )  # fmt: skip
            found.append(
                replace(part, archive=archive, needs=tuple(map(small, part.needs)),
                        instead=tuple(map(small, part.instead)))
            )  # fmt: skip
        return tuple(found)

    with serve(Site(files=files, **behaviour)) as site, pytest.MonkeyPatch.context() as patch:
        patch.setattr(PascalSource, "parts", parts)
        yield site


def config(root: Path, **changes) -> PascalConfig:
    return PascalConfig(name="pascal5i", root=str(root), **changes)


def test_what_is_missing_is_said_with_folder_size_and_archive(tmp_path: Path) -> None:
    report = prepare(config(tmp_path / "VOC2012"))
    text = report.text()
    assert not report.complete
    assert "VOCtrainval_11-May-2012.tar (2000 MB" in text
    assert f"{tmp_path / 'VOC2012' / 'JPEGImages'}: 12031 files *.jpg expected, 0 found" in text
    assert "benchmark.tgz" in text
    command = f"fsseg prepare dataset=pascal5i dataset.root={tmp_path / 'VOC2012'} --download"
    assert f"`{command}` fetches what is missing: 3.4 GB" in text
    assert report.verified is None
    assert not (tmp_path / "VOC2012").exists()


def test_fetching_makes_a_tree_that_is_indexed_and_verified(tmp_path: Path, official: dict[str, bytes]) -> None:
    root = tmp_path / "data" / "VOC2012"
    with served(official, break_after=3000) as site:
        report = prepare(config(root), fetch=True, pause=0)
        assert report.complete
        assert report.fetched == ["voc.tar", "sbd.tgz", "train_noval.txt"]
        assert report.verified is not None
        assert report.verified.ready
        assert report.verified.lists["train"][1] == 4
        requests = len(site.requests)
        again = prepare(config(root), fetch=True, pause=0)
        assert again.fetched == []
        assert len(site.requests) == requests
    assert sorted(p.name for p in root.iterdir() if p.name != ".fsseg") == [
        "ImageSets",
        "JPEGImages",
        "SBD",
        "SegmentationClass",
    ]
    assert list((root / ".fsseg" / "archives").iterdir()) == []
    assert not (root / ".fsseg" / "prepare.lock").exists()


def merged(root: Path) -> PascalConfig:
    return config(root, train_list="merged_5953")


@pytest.mark.parametrize("masks", ["sbd", "aug"])
def test_the_list_of_the_merged_pool_is_fetched_and_checked(
    tmp_path: Path, official: dict[str, bytes], masks: str
) -> None:
    root = make_voc(tmp_path / "v", masks)
    place = root / "ImageSets" / "Segmentation" / "train_noval.txt"
    with served(official) as site:
        before = prepare(config(root))
        assert before.complete  # no run with the default pool needs it
        assert (
            f"missing: train_noval.txt ({site.url}/train_noval.txt), which only protocol.train_pool=merged_5953 needs"
            in before.text()
        )
        assert "--download` fetches what is missing\n" in before.text()
        needed = prepare(merged(root))
        assert not needed.complete
        assert needed.verified is None
        assert "which only" not in needed.text()
        assert prepare(merged(root), fetch=True, pause=0).fetched == ["train_noval.txt"]
        assert place.read_bytes() == official["/train_noval.txt"]
        requests = len(site.requests)
        again = prepare(merged(root), fetch=True, pause=0)
        assert (again.fetched, again.complete, len(site.requests)) == ([], True, requests)
        assert again.verified.lists["train"][1] == 3
        assert "there: all that train_noval.txt brings" in again.text()
        assert list((root / ".fsseg" / "archives").iterdir()) == []
    assert PascalSource(merged(root)).index("train").image_ids == ("2007_t1", "2007_t2", "2008_s2")


@pytest.mark.parametrize("place", ["SBD/train_noval.txt", "ImageSets/Segmentation/merged_5953.txt"])
def test_what_stands_for_that_list_is_not_fetched(tmp_path: Path, official: dict[str, bytes], place: str) -> None:
    root = make_voc(tmp_path / "v")
    (root / place).write_text("2007_t2\n")
    with served(official) as site:
        report = prepare(merged(root), fetch=True, pause=0)
        assert (report.fetched, report.complete, site.requests) == ([], True, [])


def test_ready_made_masks_do_not_stand_for_vocs_train_list(tmp_path: Path, official: dict[str, bytes]) -> None:
    root = make_voc(tmp_path / "v", "aug")
    (root / "ImageSets" / "Segmentation" / "train.txt").unlink()
    with served(official):
        assert prepare(config(root)).complete
        assert prepare(merged(root), fetch=True, pause=0).fetched == ["voc.tar", "train_noval.txt"]
    assert (root / "ImageSets" / "Segmentation" / "train.txt").is_file()


def test_a_list_that_only_another_pool_needs_fails_nothing(tmp_path: Path, official: dict[str, bytes]) -> None:
    def spoil(body: bytes, number: int) -> bytes:
        return body.upper() if body == official["/train_noval.txt"] else body

    root = make_voc(tmp_path / "v")
    with served(official, spoil=spoil):
        report = prepare(config(root), fetch=True, pause=0)
        assert (report.complete, report.fetched) == (True, [])
        assert "train_noval.txt: what http" in report.text()
        assert report.verified is not None
        with pytest.raises(UserError, match=r"train_noval\.txt: what .* sends has MD5"):
            prepare(merged(root), fetch=True, pause=0)
    assert not (root / "ImageSets" / "Segmentation" / "train_noval.txt").exists()


def test_archives_are_kept_on_request(tmp_path: Path, official: dict[str, bytes]) -> None:
    with served(official):
        prepare(config(tmp_path / "v"), fetch=True, keep_archives=True, pause=0)
    assert sorted(p.name for p in (tmp_path / "v" / ".fsseg" / "archives").iterdir()) == ["sbd.tgz", "voc.tar"]


def test_only_what_is_missing_is_fetched(tmp_path: Path, official: dict[str, bytes]) -> None:
    root = make_voc(tmp_path / "v", "sbd")
    (root / "ImageSets" / "Segmentation" / "train_noval.txt").write_text("2007_t2\n")
    (root / "SBD").rename(tmp_path / "sbd")
    with served(official):
        there = prepare(config(root, sbd_root=str(tmp_path / "sbd")), fetch=True, pause=0)
        assert there.fetched == []
        absent = prepare(config(root), fetch=True, pause=0)
        assert absent.fetched == []  # found beside the root as well
        (tmp_path / "sbd").rename(tmp_path / "hidden")
        assert prepare(config(root), fetch=True, pause=0).fetched == ["sbd.tgz"]


def test_a_complete_ready_made_mask_folder_needs_no_sbd(tmp_path: Path, official: dict[str, bytes]) -> None:
    with served(official) as site:
        report = prepare(config(make_voc(tmp_path, "aug")))
        assert report.complete
        assert site.requests == []
        (tmp_path / "JPEGImages" / "2007_v1.jpg").unlink()
        incomplete = prepare(config(tmp_path))
        assert not incomplete.complete
        assert "missing: voc.tar" in incomplete.text()
        assert "there: all that sbd.tgz brings" in incomplete.text()


def test_a_folder_with_less_than_the_archive_brings_is_completed(tmp_path: Path, official: dict[str, bytes]) -> None:
    root = make_voc(tmp_path / "v", "sbd")
    (root / "JPEGImages" / "2007_t1.jpg").unlink()
    (root / "JPEGImages" / "mine.txt").write_text("left alone")
    with served(official):
        assert prepare(config(root), fetch=True, pause=0).fetched == ["voc.tar", "train_noval.txt"]
    assert (root / "JPEGImages" / "2007_t1.jpg").is_file()
    assert (root / "JPEGImages" / "mine.txt").read_text() == "left alone"


def test_a_failed_fetch_leaves_nothing_that_looks_like_data(tmp_path: Path, official: dict[str, bytes]) -> None:
    def spoil(body: bytes, number: int) -> bytes:
        return body[:-1] + (b"\0" if body[-1] else b"\1")

    with served(official, spoil=spoil), pytest.raises(UserError, match="MD5"):
        prepare(config(tmp_path / "v"), fetch=True, pause=0)
    assert [p.name for p in (tmp_path / "v").iterdir()] == [".fsseg"]
    assert not (tmp_path / "v" / ".fsseg" / "prepare.lock").exists()


_RUN = """
import json, sys
sys.path.insert(0, sys.argv[3])
from fsseg.config.schema import PascalConfig
from fsseg.data.setup.download import Archive, Need, Part
from fsseg.data.setup.prepare import prepare
from fsseg.data.sources.voc import PascalSource
raw = json.loads(sys.argv[2])
parts = tuple(Part(Archive(**a), tuple(Need(*n) for n in needs), ()) for a, needs in raw)
PascalSource.parts = lambda cfg, fetch=False: parts
report = prepare(PascalConfig(name="pascal5i", root=sys.argv[1]), fetch=True, pause=0)
print(json.dumps([report.fetched, report.verified.ready]))
"""


def test_two_processes_that_start_at_once_fetch_once_and_agree(tmp_path: Path, official: dict[str, bytes]) -> None:
    root = tmp_path / "v"
    with served(official) as site:
        raw = [
            [vars(part.archive), [[n.folder, n.suffix, n.count] for n in part.needs]]
            for part in PascalSource.parts(config(root))[:2]
        ]
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS="1")
        command = [sys.executable, "-c", _RUN, str(root), json.dumps(raw), str(Path(__file__).parent)]
        running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        results = [json.loads(process.communicate(timeout=100)[0]) for process in running]
        assert len(site.requests) == 2
    assert sorted(results) == [[[], True], [["voc.tar", "sbd.tgz"], True]]
    index = PascalSource(config(root)).index("train")
    assert list(zip(index.pair_image.tolist(), index.pair_class.tolist(), index.pair_pixels.tolist())) == TRAIN_PAIRS


def test_coco_2017_is_not_fetched_but_verified(tmp_path: Path) -> None:
    root = make_coco(tmp_path, 2017)
    cfg = CocoConfig(name="coco20i", root=str(root), year=2017)
    assert prepare(cfg).verified is not None
    with pytest.raises(UserError, match="only COCO 2014"):
        prepare(cfg, fetch=True)


def test_coco_names_its_three_archives(tmp_path: Path) -> None:
    text = prepare(CocoConfig(name="coco20i", root=str(tmp_path))).text()
    for name in ("annotations_trainval2014.zip", "train2014.zip (13511 MB", "val2014.zip (6645 MB"):
        assert name in text


def test_needs_count_names_of_the_right_ending(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    for name in ("a.jpg", "b.jpg", "._a.jpg", "c.png"):
        (tmp_path / "f" / name).write_text("")
    assert Need("f", ".jpg", 2).found(tmp_path) == 2
    assert Need("g", ".jpg", 1).found(tmp_path) == 0


def test_a_need_of_a_whole_name_is_met_by_no_other(tmp_path: Path) -> None:
    (tmp_path / "train_noval.txt").touch()
    assert Need("", "train_noval.txt", 1).found(tmp_path) == 1
    assert Need("", "val.txt", 1).found(tmp_path) == 0


def test_a_folder_that_another_process_has_by_now_gets_no_files(tmp_path: Path, official: dict[str, bytes]) -> None:
    root = tmp_path / "v"
    calls = []

    def lost_while_unpacking() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise ClaimLost("taken over by process 7 on elsewhere")

    with served(official):
        part = PascalSource.parts(config(root))[0]
        with pytest.raises(ClaimLost):
            fetch_part(part, root, pause=0, still_ours=lost_while_unpacking)
    assert sorted(p.name for p in root.iterdir()) == [".fsseg"]


def test_what_cannot_be_fetched_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    absent = CocoConfig(name="coco20i", root=str(tmp_path / "absent"), year=2017)
    with pytest.raises(UserError, match="there is no folder") as caught:
        prepare(absent)
    assert "fsseg prepare" not in caught.value.fix


def test_a_root_that_cannot_be_made_is_told(tmp_path: Path, official: dict[str, bytes]) -> None:
    (tmp_path / "file").touch()
    with served(official), pytest.raises(UserError, match="cannot be written") as caught:
        prepare(config(tmp_path / "file" / "v"), fetch=True, pause=0)
    assert "dataset.root" in caught.value.fix


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do the work in a child process that is gone, without a word, just before its `step`-th change of a name.

    False if the work has fewer steps.
    """
    child = os.fork()
    if not child:
        left = step

        def counted(change: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return change(*args, **kwargs)

            return run

        try:
            for name in ("replace", "rename", "unlink", "rmdir", "mkdir"):
                setattr(os, name, counted(getattr(os, name)))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def tree(root: Path) -> dict[str, bytes]:
    """Content of every file of a data set, without what `prepare` and the index keep for themselves."""
    files = (p for p in root.rglob("*") if p.is_file() and p.relative_to(root).parts[0] != ".fsseg")
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def test_a_call_killed_at_any_step_is_completed_by_the_next(
    tmp_path: Path, official: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder holds one image and one mask before, so that the others are moved to them one by one. Three images and
    one mask are enough to be counted as complete, as 12031 of VOC2012's 17125 are."""
    monkeypatch.setitem(COUNTS, 12031, 3)
    monkeypatch.setitem(COUNTS, 2913, 1)
    expected = {f: tree(tmp_path / "made")[f] for f in tree(tmp_path / "made") if not f.startswith("SBD")}
    with served(official):
        for step in range(100):
            root = tmp_path / f"v{step}"
            for name in ("JPEGImages/2007_t1.jpg", "SegmentationClass/2007_v2.png"):
                (root / name).parent.mkdir(parents=True)
                shutil.copy(tmp_path / "made" / name, root / name)
            part = PascalSource.parts(config(root))[0]
            killed = killed_at(step, lambda: fetch_part(part, root, pause=0))  # noqa: B023 - called here
            if state_of(root, [part])[0]:
                assert killed
                fetch_part(part, root, pause=0)
            assert tree(root) == expected, f"killed at step {step}"
            assert state_of(root, [part])[0] == []
            assert list((root / ".fsseg").glob("unpack/*")) == []
            if not killed:
                break
    assert 15 < step < 99


def test_what_an_earlier_version_left_half_moved_is_completed(tmp_path: Path, official: dict[str, bytes]) -> None:
    """It left the unpacked files where they were unpacked, and the archive."""
    root = tmp_path / "v"
    with served(official):
        prepare(config(root), fetch=True, keep_archives=True, pause=0)
        expected = tree(root)
        (root / ".fsseg" / "unpack" / "voc.tar" / "JPEGImages").mkdir(parents=True)
        (root / "JPEGImages" / "2008_s2.jpg").rename(
            root / ".fsseg" / "unpack" / "voc.tar" / "JPEGImages" / "2008_s2.jpg"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(COUNTS, 12031, 5)  # as many as are left
            report = prepare(config(root))
            assert not report.complete
            assert "unpack/voc.tar: left by a call that was stopped before all files were in place" in report.text()
            assert prepare(config(root), fetch=True, pause=0).fetched == ["voc.tar"]
    assert tree(root) == expected
