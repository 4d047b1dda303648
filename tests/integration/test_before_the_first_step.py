"""A run that could not be scored or saved ends before its first step, in two lines: each cause, each launcher."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from runs import SMALL
from trees import box, coco_categories, write_jpeg, write_list, write_png
from typer.testing import CliRunner

from fsseg.cli.app import app
from fsseg.cli.train import start
from fsseg.config.compose import compose
from fsseg.data.episode_file import ListHead, write_episodes
from fsseg.data.registry import build_source
from fsseg.data.spec import EpisodeSpec

from .conftest import Told, two_lines

TINY = (
    "backbone=tiny", "train.batch_size=2", "train.max_steps=2", "protocol.min_pixels=0", "protocol.num_episodes=2",
    "protocol.seeds=[0]", "logger.figures=0", "logger.tensorboard=false", "num_workers=0", "device=cpu",
    "dataset.image_size=25", "model.channels=16",
)  # fmt: skip
SLURM = ("-m", "hydra/launcher=slurm", "hydra.launcher.partition=gpu")
STARTS = {"one": (), "check": ("check=true",), "check of a sweep": ("-m", "check=true"), "slurm": SLURM,
          "check of slurm": (*SLURM, "check=true"), "basic": ("-m",),
          "local": ("-m", "hydra/launcher=local")}  # fmt: skip
EVERYWHERE = ("one", "slurm", "check")


def make_pascal(root: Path) -> None:
    """Four classes, one of each fold, with three images each in both splits."""
    for split in ("train", "val"):
        ids = [f"{split}{value}_{n}" for value in (1, 6, 11, 16) for n in range(3)]
        write_list(root / "ImageSets" / "Segmentation" / f"{split}.txt", ids)
        for image_id in ids:
            labels = np.zeros((30, 40), np.uint8)
            labels[5:20, 5:20] = int(image_id.partition("_")[0].removeprefix(split))
            write_png(root / "SegmentationClass" / f"{image_id}.png", labels)
            write_jpeg(root / "JPEGImages" / f"{image_id}.jpg", (30, 40))


def make_coco(root: Path, year: int, prefix: str) -> None:
    """The same with the first four classes of COCO, each of another fold."""
    for split in ("train", "val"):
        images, annotations = [], []
        for number in range(12):
            name = f"{prefix.format(split)}{number:012d}.jpg"
            images.append({"id": number, "file_name": name, "height": 30, "width": 40})
            annotations.append({"id": number, "image_id": number, "category_id": 1 + number // 3,
                                "segmentation": box(5, 5, 15, 15)})  # fmt: skip
            write_jpeg(root / f"{split}{year}" / name, (30, 40))
        content = {"images": images, "annotations": annotations, "categories": coco_categories()}
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"instances_{split}{year}.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """What chooses each data set; their indexes are kept."""
    folder = tmp_path_factory.mktemp("made")
    make_pascal(folder / "pascal")
    make_coco(folder / "coco", 2014, "COCO_{}2014_")
    make_coco(folder / "coco", 2017, "")  # the same names in both splits
    made = {
        "shapes5i": (*(o for o in SMALL if o.startswith("dataset.num")), f"dataset.root={folder}/shapes"),
        "pascal5i": ("dataset=pascal5i", f"dataset.root={folder}/pascal", "dataset.train_list=train"),
        "coco20i": ("dataset=coco20i", f"dataset.root={folder}/coco"),
    }
    for line in (*made.values(), (*made["coco20i"], "dataset.year=2017")):
        source = build_source(compose(line).cfg)
        for split in ("train", "val"):
            source.index(split)
    return made


def episodes_file(line: tuple[str, ...], path: Path, cause: str) -> str:
    """A list for fold 0 and one shot with one fault."""
    cfg = compose(line).cfg
    source = build_source(cfg)
    index, names = source.index("val"), source.classes
    of_class: dict[int, list[str]] = {}
    for image, class_id in zip(index.pair_image.tolist(), index.pair_class.tolist()):
        of_class.setdefault(class_id, []).append(index.image_ids[image])
    novel = [c for c in of_class if (c in source.novel_classes(0)) == (cause != "a class that is not novel")]
    class_id, images = next((c, of_class[c]) for c in novel if len(of_class[c]) > 1)
    support = "nowhere" if cause == "an image that is not there" else images[1]
    head = ListHead(
        "another" if cause == "another data set" else source.name, int(cause == "another fold"), 1, names, "standard"
    )
    specs = [EpisodeSpec(number, class_id, images[0], (support,)) for number in range(1 + (cause == "cut"))]
    write_episodes(path, {0: specs}, head)
    if cause == "cut":
        path.write_text(path.read_text().rstrip("\n").rpartition("\n")[0] + "\n")
    return f"protocol.episodes_file={path}"


FILES = {
    "another data set": "is a list for dataset=another, this run has dataset=",
    "another fold": "is a list for fold=1, this run has fold=0",
    "too few shots": "holds 1 supports an episode, this run needs shot=2",
    "a class that is not novel": "is not novel in this fold",
    "an image that is not there": "image nowhere is not in the evaluation split",
    "cut": "the list was cut or edited",
}
LISTS = {
    # what the line adds -> what is told
    "no novel class": (("method=prototype", "shot=100"), "no novel class has the 101 images that a 100-shot"),
    "no base class": (("eval.enabled=false", "shot=100"), "no base class has the 101 images that a 100-shot"),
}
OVERLAP = {
    "pascal5i": (("dataset.val_list=train",), "images of both the training list (train) and the evaluation list"
                 " (train) (12): "),
    "coco20i": (("dataset.year=2017",), "images of both the training list (instances_train2017.json) and the evaluation"
                " list (instances_val2017.json) (12): "),
}  # fmt: skip


@pytest.fixture
def refused(
    told: Told, here: Path, lines: dict[str, tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Start a line that must be refused; what it says of the cause. Nothing was trained or submitted."""

    def call(start: str, *words: str) -> str:
        output = here.parent / "outputs"
        given = {w.partition("=")[0] for w in words}
        rest = [
            o
            for o in TINY
            if o.partition("=")[0] not in given and ("method=prototype" not in words or "model." not in o)
        ]
        end = told(*STARTS[start], *words, *rest, f"output_dir={output}")
        printed = capsys.readouterr().err
        if "-m" in STARTS[start]:
            assert "1 of 1 cells" in two_lines(end)[0]
            assert printed.count("\n  -> ") == 1
            assert not output.exists()
            return printed
        if start == "check":
            assert not output.exists()
        assert not [p for name in ("metrics.csv", "*.pt", "result.json") for p in output.rglob(name)]
        assert "training on" not in printed
        return "\n".join(two_lines(end))

    return call


