"""Content decides, not names: a finished cell, a checkpoint and a start beside data that are other than they were."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from run_directories import make_run
from runs import SMALL, cell_of, done

from fsseg.cell.episodes import EpisodePart
from fsseg.cell.models import State, write_record
from fsseg.config.compose import Composed, compose
from fsseg.data import registry
from fsseg.data.sources.shapes import dataset_folder, generate
from fsseg.errors import UserError
from fsseg.run import run
from fsseg.sweep.grid import build_grid

pytestmark = pytest.mark.filterwarnings("ignore")

LINE = (
    "dataset=pascal5i", "backbone=tiny", "dataset.train_list=train", "dataset.val_list=val", "protocol.min_pixels=150",
    *(o for o in SMALL if not o.startswith("dataset.num") and o != "train.max_steps=8"), "train.max_steps=2",
)  # fmt: skip
LISTS = Path("ImageSets", "Segmentation")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 60 and 60 images in VOC's layout, for all tests to copy."""
    root = tmp_path_factory.mktemp("generated")
    generate(root, 60, 60, seed=0)
    return dataset_folder(root, 60, 60, seed=0)


@pytest.fixture
def root(generated: Path, tmp_path: Path) -> Path:
    return shutil.copytree(generated, tmp_path / "data", ignore=shutil.ignore_patterns(".fsseg"))


def line(root: Path, output: Path, *overrides: str) -> list[str]:
    keys = {o.partition("=")[0] for o in overrides}
    rest = [*LINE, f"dataset.root={root}", f"output_dir={output}"]
    return [*overrides, *(o for o in rest if o.partition("=")[0] not in keys)]


