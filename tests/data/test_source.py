"""The contract of `Source`, held against every data set, and against one that only this test knows."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from trees import labels_of, make_coco, make_voc, write_jpeg, write_png
from visited import evaluation_batches

from fsseg.config.schema import CocoConfig, DatasetConfig, PascalConfig, ProtocolConfig, ShapesConfig
from fsseg.data.faults import Comparison, Fault
from fsseg.data.images import read_image, read_labels
from fsseg.data.loader import evaluation_plan
from fsseg.data.setup.download import Part
from fsseg.data.setup.verify import verify
from fsseg.data.source import SPLITS, ClassIndex, Source, Split
from fsseg.data.sources.coco import CocoSource
from fsseg.data.sources.shapes import ShapesSource
from fsseg.data.sources.voc import PascalSource
from fsseg.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


class FolderSource(Source):
    """What somebody with own pictures would write: `<split>/<id>.jpg` with a label mask `<id>.png` beside it."""

    mask_rule = "labels as painted"

    def __init__(self, cfg: DatasetConfig) -> None:
        super().__init__(cfg, ("cup", "spoon", "plate", "knife"))

    def image_path(self, split: Split, image_id: str) -> Path:
        return self.root / split / f"{image_id}.jpg"

    def mask_path(self, split: Split, image_id: str) -> Path:
        return self.root / split / f"{image_id}.png"

    def list_origin(self, split: Split) -> str:
        return f"the masks in {split}"

    def _labels(self, split: Split) -> dict[str, NDArray[np.uint8]]:
        if not (self.root / split).is_dir():
            raise UserError(f"{self.root / split} is missing", "make it")
        return {path.stem: read_labels(path) for path in sorted((self.root / split).glob("*.png"))}

    def scan(self, split: Split) -> tuple[ClassIndex, list[Fault]]:
        labels = self._labels(split)
        rows = [
            (i, c, int((mask == c + 1).sum()))
            for i, mask in enumerate(labels.values())
            for c in range(4)
            if (mask == c + 1).any()
        ]
        image, class_id, pixels = (np.array(column) for column in zip(*rows))
        index = ClassIndex(tuple(labels), image.astype(np.int32), class_id.astype(np.int16), pixels.astype(np.int64))
        return index, []

    def mask_sizes(self, split: Split) -> dict[str, tuple[int, int]]:
        return {image_id: mask.shape for image_id, mask in self._labels(split).items()}

    def missing_images(self, split: Split) -> list[str]:
        return [i for i in self._labels(split) if not self.image_path(split, i).is_file()]

    def image(self, split: Split, image_id: str, longer_side: int | None = None) -> NDArray[np.uint8]:
        return read_image(self.image_path(split, image_id), longer_side)

    def mask(self, split: Split, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        labels = read_labels(self.mask_path(split, image_id))
        others = np.isin(labels, [c + 1 for c in ignore_classes if c != class_id] + [255])
        return np.where(others, 255, labels == class_id + 1).astype(np.uint8)

    @classmethod
    def layout(cls, cfg: Any, splits: Sequence[Split] = SPLITS) -> dict[str, bool]:
        return {split: (Path(cfg.root) / split).is_dir() for split in splits}


def make_folder(root: Path) -> Path:
    for split in SPLITS:
        for number in range(8):
            labels = labels_of((number % 4 + 1, 300), ((number + 1) % 4 + 1, 200), boundary=10)
            write_png(root / split / f"i{number}.png", labels)
            write_jpeg(root / split / f"i{number}.jpg", seed=number)
    return root


MAKERS: dict[str, tuple[type, Callable[[Path], Any]]] = {
    "pascal5i": (PascalSource, lambda root: PascalConfig(name="pascal5i", root=str(make_voc(root)))),
    "coco20i": (CocoSource, lambda root: CocoConfig(name="coco20i", root=str(make_coco(root)))),
    "shapes5i": (ShapesSource, lambda root: ShapesConfig(name="shapes5i", root=str(root), num_train=3, num_val=3)),
    "folder": (FolderSource, lambda root: DatasetConfig(name="folder", root=str(make_folder(root)), num_folds=2)),
}


@pytest.fixture(params=list(MAKERS))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Source, Any]:
    """A source with all its images, and its configuration."""
    cls, make = MAKERS[request.param]
    cfg = make(tmp_path / "data")
    return cls(cfg), cfg


def recounted(source: Source, split: Split) -> set[tuple[str, int, int]]:
    """(image, class, pixels) of every class that stands in an image, counted in the masks handed out."""
    return {
        (image_id, c, pixels)
        for image_id in source.index(split).image_ids
        for c in range(len(source.classes))
        if (pixels := int((source.mask(split, image_id, c) == 1).sum()))
    }


def test_it_says_what_it_is(made: tuple[Source, Any]) -> None:
    source, cfg = made
    assert source.name == cfg.name
    assert source.root.is_dir()
    assert len(set(source.classes)) == len(source.classes)
    assert source.mask_rule
    for split in SPLITS:
        assert source.list_origin(split)
    held_out = Counter(c for fold in range(cfg.num_folds) for c in source.novel_classes(fold))
    assert held_out == dict.fromkeys(range(len(source.classes)), 1)
    with pytest.raises(UserError, match=f"fold={cfg.num_folds}"):
        source.novel_classes(cfg.num_folds)


@pytest.mark.parametrize("split", SPLITS)
def test_the_index_counts_what_the_masks_hold(made: tuple[Source, Any], split: Split) -> None:
    source, cfg = made
    index = source.index(split)
    assert len(set(index.image_ids)) == len(index.image_ids) > 0
    pairs = list(zip(index.pair_image.tolist(), index.pair_class.tolist()))
    assert pairs == sorted(set(pairs))
    listed = {(index.image_ids[i], c, n) for (i, c), n in zip(pairs, index.pair_pixels.tolist())}
    assert {pair for pair in listed if pair[2]} == recounted(source, split)
    scanned, faults = type(source)(cfg).scan(split)
    assert faults == []
    assert scanned is not None
    assert scanned.fingerprint == index.fingerprint


@pytest.mark.parametrize("split", SPLITS)
def test_images_and_masks_fit_and_ignored_classes_are_255(made: tuple[Source, Any], split: Split) -> None:
    source, _ = made
    everything = range(len(source.classes))
    sizes = source.mask_sizes(split)
    held = recounted(source, split)
    for image_id in source.index(split).image_ids:
        image = source.image(split, image_id)
        assert (image.dtype, image.shape[2]) == (np.uint8, 3)
        assert source.image_path(split, image_id).is_file()
        assert source.mask_path(split, image_id).is_file()
        family = source.background_family(split, image_id)
        assert family is None or family >= 0
        present = [c for name, c, _ in held if name == image_id]
        for c in present:
            mask = source.mask(split, image_id, c)
            assert mask.dtype == np.uint8
            assert mask.shape == image.shape[:2] == sizes[image_id]
            assert set(np.unique(mask)) <= {0, 1, 255}
            ignored = source.mask(split, image_id, c, [*everything])
            others = [source.mask(split, image_id, other) == 1 for other in present if other != c]
            assert all((ignored[other] == 255).all() for other in others)
            assert ((ignored == 1) <= (mask == 1)).all()


def test_a_complete_data_set_is_ready_and_compared(made: tuple[Source, Any]) -> None:
    source, cfg = made
    assert type(source).check_folder(cfg) == []
    assert all(type(source).layout(cfg).values())
    source.check()
    report = verify(source, sheet=source.root.parent / "sheet.png", num_samples=4)
    assert report.ready
    assert report.decoded == sum(len(source.index(split).image_ids) for split in SPLITS)
    assert report.sheet is not None
    assert isinstance(source.compare({}), Comparison)
    assert not source.compare({}).standard
    assert all(isinstance(part, Part) for part in type(source).parts(cfg))


@pytest.mark.parametrize("split", SPLITS)
def test_a_missing_image_hinders_a_run_but_not_the_index(made: tuple[Source, Any], split: Split) -> None:
    source, _ = made
    last = source.index(split).image_ids[-1]
    path = source.image_path(split, last)
    path.unlink()
    again = pickle.loads(pickle.dumps(source))
    assert again.missing_images(split) == [last]
    assert again.index(split).fingerprint == source.index(split).fingerprint
    with pytest.raises(UserError, match=rf"missing images of the {split} list \(1\).*{last}") as caught:
        again.check()
    assert caught.value.fix
    again.check([other for other in SPLITS if other != split])
    with pytest.raises(UserError, match=str(path)):
        again.image(split, last)
    report = verify(again)
    assert not report.ready
    assert report.missing_images[split] == [str(path)]


def test_damaged_and_foreign_images_are_found_at_the_start_all_at_once(made: tuple[Source, Any]) -> None:
    source, _ = made
    cut, odd = (source.image_path(split, source.index(split).image_ids[-1]) for split in SPLITS)
    cut.write_bytes(cut.read_bytes()[:-20])
    write_jpeg(odd, (11, 13))
    for again in (pickle.loads(pickle.dumps(source)), pickle.loads(pickle.dumps(source))):  # nothing is remembered
        with pytest.raises(UserError) as caught:
            again.check()
        assert f"unreadable images (1): {cut}: " in caught.value.what
        assert f"images of another size than their masks (1): {odd}: 13x11 pixels, its mask in " in caught.value.what
    told = {(fault.kind, fault.path) for fault in verify(source).faults}
    assert told == {("unreadable images", str(cut)), ("images of another size than their masks", str(odd))}


def test_the_fingerprint_of_the_images_is_the_same_for_a_copy(made: tuple[Source, Any], tmp_path: Path) -> None:
    source, cfg = made
    prints = [source.images_fingerprint(split) for split in SPLITS]
    source.check()
    assert [source.images_fingerprint(split) for split in SPLITS] == prints
    for number, (split, mark) in enumerate(zip(SPLITS, prints)):
        sizes = [f"{i}\t{source.image_path(split, i).stat().st_size}" for i in source.index(split).image_ids]
        assert mark == hashlib.sha256("\n".join(sizes).encode()).hexdigest()[:16]
        root = shutil.copytree(cfg.root, tmp_path / f"copy{number}")
        for path in root.rglob("*"):
            os.utime(path, (1, 1))
        copy = type(source)(dataclasses.replace(cfg, root=str(root)))
        assert copy.images_fingerprint(split) == mark
        path = copy.image_path(split, copy.index(split).image_ids[0])
        path.write_bytes(path.read_bytes() + b"0")
        assert pickle.loads(pickle.dumps(copy)).images_fingerprint(split) != mark
        path.unlink()
        assert pickle.loads(pickle.dumps(copy)).images_fingerprint(split) is None


def test_a_pickle_carries_no_index(made: tuple[Source, Any]) -> None:
    source, _ = made
    for split in SPLITS:
        source.index(split)
        source.mask_sizes(split)
    assert len(pickle.dumps(source)) < 4000


@pytest.mark.parametrize("name", ["pascal5i", "coco20i", "folder"])
def test_a_folder_with_nothing_says_what_belongs_there(tmp_path: Path, name: str) -> None:
    cls: Any = MAKERS[name][0]
    cfg = MAKERS[name][1](tmp_path / "made")
    cfg.root = str(tmp_path / "absent")
    for state in ("there is no folder", "it is empty"):
        (fault,) = cls.check_folder(cfg)
        assert state in fault.what
        assert all(what in fault.what for what in cls.layout(cfg))
        assert "point dataset.root at " in fault.fix
        command = f"fsseg prepare dataset={name} dataset.root={cfg.root} --download"
        fetched = {"pascal5i", "coco20i"}  # the command can get nothing of the others
        assert (command in fault.fix) == (name in fetched)
        (tmp_path / "absent").mkdir(exist_ok=True)
    for split in SPLITS:
        with pytest.raises(UserError):
            cls(cfg).check([split])
    report = verify(cls(cfg))
    assert not report.ready
    assert len(report.faults) == 2


def test_what_is_at_fault_in_both_splits_is_told_in_one_go(tmp_path: Path) -> None:
    class Faulty(FolderSource):
        def scan(self, split: Split) -> tuple[ClassIndex, list[Fault]]:
            return super().scan(split)[0], [Fault(f"odd {split} masks", "x.png", "", "paint them again")]

    source = Faulty(DatasetConfig(name="folder", root=str(make_folder(tmp_path))))
    source.image_path("val", "i3").unlink()
    with pytest.raises(UserError) as caught:
        source.check()
    for told in ("odd train masks", "odd val masks", "missing images of the val list (1)", "i3.jpg"):
        assert told in caught.value.what
    with pytest.raises(UserError, match="odd train masks"):
        source.index("train")


def test_episodes_are_drawn_from_and_loaded_of_a_further_data_set(tmp_path: Path) -> None:
    data = DatasetConfig(name="folder", root=str(make_folder(tmp_path)), num_folds=2, image_size=33)
    protocol = ProtocolConfig(name="p", num_episodes=6, seeds=[0], min_pixels=0)
    cfg: Any = SimpleNamespace(
        fold=1, shot=1, seed=0, num_workers=0, dataset=data, protocol=protocol, eval=SimpleNamespace(batch_size=3)
    )
    source = FolderSource(data)
    plan = evaluation_plan(source, cfg)
    assert plan.classes == (2, 3)
    batches = list(evaluation_batches(source, cfg, plan.episodes[0]))
    assert [batch.query_image.shape for batch in batches] == [(3, 3, 33, 33)] * 2
    assert all((batch.support_masks == 1).any() for batch in batches)


def test_a_source_that_lacks_something_is_refused_at_once(tmp_path: Path) -> None:
    class Half(Source):
        def __init__(self) -> None:
            super().__init__(DatasetConfig(name="half", root=str(tmp_path)), ("a",))

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