@pytest.mark.parametrize(
    ("cause", "start", "data"),
    [
        *((cause, "slurm", data) for cause in FILES for data in ("shapes5i", "pascal5i", "coco20i")),
        *((cause, start, "shapes5i") for cause in FILES for start in ("one", "check")),
        *(("another fold", start, data) for start in ("one", "check") for data in ("pascal5i", "coco20i")),
    ],
)
def test_an_episode_file_that_does_not_fit(
    cause: str, start: str, data: str, refused: Callable[..., str], lines: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    path = tmp_path / "episodes.tsv"
    words = (*lines[data], episodes_file(lines[data], path, cause), *["shot=2"] * (cause == "too few shots"))
    said = refused(start, *words)
    assert str(path) in said
    assert FILES[cause] in said
    assert "fsseg episodes" in said


@pytest.mark.parametrize("data", ["shapes5i", "pascal5i", "coco20i"])
@pytest.mark.parametrize("start", EVERYWHERE)
@pytest.mark.parametrize("cause", LISTS)
def test_lists_without_enough_images(
    cause: str, start: str, data: str, refused: Callable[..., str], lines: dict[str, tuple[str, ...]]
) -> None:
    words, what = LISTS[cause]
    said = refused(start, *lines[data], *words)
    assert what in said
    assert "protocol.min_pixels" in said


@pytest.mark.parametrize("data", OVERLAP)
@pytest.mark.parametrize("start", EVERYWHERE)
def test_images_of_both_lists(
    start: str, data: str, refused: Callable[..., str], lines: dict[str, tuple[str, ...]]
) -> None:
    words, what = OVERLAP[data]
    said = refused(start, *lines[data], *words)
    assert what in said
    assert "dataset.val_list=" in said


@pytest.mark.parametrize("start", ["check of a sweep", "check of slurm", "local", "basic"])
@pytest.mark.parametrize("cause", ["episode file", "lists", "overlap"])
def test_the_other_launchers(
    cause: str, start: str, refused: Callable[..., str], lines: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    if cause == "overlap":
        words, what = OVERLAP["pascal5i"]
        assert what in refused(start, *lines["pascal5i"], *words)
    elif cause == "lists":
        words, what = LISTS["no novel class"]
        assert what in refused(start, *lines["shapes5i"], *words)
    else:
        path = tmp_path / "episodes.tsv"
        words = (*lines["shapes5i"], episodes_file(lines["shapes5i"], path, "another fold"))
        assert FILES["another fold"] in refused(start, *words)


@pytest.mark.parametrize("start", ["one", "check"])
def test_a_training_alone_is_refused_for_images_that_would_be_evaluated(
    start: str, refused: Callable[..., str], lines: dict[str, tuple[str, ...]]
) -> None:
    words, what = OVERLAP["pascal5i"]
    assert what in refused(start, *lines["pascal5i"], *words, "eval.enabled=false")


@pytest.mark.parametrize("start", ["one", "check"])
@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ((), "(up to 3 checkpoints of "),
        (("method=prototype",), "(logs and figures) needs about 20 MB"),
    ],
    ids=["trains", "evaluates"],
)
def test_a_disk_without_room(
    words: tuple[str, ...], needed: str, start: str, refused: Callable[..., str], lines: dict[str, tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    said = refused(start, *lines["shapes5i"], *words)
    assert needed in said
    assert "and 5 MB are free" in said
    assert "fsseg clean" in said


@pytest.mark.parametrize("start", ["check of slurm", "slurm", "local"])
def test_a_disk_that_takes_not_even_small_files_stops_a_sweep_of_cells_that_were_never_measured(
    start: str, told: Told, here: Path, lines: dict[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    end = told(*STARTS[start], *lines["shapes5i"], *TINY, f"output_dir={here.parent}/outputs")
    assert "1 cell needs about 20 MB, and 5 MB are free" in end
    assert not (here.parent / "outputs").exists()


@pytest.mark.parametrize("start", ["one", "check", "check of a sweep", "slurm", "local"])
@pytest.mark.parametrize("kind", ["a file in its place", "no permission"])
def test_a_folder_that_takes_nothing(
    kind: str, start: str, told: Told, here: Path, lines: dict[str, tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Also one deep in the directory of the run, which would be met at the first checkpoint."""
    run = here.parent / "outputs" / "runs" / "shapes5i" / "abcb" / "tiny" / "1shot" / "v" / "fold0" / "seed0"
    place = run / "checkpoints"
    run.mkdir(parents=True)
    if kind == "no permission":
        place.mkdir()
        may = os.access  # root may write everywhere
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != place and may(path, mode))
    else:
        place.touch()
    end = told(*STARTS[start], *lines["shapes5i"], *TINY, "variant=v", f"output_dir={here.parent}/outputs")
    said = capsys.readouterr().err + end
    what = "is not a folder" if kind != "no permission" else "nothing can be written there"
    assert f"{place}: {what}" in said or f"{place} {what}" in said
    assert list(run.iterdir()) == [place]


def test_a_plan_says_what_is_not_ready_and_why(lines: dict[str, tuple[str, ...]], tmp_path: Path, here: Path) -> None:
    words, what = OVERLAP["coco20i"]
    path = tmp_path / "episodes.tsv"
    given = [
        ((*lines["coco20i"], *words), what),
        ((*lines["pascal5i"], "shot=100", "eval.enabled=false", "fold=0,1"), LISTS["no base class"][1]),
        ((*lines["shapes5i"], episodes_file(lines["shapes5i"], path, "another fold")), FILES["another fold"]),
    ]
    for line, told in given:
        printed = CliRunner().invoke(app, ["plan", *line, *TINY, f"output_dir={tmp_path}/out"]).output
        assert printed.count("not ready: ") == 1, printed
        assert told in printed.partition("not ready: ")[2]
    sound = CliRunner().invoke(app, ["plan", *lines["coco20i"], *TINY, f"output_dir={tmp_path}/out"]).output
    assert "not ready" not in sound


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


def test_a_check_says_what_a_start_would_do_and_leaves_everything_as_it_is(
    here: Path, in_process: None, lines: dict[str, tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> str:
        rest = [o for o in TINY if "method=prototype" not in words or not o.startswith("model.")]
        start([*lines["shapes5i"], *rest, "output_dir=out", *words])
        return capsys.readouterr().out

    assert "would train 2 steps from step 0, then evaluate 2 episodes" in said("check=true")
    assert "would evaluate 2 episodes" in said("check=true", "method=prototype")
    assert not (here / "out").exists()
    said()
    before = tree(here / "out")
    assert "already done" in said("check=true")
    would = "would train 2 steps from step 0, then evaluate 2 episodes; the run that is there would be replaced"
    assert would in said("check=true", "redo=true")
    done, new = said("-m", "check=true", "fold=0,1", "hydra/launcher=local").splitlines()
    assert ("/fold0/" in done, "/fold1/" in new) == (True, True)
    assert "already done: mIoU" in done
    assert new.endswith("would train 2 steps from step 0, then evaluate 2 episodes")
    variant = next((here / "out").rglob("result.json")).parents[2].name
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        said("check=true", "train.lr=0.7", f"variant={variant}")
    assert tree(here / "out") == before
    next((here / "out").rglob("result.json")).unlink()
    before = tree(here / "out")
    assert "would train 0 steps from step 2, then evaluate 2 episodes" in said("check=true")
    assert tree(here / "out") == before
    capsys.readouterr()


def test_a_check_names_the_weights_that_would_be_downloaded(
    here: Path, in_process: None, lines: dict[str, tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    rest = [o for o in TINY if not o.startswith("backbone=")]
    start([*lines["shapes5i"], *rest, "backbone=resnet18", "check=true"])
    file = here.parent / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    said = capsys.readouterr().out
    assert f"would be downloaded from https://download.pytorch.org/models/resnet18-f37072fd.pth to {file}" in said
    assert not file.exists()
    assert list(here.iterdir()) == []


def test_of_several_processes_one_answers_a_check(
    here: Path, in_process: None, lines: dict[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        start([*lines["shapes5i"], *TINY, "check=true"])
        assert ("would train 2 steps" in capsys.readouterr().out) == (rank == 0)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SystemExit, match="batch_size=2 cannot be shared by 3 processes"):
        start([*lines["shapes5i"], *TINY, "check=true"])


def test_a_sweep_of_another_sweeper_is_not_checked(told: Told, lines: dict[str, tuple[str, ...]]) -> None:
    what, fix = two_lines(told("-m", "hydra/sweeper=basic", "check=true", *lines["shapes5i"], *TINY))
    assert "hydra/sweeper=basic" in what
    assert "leave hydra/sweeper" in fix