def without_last_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def compress_more(path: Path) -> None:
    with Image.open(path) as image:
        image.save(path, quality=40)


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "training list": (lambda root: without_last_line(root / LISTS / "train.txt"), "training data, index"),
    "evaluation list": (lambda root: without_last_line(root / LISTS / "val.txt"), "evaluation data, index"),
    "masks": (
        lambda root: swap(*(root / "SegmentationClass" / f"train_{n:05d}.png" for n in (0, 1))),
        "training data, index",
    ),
    "images": (
        lambda root: compress_more(root / "JPEGImages" / "val_00000.jpg"),
        "evaluation data, sizes of the images",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_finished_cell_of_other_content_is_not_already_done(change: str, root: Path, tmp_path: Path) -> None:
    cell_line = line(root, tmp_path / "outputs")
    c = compose(cell_line)
    first = done(c)
    aside = shutil.copytree(root, tmp_path / "aside")
    alter, told = CHANGES[change]
    alter(root)
    with pytest.raises(UserError) as caught:
        run(c.config, c.task_overrides)
    assert str(cell_of(c).directory) in caught.value.what
    assert f"dataset.root={root}" in caught.value.what
    assert told in caught.value.what
    assert ("training" in told) == ("training" in caught.value.what)
    assert "\n" not in caught.value.what
    assert "redo=true" in caught.value.fix
    assert "name=" in caught.value.fix
    (point,) = build_grid(cell_line)
    assert point.state == State.FAULTY
    assert told in point.faults[0].what
    assert cell_of(c).result() == first  # it still stands
    shutil.rmtree(root)
    aside.rename(root)
    assert done(c) == first
    assert build_grid(cell_line)[0].state == State.DONE


def test_a_list_in_the_working_directory_counts_by_content(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(root / LISTS / "val.txt", "mine.txt")
    c = compose(line(root, tmp_path / "outputs", "dataset.val_list=./mine.txt"))
    done(c)
    first = cell_of(c).fingerprint
    without_last_line(tmp_path / "mine.txt")
    assert cell_of(compose(c.task_overrides)).fingerprint != first
    with pytest.raises(UserError, match=r"dataset\.val_list"):
        run(c.config, c.task_overrides)


def test_without_the_data_done_is_done(root: Path, tmp_path: Path) -> None:
    cell_line = line(root, tmp_path / "outputs")
    c = compose(cell_line)
    first = done(c)
    root.rename(tmp_path / "away")
    assert done(c) == first
    assert build_grid(cell_line)[0].state == State.DONE


@pytest.mark.parametrize(
    "lost", ["JPEGImages/val_00000.jpg", "SegmentationClass/val_00000.png", str(LISTS / "val.txt")]
)
def test_data_that_are_incomplete_say_nothing_of_a_finished_cell(lost: str, root: Path, tmp_path: Path) -> None:
    c = compose(line(root, tmp_path / "outputs"))
    first = done(c)
    (root / lost).unlink()
    assert done(c) == first


def test_only_the_splits_that_a_cell_has_read_count(root: Path, tmp_path: Path) -> None:
    trained = compose(line(root, tmp_path / "outputs", "eval.enabled=false", "variant=trained"))
    done(trained)
    checkpoint = f"checkpoint={cell_of(trained).checkpoint}"
    evaluated = compose(line(root, tmp_path / "outputs", "train.enabled=false", "variant=evaluated", checkpoint))
    done(evaluated)
    without_last_line(root / LISTS / "train.txt")
    done(evaluated)
    with pytest.raises(UserError, match="training data"):
        run(trained.config, trained.task_overrides)
    compress_more(root / "JPEGImages" / "val_00000.jpg")
    with pytest.raises(UserError, match="evaluation data"):
        run(evaluated.config, evaluated.task_overrides)


def test_results_and_checkpoints_tell_the_sizes_of_the_images(root: Path, tmp_path: Path) -> None:
    c = compose(line(root, tmp_path / "outputs"))
    record = done(c).dataset
    for split, found in (("train", record.images_train), ("val", record.images_val)):
        names = (root / LISTS / f"{split}.txt").read_text().split()
        sizes = "\n".join(f"{name}\t{(root / 'JPEGImages' / f'{name}.jpg').stat().st_size}" for name in names)
        assert found == hashlib.sha256(sizes.encode()).hexdigest()[:16]
    assert torch.load(cell_of(c).checkpoint, weights_only=True)["images_fingerprint"] == record.images_train


def test_a_result_that_was_made_before_images_were_recorded_is_accepted(root: Path, tmp_path: Path) -> None:
    c = compose(line(root, tmp_path / "outputs"))
    result = done(c)
    result.dataset.images_train = result.dataset.images_val = None
    write_record(cell_of(c).result_file, result)
    compress_more(root / "JPEGImages" / "val_00000.jpg")
    assert done(c) == result


def cut(c: Composed, change: dict[str, Any] | None = None) -> None:
    """Leave the checkpoint of a finished training, without its result."""
    done(c)
    cell = cell_of(c)
    cell.result_file.unlink()
    state = {**torch.load(cell.checkpoint, weights_only=True), **(change or {})}
    torch.save(state, cell.checkpoint)


def test_a_run_is_not_resumed_over_other_images(root: Path, tmp_path: Path) -> None:
    c = compose(line(root, tmp_path / "outputs", "eval.enabled=false"))
    cut(c)
    image = root / "JPEGImages" / "train_00000.jpg"
    content = image.read_bytes()
    compress_more(image)
    with pytest.raises(UserError, match=r"the training data changed since .* \(sizes of the images: ") as caught:
        run(c.config, c.task_overrides)
    assert "redo=true" in caught.value.fix
    image.write_bytes(content)
    done(c)


def test_a_checkpoint_that_was_made_before_images_were_recorded_is_resumed(root: Path, tmp_path: Path) -> None:
    c = compose(line(root, tmp_path / "outputs", "eval.enabled=false"))
    cut(c, {"images_fingerprint": None})
    done(c)


def test_a_damaged_evaluation_image_is_found_before_the_training(root: Path, tmp_path: Path) -> None:
    c = compose(line(root, tmp_path / "outputs"))
    broken = [root / "JPEGImages" / name for name in ("train_00007.jpg", "val_00030.jpg")]
    for path in broken:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError) as caught:
        run(c.config, c.task_overrides)
    assert all(str(path) in caught.value.what for path in broken)
    assert not cell_of(c).checkpoint.exists()
    assert not cell_of(c).metrics_file.exists()
    other = compose(line(root, tmp_path / "outputs", "eval.enabled=false", "name=other"))
    with pytest.raises(UserError) as caught:
        run(other.config, other.task_overrides)
    assert str(broken[0]) in caught.value.what
    assert str(broken[1]) not in caught.value.what  # it is not read


def finished_grid(root: Path, output: Path, record: dict[str, str | None]) -> list[str]:
    """A line of eight cells, all with results of these data."""
    cells = line(root, output, "fold=0,1,2,3", "seed=0,1")
    for point in build_grid(cells):
        assert point.cell is not None
        make_run(point.cell, result={"dataset": record})
    return cells


def recorded(root: Path, output: Path) -> dict[str, str | None]:
    source = registry.build_source(compose(line(root, output)).cfg)
    return {
        f"{name}_{split}": mark
        for split in ("train", "val")
        for name, mark in (
            ("fingerprint", source.index(split).fingerprint),
            ("images", source.images_fingerprint(split)),
        )
    }


def test_a_grid_reads_its_data_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = finished_grid(root, tmp_path / "outputs", recorded(root, tmp_path))
    built: list[Any] = []
    build = registry.build_source
    monkeypatch.setattr(registry, "build_source", lambda cfg: built.append(cfg) or build(cfg))
    points = build_grid(cells)
    assert [p.state for p in points] == [State.DONE] * 8
    assert len(built) == 2  # once a split
    without_last_line(root / LISTS / "val.txt")
    faults = {str(fault) for p in build_grid(cells) for fault in p.faults}
    assert len(faults) == 1  # a sweep says it once for all cells


def test_finished_cells_are_compared_without_torch(root: Path, tmp_path: Path) -> None:
    cells = finished_grid(root, tmp_path / "outputs", recorded(root, tmp_path))
    code = (
        "import sys; from fsseg.sweep.grid import build_grid; points = build_grid(sys.argv[1:]); "
        "assert [str(p.state) for p in points] == ['done'] * 8; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *cells], check=True, env=dict(os.environ), timeout=120)


def test_generated_data_that_are_not_there_are_not_made_to_be_compared(tmp_path: Path) -> None:
    cells = ["fold=0", f"output_dir={tmp_path / 'outputs'}", f"dataset.root={tmp_path / 'shapes'}"]
    (point,) = build_grid(cells)
    assert point.cell is not None
    make_run(point.cell, result={"dataset": {"fingerprint_val": "0", "images_val": "0"}})
    assert build_grid(cells)[0].state == State.DONE
    assert not (tmp_path / "shapes").exists()


class Stopped(Exception):
    pass


def test_episodes_that_were_evaluated_on_other_images_do_not_count(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = compose(line(root, tmp_path / "outputs"))
    append, evaluated = EpisodePart.append, 0

    def stopping(part: EpisodePart, scored: Any) -> None:
        nonlocal evaluated
        append(part, scored)
        evaluated += len(scored)
        if evaluated == 3:
            raise Stopped

    monkeypatch.setattr(EpisodePart, "append", stopping)
    with pytest.raises(Stopped):
        run(c.config, c.task_overrides)
    compress_more(root / "JPEGImages" / "val_00000.jpg")
    done(c)
    assert "episodes.part is of an evaluation with other images" in cell_of(c).log_file.read_text()
    assert evaluated == 3 + 6
