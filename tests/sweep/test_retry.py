"""Lines that run failed cells again: they must lead to the very directory and fingerprint."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fsseg.cell.record import open_cell
from fsseg.config.compose import Composed, composer
from fsseg.process.files import write_json
from fsseg.sweep.retry import _literal, find_retries, report


def start(line: list[str], state: str = "failed") -> list[Path]:
    """What the first seconds of a sweep leave behind, without running it."""
    folders = []
    with composer() as c:
        for _, composed in c.grid(line):
            assert isinstance(composed, Composed)
            cell = open_cell(composed.cfg, composed.resolved, composed.task_overrides)
            cell.directory.mkdir(parents=True)
            cell.config.write_text(OmegaConf.to_yaml(composed.config, resolve=True))
            write_json(cell.identity_file, {"fingerprint": cell.fingerprint, "identity": cell.identity})
            write_json(cell.status, {"state": state, "reason": "out of luck"})
            folders.append(cell.directory)
    return folders


def reached(lines: list[str]) -> dict[Path, str]:
    """Directory -> fingerprint of every cell that the lines run."""
    found = {}
    with composer() as c:
        for line in lines:
            for _, composed in c.grid(shlex.split(line)[3:]):
                assert isinstance(composed, Composed)
                cell = open_cell(composed.cfg, composed.resolved, composed.task_overrides)
                assert cell.directory not in found
                found[cell.directory] = cell.fingerprint
    return found


AWKWARD = {
    "plain": ["fold=0,1,2"],
    "values": ["train.lr=0.004", "model.iterations=5", "protocol.seeds=[0,1]", "dataset.rotate_degrees=5"],
    "groups": ["dataset=pascal5i", "method=baseline", "backbone=resnet101", "protocol=hsnet", "shot=5", "fold=2,3"],
    "paths": ["dataset=pascal5i", "dataset.root='/data/with space, comma'", "num_workers=3", "device=cpu", "fold=1"],
    "named": ["variant=mine", "train.max_steps=7", "seed=3", "protocol=bam"],
    "experiment": ["experiment=smoke", "fold=0,3"],
}


@pytest.mark.parametrize("line", AWKWARD.values(), ids=AWKWARD.keys())
def test_the_lines_lead_back_to_the_same_cells(line: list[str], tmp_path: Path) -> None:
    folders = start([*line, f"output_dir={tmp_path}", *([] if "experiment=smoke" in line else ["name='a name'"])])
    found = find_retries([tmp_path])
    assert found.notes == []
    stored = {f: OmegaConf.load(f / "identity.json")["fingerprint"] for f in folders}
    assert reached(found.lines) == stored
    assert len(found.lines) == 1


def test_finished_and_living_cells_are_left_alone(tmp_path: Path) -> None:
    done, running, failed, preempted = start(["fold=0,1,2,3", f"output_dir={tmp_path}"])
    write_json(done / "result.json", {"metrics": {"miou": 1.0}})
    write_json(running / "status.json", {"state": "running", "heartbeat": 4e9})
    write_json(preempted / "status.json", {"state": "preempted"})
    found = find_retries([tmp_path])
    assert {s.directory for s in found.cells} == {failed, preempted}
    [line] = found.lines
    assert "fold=2,3" in line


def test_nothing_to_do_is_said_without_lines(tmp_path: Path) -> None:
    [folder] = start([f"output_dir={tmp_path}"])
    write_json(folder / "result.json", {"metrics": None})
    assert report(find_retries([tmp_path])) == "nothing to run again"


def test_further_overrides_stand_in_every_line(tmp_path: Path) -> None:
    start(["dataset=pascal5i,shapes5i", f"output_dir={tmp_path}"])
    lines = find_retries([tmp_path], ["hydra/launcher=slurm"]).lines
    assert lines
    assert all(line.endswith(" hydra/launcher=slurm") for line in lines)


def test_a_cell_of_other_code_gets_no_line_but_a_reason(tmp_path: Path) -> None:
    [folder] = start([f"output_dir={tmp_path}"])
    write_json(folder / "identity.json", {"fingerprint": "0" * 16, "identity": {}})
    found = find_retries([tmp_path])
    assert found.lines == []
    assert "another version" in found.notes[0]


def test_a_cell_without_configuration_gets_no_line_but_a_reason(tmp_path: Path) -> None:
    [folder] = start([f"output_dir={tmp_path}"])
    (folder / "config.yaml").unlink()
    assert "no config.yaml" in find_retries([tmp_path]).notes[0]


@pytest.mark.parametrize(
    "value",
    [None, True, 1e-5, 0.004, 3, "plain", "null", "true", "12", "1e5", "", "a b", "it's", "a,b", "back\\slash", "end\\",
     "q\\'x", "[x]", "${x}a", "a=b", [0, 1], [0.5, "x y"], "/abs/path-1.txt", "ü", "~/data"],
)  # fmt: skip
def test_a_value_comes_through_hydras_grammar_unchanged(value: object) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    [parsed] = OverridesParser.create().parse_overrides([f"key={_literal(value)}"])
    assert not parsed.is_sweep_override()
    assert parsed.value() == value
