"""`fsseg sheets`: which episodes of finished runs are drawn, and that their masks are those that were scored."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from command_line import fsseg
from html_page import parsed
from PIL import Image
from runs import cell_of, composed, done

from fsseg.cell.finished import Finished, find_finished, open_finished
from fsseg.cell.models import Origin
from fsseg.cell.record import RunDirectory
from fsseg.config.compose import compose
from fsseg.draw.sheets import PREDICTION_COLOUR, SheetRow
from fsseg.engine import redraw
from fsseg.engine.redraw import SheetChoice, answer, check_alike, draw_comparison, draw_run, places
from fsseg.errors import UserError

EPISODES = ("protocol.num_episodes=7", "protocol.seeds=[4,0]")
ROUNDS = ("model.iterations=2",)
PROTOTYPE = ("method=prototype", "train.enabled=false")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "shapes5i"


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ABCB, of two rounds, whose episodes are of two seeds; hardly trained, it finds foreground."""
    c = composed(root, tmp_path_factory.mktemp("outputs"), *EPISODES, *ROUNDS, "seed=5", "train.max_steps=1",
                 "train.lr=1e-6")  # fmt: skip
    done(c)
    return cell_of(c).directory


@pytest.fixture(scope="module")
def training_free(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the same episodes, which has no checkpoint and needs none."""
    c = composed(root, tmp_path_factory.mktemp("outputs"), *EPISODES, *PROTOTYPE)
    done(c)
    assert not cell_of(c).checkpoint.exists()
    return cell_of(c).directory


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> RunDirectory:
    """The trained run, to be spoilt."""
    return RunDirectory(Path(shutil.copytree(trained, tmp_path / "copied")))


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[list[SheetRow], str]]:
    """Name -> rows and title of the sheets, which are not drawn: that takes as long as all the rest."""
    found: dict[str, tuple[list[SheetRow], str]] = {}
    monkeypatch.setattr(redraw, "episode_sheet", lambda path, rows, title: found.update({path.name: (rows, title)}))
    return found


def opened(directory: Path) -> Finished:
    return open_finished(RunDirectory(directory))


def by_hand(directory: Path) -> list[tuple[float, int, int]]:
    """(IoU, seed, number) of every episode in the order of the protocol, from the file alone."""
    e = np.load(directory / "episodes.npz")
    rows = zip(e["seed"].tolist(), e["number"].tolist(), e["intersection"][:, -1], e["union"][:, -1])
    every = [(100 * float(both) / float(either), seed, number) for seed, number, both, either in rows]
    return [row for seed in e["seeds"].tolist() for row in sorted(every, key=lambda r: r[2]) if row[1] == seed]


def two_lines(*words: str | Path) -> str:
    """What the command says of a mistake."""
    ended = fsseg("sheets", *map(str, words))
    assert (ended.returncode, ended.stdout) == (1, "")
    what, fix = ended.stderr.strip().splitlines()[-2:]
    assert what.startswith("error: ")
    assert fix.startswith("  -> ")
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_the_command_draws_the_extremes_of_each_run_that_it_is_given(
    trained: Path, training_free: Path, sheets: dict[str, tuple[list[SheetRow], str]], tmp_path: Path
) -> None:
    ended = fsseg("sheets", str(trained), str(training_free), "--count", "1", "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    blocks = ended.stdout.split(f"{training_free}: mIoU")
    for directory, text in zip((trained, training_free), blocks):
        rising = sorted(iou for iou, *_ in by_hand(directory))
        for rank, value in {"best": rising[-1], "median": rising[6], "worst": rising[0]}.items():
            sheet = tmp_path / opened(directory).cell.key.path / f"{rank}.png"
            assert f"  {rank:<7} IoU {value:.1f}  {sheet}\n" in text
        assert "counts of all 3 drawn episodes as recorded" in text


def test_a_page_has_sheets_that_are_drawn_for_it_alone(copied: RunDirectory, tmp_path: Path) -> None:
    before = sorted(copied.directory.rglob("*"))
    out = tmp_path / "page.html"
    made = fsseg("report", str(copied.directory), "--out", str(out), "--sheets", "--also", "device=cpu")
    assert made.returncode == 0, made.stderr
    assert sorted(copied.directory.rglob("*")) == before
    page = parsed(out.read_text())
    sheets = page.one("section", id="sheets")
    assert [p.attributes["alt"].split(" of ")[0] for p in sheets.all("img")] == [
        "Best episodes", "Median episodes", "Worst episodes",
    ]  # fmt: skip
    best: dict[str, float] = {}  # by hand, from the record
    found = np.load(copied.episodes_file)
    for class_id, name in zip(found["classes"], found["class_names"]):
        own = found["class_id"] == class_id
        both, either = found["intersection"][own, -1], found["union"][own, -1]
        if either.any():
            best[str(name)] = float(np.max(100 * both[either > 0] / either[either > 0]))
    shown = {row[0]: row[1] for row in sheets.one("table").rows()[1:]}
    assert shown == {name: f"{iou:.1f}" for name, iou in best.items()}


@pytest.mark.parametrize("which", ["trained", "training_free"])
def test_the_masks_are_those_that_were_scored(which: str, request: pytest.FixtureRequest) -> None:
    found = opened(request.getfixturevalue(which))
    e = np.load(found.cell.episodes_file)
    recorded = {key: i for i, key in enumerate(zip(e["seed"].tolist(), e["number"].tolist()))}
    wanted = {(4, 1), (4, 6), (0, 1)}
    answers = answer(found, wanted)
    assert set(answers.pictures) == wanted
    assert not answers.unlike
    for key, picture in answers.pictures.items():
        truth = answers.source.mask("val", picture.spec.query_id, picture.spec.class_id)
        assert picture.prediction.shape == truth.shape
        row = recorded[key]
        assert (picture.prediction & (truth == 1)).sum() == e["intersection"][row, -1]
        assert ((picture.prediction & (truth != 255)) | (truth == 1)).sum() == e["union"][row, -1]


def test_a_sheet_shows_the_answer_where_it_lies(training_free: Path, tmp_path: Path) -> None:
    found = opened(training_free)
    draw_run(found, SheetChoice(1), tmp_path)
    _, seed, number = max(by_hand(training_free))
    mask = answer(found, {(seed, number)}).pictures[seed, number].prediction
    rows, columns = np.nonzero(mask)
    pixels = np.asarray(Image.open(tmp_path / "best.png").convert("RGB"))
    panel, gap = 2.1 * 130, 0.04 * 130
    body = pixels[: -int(0.32 * 130) - 1]  # without the legend
    blue = (np.abs(body - 255 * np.asarray(PREDICTION_COLOUR)) < 25).all(axis=-1)
    blue[:, : int(1.25 * 130 + 3 * panel)] = False
    height, width = mask.shape
    scale = min(panel - 2 * gap, panel * min(max(height / width, 0.5), 1) - 2 * gap) / max(height, width)
    drawn = np.nonzero(blue)
    assert np.ptp(drawn[1]) == pytest.approx((columns.max() - columns.min() + 1) * scale, abs=6)
    assert np.ptp(drawn[0]) == pytest.approx((rows.max() - rows.min() + 1) * scale, abs=6)
    centre = 1.25 * 130 + 3.5 * panel + ((columns.min() + columns.max() + 1) / 2 - width / 2) * scale
    assert (drawn[1].min() + drawn[1].max()) / 2 == pytest.approx(centre, abs=6)


def test_the_rows_of_a_sheet_are_those_of_a_plain_sort(
    training_free: Path, sheets: dict[str, tuple[list[SheetRow], str]], tmp_path: Path
) -> None:
    draw_run(opened(training_free), SheetChoice(3), tmp_path)
    rising = sorted(by_hand(training_free), key=lambda row: row[0])
    falling = sorted(by_hand(training_free), key=lambda row: -row[0])
    for rank, expected in {"best": falling[:3], "median": rising[5:8], "worst": rising[:3]}.items():
        rows, title = sheets[f"{rank}.png"]
        shown = [(row.iou, *map(int, re.findall(r"^(?:seed|episode) (\d+)$", row.note, re.M))) for row in rows]
        assert shown == [(iou, number, seed) for iou, seed, number in expected]
        result = RunDirectory(training_free).result()
        assert result is not None
        assert f"prototype, shapes5i fold 0, tiny, 1-shot: {rank} 3 of 14 episodes, mIoU {result.miou:.1f}" in title


def test_counts_that_differ_from_the_record_are_told(
    training_free: Path, sheets: dict[str, tuple[list[SheetRow], str]], tmp_path: Path
) -> None:
    found = opened(training_free)
    rows = found.counts.rows.copy()
    worst = int(np.argmin(found.counts.iou()))
    rows["background_intersection"][worst] -= 1  # of another machine, whose answer is the same up to a pixel
    rows["background_union"][worst] -= 1
    told = draw_run(replace(found, counts=replace(found.counts, rows=rows)), SheetChoice(1), tmp_path)
    assert "1 of 3 drawn episodes differ in pixels from the record" in told
    assert len(told.splitlines()) == 5
    marked = {name: "(drawn: " in rows[0].note for name, (rows, _) in sheets.items()}
    assert marked == {"best.png": False, "median.png": False, "worst.png": True}


def test_a_comparison_is_chosen_by_the_difference(trained: Path, training_free: Path, tmp_path: Path) -> None:
    runs = [opened(trained), opened(training_free)]
    told = draw_comparison(runs, SheetChoice(1), tmp_path)
    rising = sorted(a - b for (a, *_), (b, *_) in zip(by_hand(trained), by_hand(training_free)))
    for rank, value in {"best": rising[-1], "median": rising[6], "worst": rising[0]}.items():
        assert f"  {rank:<7} A - B {value:+.1f}  {tmp_path}/compared_{rank}.png" in told
    width = Image.open(tmp_path / "compared_best.png").width
    assert width == pytest.approx((1.25 + 5 * 2.1) * 130, abs=2)  # support, query, truth, and two answers
    assert told.count("counts of all 3 drawn episodes as recorded") == 2


def test_runs_of_other_episodes_are_not_compared(trained: Path, root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, "protocol.num_episodes=7", "protocol.seeds=[4,1]", *PROTOTYPE)
    done(c)
    with pytest.raises(UserError, match=r"not scored on the same episodes by the same rules: episodes \w+ and \w+"):
        check_alike([opened(trained), opened(cell_of(c).directory)])
    with pytest.raises(UserError, match="these are 1"):
        check_alike([opened(trained)])


@pytest.mark.parametrize(("rule", "value"), [("scoring_size", "network"), ("fit", "squash")])
def test_runs_that_other_rules_scored_are_not_compared(
    trained: Path, training_free: Path, rule: str, value: str
) -> None:
    other = opened(training_free)
    other.cfg.protocol.train_query = "pair"  # says how a run was trained, not how it was scored
    check_alike([opened(trained), other])
    before = other.cfg.protocol[rule]  # type: ignore[index]
    setattr(other.cfg.protocol, rule, value)
    with pytest.raises(UserError, match=rf"by the same rules: .*protocol\.{rule} {before} and {value}"):
        check_alike([opened(trained), other])


def test_a_comparison_lacks_no_run(copied: RunDirectory, training_free: Path, tmp_path: Path) -> None:
    """Else the next one would take its letter."""
    for name in "bc":
        shutil.copytree(training_free, tmp_path / name)
    copied.result_file.unlink()
    assert f"{copied.directory} is not finished" in two_lines(tmp_path, "--compare")


def test_other_weights_than_those_that_were_scored_are_refused(training_free: Path) -> None:
    found = opened(training_free)
    found.result.provenance["weights"] = {"file": "/elsewhere/w.pth", "digest": "0123"}
    with pytest.raises(UserError, match=r"weights /elsewhere/w.pth \(SHA-256 0123\), and random weights are") as fault:
        answer(found, {(4, 1)})
    assert "--also backbone.weights=FILE" in fault.value.fix


def test_another_base_learner_is_refused(training_free: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(training_free)
    found.cfg.backbone.base_training = True
    with pytest.raises(UserError, match="checkpoint of the base learner is gone") as gone:
        answer(found, {(4, 1)})
    assert "bring back the base learner that" in gone.value.fix
    now, then = (Origin(path="last.pt", digest=digest) for digest in ("new", "old"))
    monkeypatch.setattr(redraw, "take_over", lambda *_: now)
    with pytest.raises(UserError, match=r"last.pt is not the base learner .* \(SHA-256 new, then old\)"):
        answer(replace(found, result=msgspec.structs.replace(found.result, base_learner=then)), {(4, 1)})


def test_of_each_class_there_are_as_many(
    trained: Path, sheets: dict[str, tuple[list[SheetRow], str]], tmp_path: Path
) -> None:
    draw_run(opened(trained), SheetChoice(1, per_class=True), tmp_path)
    e = np.load(trained / "episodes.npz")
    ious = 100 * e["intersection"][:, -1] / e["union"][:, -1]
    for rank, pick in {"best": max, "worst": min}.items():
        rows, title = sheets[f"{rank}_per_class.png"]
        expected = [pick(ious[e["class_id"] == c]) for c in sorted(set(e["class_id"].tolist()))]
        assert [row.iou for row in rows] == expected
        assert f"{rank} of each class" in title
    assert len({row.class_name for row in sheets["median_per_class.png"][0]}) == 5
    with pytest.raises(UserError, match="too many for one sheet"):
        SheetChoice(20, per_class=True).of(many(opened(trained)), np.zeros(200))


def many(found: Finished) -> Finished:
    """The run with 200 episodes of five classes."""
    rows = np.repeat(found.counts.rows[:1], 200)
    rows["number"], rows["class_id"] = np.arange(200), np.arange(200) % 5
    return replace(found, counts=replace(found.counts, rows=rows))


def test_sheets_of_several_runs_have_places_of_their_own(trained: Path, training_free: Path, tmp_path: Path) -> None:
    one, other = opened(trained), opened(training_free)
    assert places([one, other]) == [trained / "figures", training_free / "figures"]
    assert places([one], tmp_path) == [tmp_path]
    assert len(set(places([one, other], tmp_path))) == 2
    with pytest.raises(UserError, match="are of one cell"):
        places([one, replace(one, cell=replace(one.cell, directory=tmp_path))], tmp_path)


def test_what_is_not_there_or_not_finished_is_told_in_two_lines(copied: RunDirectory, tmp_path: Path) -> None:
    assert "is no folder" in two_lines(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no run found" in two_lines(tmp_path / "empty")
    assert "train.lr" in two_lines(copied.directory, "--also", "train.lr=1")
    hidden = copied.checkpoint.rename(tmp_path / "last.pt")
    assert "is gone" in two_lines(copied.directory)
    assert open_finished(copied, [f"checkpoint={hidden}"]).cfg.checkpoint == str(hidden)
    record = copied.episodes_file.read_bytes()
    copied.episodes_file.write_bytes(record[:-1] + b"x")
    assert "is not the one of result.json" in two_lines(copied.directory)
    copied.episodes_file.unlink()
    assert "episodes.npz cannot be read" in two_lines(copied.directory)
    copied.result_file.unlink()
    assert "is not finished" in two_lines(copied.directory)


def test_a_checkpoint_of_another_run_is_refused(copied: RunDirectory) -> None:
    state = torch.load(copied.checkpoint, weights_only=True)
    torch.save(state | {"run": "another"}, copied.checkpoint)
    assert "run another" in two_lines(copied.directory)
    torch.save(state | {"fingerprint": "another"}, copied.checkpoint)
    assert "is of cell another" in two_lines(copied.directory)


def test_a_run_below_a_folder_that_cannot_be_drawn_is_named_and_left_out(
    copied: RunDirectory, training_free: Path, tmp_path: Path
) -> None:
    shutil.copytree(training_free, tmp_path / "sound")
    copied.result_file.unlink()
    found, left_out = find_finished([tmp_path])
    assert [run.cell.directory.name for run in found] == ["sound"]
    assert [error.what.partition(" is ")[0] for error in left_out] == [str(copied.directory)]
    with pytest.raises(UserError, match="is not finished"):
        find_finished([tmp_path, copied.directory / "."])


def test_a_recorded_configuration_is_data(copied: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    text = copied.config_file.read_text()
    copied.config_file.write_text(text.replace("name: runs", "name: ${oc.env:HOME}"))
    with pytest.raises(UserError, match="what is stored is not evaluated"):
        opened(copied.directory)
    copied.config_file.write_text(text.replace("fold: 0", "fild: 0"))
    with pytest.raises(UserError, match="does not fit this version"):
        opened(copied.directory)


def test_the_data_are_found_where_this_machine_has_them(
    copied: RunDirectory, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSSEG_DATA", str(root.parent))
    assert opened(copied.directory).cfg.dataset.root == str(root)
    text = copied.config_file.read_text()
    copied.config_file.write_text(text.replace(str(root), "/another/machine"))
    assert opened(copied.directory).cfg.dataset.root == str(root)  # the recorded folder is not here
    for change in (f"dataset.root={tmp_path}", f"data.roots.shapes5i={tmp_path}"):
        assert open_finished(copied, [change]).cfg.dataset.root == str(tmp_path)


def test_data_that_are_absent_or_others_are_told(training_free: Path, tmp_path: Path) -> None:
    found = opened(training_free)
    absent = compose(["dataset=pascal5i", f"data.roots.pascal5i={tmp_path}/none", "method=prototype"]).cfg
    with pytest.raises(UserError, match="there is no folder") as fault:
        answer(replace(found, cfg=absent), {(4, 1)})
    assert "--also dataset.root=" in fault.value.fix
    found.cfg.protocol.num_episodes = 6
    with pytest.raises(UserError, match=r"was evaluated on other data than .*: episodes \w+ then, \w+ now"):
        answer(found, {(4, 1)})


def test_a_run_that_began_with_a_checkpoint_is_drawn_with_it(copied: RunDirectory, root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path / "outputs", *EPISODES, *ROUNDS, "train.enabled=false",
                 f"checkpoint={copied.checkpoint}")  # fmt: skip
    done(c)
    directory = cell_of(c).directory
    assert not answer(opened(directory), {(4, 1), (0, 2)}).unlike
    os.truncate(copied.checkpoint, 100)
    with pytest.raises(UserError, match="is not the checkpoint that"):
        opened(directory)
    copied.checkpoint.unlink()
    with pytest.raises(UserError, match="is gone"):
        opened(directory)
