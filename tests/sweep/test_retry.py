"""Lines that run failed cells again: they must lead to the very directory and fingerprint."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from run_directories import make_run

from fsseg.cell import variant
from fsseg.cell.key import CellKey
from fsseg.cell.models import Attempt, write_record
from fsseg.cell.record import Cell, open_cell
from fsseg.cli.sweep import retry
from fsseg.config.compose import Composed, composer
from fsseg.errors import UserError
from fsseg.sweep.retry import Retry, find_retries, retries_among, text
from fsseg.sweep.status import look_around


def start(line: list[str], state: str = "failed") -> list[Cell]:
    """What the first seconds of a sweep leave behind, without running it."""
    cells = []
    with composer() as c:
        for _, composed in c.grid(line):
            assert isinstance(composed, Composed)
            cell = open_cell(composed.cfg, composed.resolved, composed.task_overrides)
            make_run(cell, status={"state": state, "reason": "out of luck"})
            cells.append(cell)
    return cells


def reached(lines: list[str]) -> dict[Path, str]:
    """Directory -> fingerprint of every cell that the lines run."""
    found = {}
    with composer() as c:
        for line in lines:
            words = shlex.split(line)
            single = words[2] != "-m"  # one cell, its words taken as they are
            for _, composed in c.each([words[2:]]) if single else c.grid(words[3:]):
                assert isinstance(composed, Composed)
                cell = open_cell(composed.cfg, composed.resolved, composed.task_overrides)
                assert cell.directory not in found
                found[cell.directory] = cell.fingerprint
    return found


def only(notes: dict[str, list[str]]) -> str:
    [why] = notes
    return why


AWKWARD = {
    "plain": ["fold=0,1,2"],
    "values": ["train.lr=0.004", "model.iterations=5", "protocol.seeds=[0,1]", "dataset.rotate_degrees=5"],
    "lists": ["protocol.seeds=[0,1],[2,3,4]", "train.lr=1e-3,.5"],
    "groups": ["dataset=pascal5i", "method=baseline", "backbone=resnet101", "protocol=hsnet", "shot=5", "fold=2,3"],
    "paths": ["dataset=pascal5i", "dataset.root='/data/with space, comma'", "num_workers=3", "device=cpu", "fold=1"],
    "roots": ["dataset=pascal5i,coco20i", "data.roots.pascal5i='/a b, c'", "data.roots.coco20i=1.10", "fold=0,1"],
    "quotes": ["dataset.root='it\\'s \"here\"'", "sync.url='file:///a=b, $HOME'", "fold=0,1"],
    "nulls": ["train.max_steps=null", "sync.url=null", "train.clip_grad_norm=null,1.5"],
    "named": ["variant=mine", "train.max_steps=7", "seed=3", "protocol=bam"],
    "experiment": ["experiment=smoke", "fold=0,3"],
}


@pytest.mark.parametrize("line", AWKWARD.values(), ids=AWKWARD.keys())
def test_the_lines_lead_back_to_the_same_cells(line: list[str], tmp_path: Path) -> None:
    cells = start([*line, f"output_dir={tmp_path}", *([] if "experiment=smoke" in line else ["name='a name'"])])
    found = find_retries([tmp_path])
    assert found.notes == {}
    assert reached(found.lines) == {cell.directory: cell.fingerprint for cell in cells}
    assert len(found.lines) == 1


def test_what_was_interpolated_is_noted_with_the_values_of_the_cell(tmp_path: Path) -> None:
    cells = start(["train.lr=0.1,0.2", "variant='lr${train.lr}'", "train.momentum=${train.poly_power}",
                   f"output_dir={tmp_path}"])  # fmt: skip
    found = find_retries([tmp_path])
    assert found.notes == {}
    assert reached(found.lines) == {cell.directory: cell.fingerprint for cell in cells}
    assert [cell.key.variant for cell in cells] == ["lr0.1", "lr0.2"]


def test_what_an_experiment_file_sweeps_is_named_in_the_line(tmp_path: Path) -> None:
    cells = start(["experiment=table3_components", "fold=1", f"output_dir={tmp_path}"])
    find = find_retries([tmp_path])
    assert find.notes == {}
    assert reached(find.lines) == {cell.directory: cell.fingerprint for cell in cells}
    assert len(cells) > 1


@pytest.mark.parametrize("folder", ["outputs", "with space, comma and 'quote'"])
def test_a_line_may_be_asked_for_in_another_folder_than_the_run_was_started_in(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quoted = folder.replace("'", "\\'")
    [cell] = start(["fold=1", f"output_dir='{quoted}'"])
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    [line] = find_retries([tmp_path / folder]).lines
    assert {k.resolve(): v for k, v in reached([line]).items()} == {tmp_path / cell.directory: cell.fingerprint}


def test_a_cell_is_not_redone_from_the_beginning(tmp_path: Path) -> None:
    start(["fold=1", "redo=true", f"output_dir={tmp_path}"], "preempted")
    [line] = find_retries([tmp_path]).lines
    assert "redo=" not in line


def test_finished_and_living_cells_are_left_alone(tmp_path: Path) -> None:
    done, running, failed, preempted = start(["fold=0,1,2,3", f"output_dir={tmp_path}"])
    make_run(done, result=1.0)
    make_run(running, status="running")
    make_run(preempted, status="preempted")
    found = find_retries([tmp_path])
    assert {s.directory for s in found.cells} == {failed.directory, preempted.directory}
    [line] = found.lines
    assert "fold=2,3" in line


def test_nothing_to_do_is_said_without_lines(tmp_path: Path) -> None:
    [cell] = start([f"output_dir={tmp_path}"])
    make_run(cell, result={"metrics": None})
    assert text(find_retries([tmp_path])) == "nothing to run again"


def test_further_overrides_stand_in_every_line(tmp_path: Path) -> None:
    start(["dataset=pascal5i,shapes5i", f"output_dir={tmp_path}"])
    lines = find_retries([tmp_path], ["hydra/launcher=slurm"]).lines
    assert lines
    assert all(line.endswith(" hydra/launcher=slurm") for line in lines)


def test_a_cell_of_other_code_gets_no_line_but_a_reason(tmp_path: Path) -> None:
    [cell] = start([f"output_dir={tmp_path}"])
    make_run(tmp_path, cell.key, identity={}, overrides=cell.overrides)  # another fingerprint
    found = find_retries([tmp_path])
    assert found.lines == []
    assert "another version" in only(found.notes)


def test_a_run_that_was_copied_to_the_place_of_another_cell_gets_no_line(tmp_path: Path) -> None:
    [cell] = start(["fold=1", f"output_dir={tmp_path}"])
    place = cell.directory.parents[1] / "fold2" / "seed0"
    place.parent.mkdir()
    cell.directory.rename(place)
    found = find_retries([tmp_path])
    assert found.lines == []
    assert len(found.notes) == 1


def test_a_cell_whose_overrides_are_unknown_to_this_code_gets_no_line_but_a_reason(tmp_path: Path) -> None:
    [cell] = start([f"output_dir={tmp_path}"])
    make_run(cell, overrides=["gone.setting=1"])
    [(why, labels)] = find_retries([tmp_path]).notes.items()
    assert labels == [str(cell.key)]
    assert "gone" in why


def test_a_cell_without_identity_gets_no_line_but_a_reason(tmp_path: Path) -> None:
    [cell] = start([f"output_dir={tmp_path}"])
    cell.identity_file.unlink()
    assert "no identity.json" in only(find_retries([tmp_path]).notes)
    cell.identity_file.write_text('{"fingerprint": ')
    assert "identity.json is not JSON" in only(find_retries([tmp_path]).notes)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train.py", "-m", "fold=0,1", "name=a b"], "it was started with `python train.py -m fold=0,1 'name=a b'`"),
        (["_submit.py", "/some/folder"], "run its sweep line again"),
        (None, "run its sweep line again"),
    ],
    ids=["by hand", "by a launcher", "not at all"],
)  # fmt: skip
def test_a_cell_of_the_former_version_is_told_how_it_was_started(
    command: list[str] | None, words: str, tmp_path: Path
) -> None:
    [cell] = start([f"output_dir={tmp_path}"])
    make_run(cell, status="failed", version=1)
    if command is not None:
        write_record(cell.attempts / "1.json", Attempt("2026-01-01T00:00:00+00:00", command=["train.py", "old=1"]))
        write_record(cell.attempts / "2.json", Attempt("2026-01-02T00:00:00+00:00", command=command))
    found = find_retries([tmp_path])
    assert found.lines == []
    assert "earlier version" in only(found.notes)
    assert words in only(found.notes)
    assert only(found.notes) in text(found)


def single(*overrides: str) -> Cell:
    """As `start`, of one run without -m, whose values stay as they were typed."""
    with composer() as c:
        [(_, composed)] = c.each([list(overrides)])
    assert isinstance(composed, Composed)
    cell = open_cell(composed.cfg, composed.resolved, composed.task_overrides)
    make_run(cell, status="failed")
    return cell


@pytest.mark.parametrize("override", ["dataset.scale_range=[0.80,1.20]", "protocol.seeds=[0, 1]"])
def test_a_list_that_a_sweep_writes_otherwise_gets_a_line_of_its_own(override: str, tmp_path: Path) -> None:
    """`-m` hands [0.80,1.20] on as [0.8,1.2], which is another variant: the cell would be trained a second time."""
    cell = single(override, f"output_dir={tmp_path}")
    found = find_retries([tmp_path])
    [line] = found.lines
    assert "-m" not in line.split()
    assert reached([line]) == {cell.directory: cell.fingerprint}


@pytest.mark.parametrize("override", ["model.cleansing=false", "train.lr=1e-3", "train.lr=.5"])
def test_a_value_that_a_sweep_writes_otherwise_is_the_same_cell(override: str, tmp_path: Path) -> None:
    cell = single(override, f"output_dir={tmp_path}")
    [line] = find_retries([tmp_path]).lines
    assert "-m" in line.split()
    assert reached([line]) == {cell.directory: cell.fingerprint}


LONG = ["dataset.num_train=60", "dataset.num_val=60", "dataset.image_size=25", "protocol.num_episodes=6",
        "train.max_steps=8", "train.batch_size=2", "model.channels=16"]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "name"),
    [
        (["model.cleansing=false"], "model.cleansing-false"),
        (["train.lr=1e-3"], "train.lr-1e-3"),
        ([*LONG, "train.lr=1e-3"], None),
    ],
)
def test_a_run_of_an_earlier_version_is_found_under_the_name_it_was_given(
    override: list[str], name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a single line, by a sweep, in another order, and by retry from another folder."""
    with monkeypatch.context() as earlier:
        earlier.setattr(variant, "_spelled", lambda value: value)
        earlier.setattr(variant, "_is_cut", lambda full, safe: False)
        cell = single(*override, f"output_dir={tmp_path}")
    assert cell.key.variant == (name or cell.key.variant)
    monkeypatch.chdir(tmp_path.parent)
    with composer() as c:
        place = f"output_dir={tmp_path}"
        for [(_, composed)] in (c.each([[*override, place]]), c.grid([*override[::-1], place])):
            assert isinstance(composed, Composed)
            again = open_cell(composed.cfg, composed.resolved, composed.task_overrides)
            assert (again.directory, again.key, again.fingerprint) == (cell.directory, cell.key, cell.fingerprint)
    assert reached(find_retries([tmp_path]).lines) == {cell.directory: cell.fingerprint}


def test_a_run_under_an_earlier_name_with_other_settings_is_another_cell(tmp_path: Path) -> None:
    cell = single("model.cleansing=false", f"output_dir={tmp_path}")
    there = cell.directory.parents[2] / "model.cleansing-false" / "fold0" / "seed0"
    make_run(Cell(there, cell.key, "other", {}), result=50.0)
    shutil.rmtree(cell.directory)
    assert single("model.cleansing=false", f"output_dir={tmp_path}").directory == cell.directory


def test_a_key_taken_out_stays_out(tmp_path: Path) -> None:
    cell = single("~logger", f"output_dir={tmp_path}")
    assert reached(find_retries([tmp_path]).lines) == {cell.directory: cell.fingerprint}


def test_a_renamed_folder_is_run_under_its_new_name(tmp_path: Path) -> None:
    [cell] = start(["fold=1", "name=old", f"output_dir={tmp_path}"])
    (tmp_path / "old").rename(tmp_path / "new name")
    place = Path(str(cell.directory).replace("/old/", "/new name/"))
    assert reached(find_retries([tmp_path]).lines) == {place: cell.fingerprint}


def test_a_folder_that_is_not_below_this_one_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start(["fold=1", "output_dir=outputs"])
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    [line] = find_retries([tmp_path / "outputs"]).lines
    assert f"output_dir={tmp_path}/outputs" in shlex.split(line)


def test_files_of_another_configuration_folder_lead_to_the_line_of_the_start(tmp_path: Path) -> None:
    [cell] = start([f"output_dir={tmp_path}"])
    make_run(cell, overrides=["experiment=mine"])
    command = ["train.py", "--config-dir", "mine", "experiment=mine"]
    write_record(cell.attempts / "1.json", Attempt("2026-01-01T00:00:00+00:00", command=command))
    assert only(find_retries([tmp_path]).notes).endswith(
        "it was started with `python train.py --config-dir mine experiment=mine`"
    )


def test_cells_of_one_reason_are_told_together_and_run_says_that_they_are_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for cell in start(["fold=0,1,2", f"output_dir={tmp_path}"]):
        make_run(cell, status="failed", version=1)
    found = find_retries([tmp_path])
    assert [len(labels) for labels in found.notes.values()] == [3]
    with pytest.raises(UserError, match="3 cells were not run"):
        retry([tmp_path], run=True)
    assert capsys.readouterr().out.count("earlier version") == 1


def beside(cells: list[Cell], folder: Path, *keys: CellKey) -> Retry:
    around = look_around([folder])
    assert len(around.cells) == len(cells)
    return retries_among(around, absent=keys)


@pytest.mark.parametrize("line", [*AWKWARD.values(), ["train.amp=false", "fold=1"]], ids=[*AWKWARD, "false"])
def test_cells_that_nobody_started_have_the_line_of_their_row(line: list[str], tmp_path: Path) -> None:
    cells = start([*line, f"output_dir={tmp_path}", *([] if "experiment=smoke" in line else ["name='a name'"])], "done")
    for cell in cells:
        make_run(cell, result=1.0)
    rows = {replace(cell.key, shot=0, fold=0, seed=0): cell.key for cell in cells}
    absent = [replace(key, seed=7, fold=fold) for key in rows.values() for fold in (0, 1)]
    found = beside(cells, tmp_path, *absent)
    assert found.notes == {}
    assert {directory.relative_to(tmp_path) for directory in reached(found.lines)} == {key.path for key in absent}


def test_failed_cells_and_those_that_nobody_started_share_a_line(tmp_path: Path) -> None:
    cells = start(["fold=0,1", "train.lr=0.5", f"output_dir={tmp_path}"])
    absent = [replace(cells[0].key, fold=fold) for fold in (2, 3)]
    [line] = beside(cells, tmp_path, *absent).lines
    assert "fold=0,1,2,3" in line


def test_without_a_whole_cell_in_its_row_an_absent_one_has_a_reason(tmp_path: Path) -> None:
    [cell] = start(["fold=1", f"output_dir={tmp_path}"])
    make_run(tmp_path, cell.key, identity={}, overrides=cell.overrides, result=1.0)  # another fingerprint
    other = replace(cell.key, fold=2)
    why = only(beside([cell], tmp_path, other).notes)
    assert "was made by another version" in why
    assert cell.key.path.as_posix() in why
    elsewhere = replace(cell.key, method="pfenet")
    assert "no cell of its row" in only(beside([cell], tmp_path, elsewhere).notes)
