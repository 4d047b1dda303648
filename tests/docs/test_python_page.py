"""docs/python.md: its code runs, from top to bottom, in a folder with the files that it names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import SMALL

import fsseg
from fsseg.run import run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
LINE = "dataset=shapes5i fold=1"
LOADED = 'fsseg.load("outputs/runs/shapes5i/abcb/tiny/1shot/default/fold1/seed0")'


def photo(path: str, seed: int, marked: bool = False) -> None:
    rng = np.random.default_rng(seed)
    Path(path).parent.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).resize((90, 60)).save(path)
    if marked:
        mask = np.zeros((60, 90), np.uint8)
        mask[10:40, 20:60] = 255
        Image.fromarray(mask).save(Path(path).with_suffix(".png"))


@pytest.mark.filterwarnings("ignore")
def test_the_code_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("cat1", "cat2", "dog1")):
        photo(f"{name}.jpg", seed, marked=True)
    photo("query.jpg", 3)
    for n in range(5):
        photo(f"photos/{n}.jpg", n)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (cell,) = [block for block in blocks if LINE in block]
    small = " ".join([*SMALL, "dataset.root=data", "output_dir=outputs"])
    scope: dict[str, Any] = {}
    # The cell comes first here: a reader of the page has one. It is small, and its variant is called so.
    exec("import fsseg\n" + cell.replace(LINE, f"{LINE} {small}"), scope)
    assert 0 <= scope["result"].miou <= 100
    assert LOADED in blocks[0]
    for block in blocks:
        if block is not cell:
            exec(block.replace(LOADED, LOADED.replace("default", "small")), scope)
    assert scope["answer"].mask.shape == (60, 90)
    assert scope["dogs"].shape == scope["probability"].shape == (60, 90)
    assert sorted(p.name for p in Path("photos").glob("*.png")) == [f"{n}.mask.png" for n in range(5)]
    assert scope["table"].fold.tolist() == [1]
    told = capsys.readouterr().out
    assert "image nowhere.jpg is missing" in told
    assert "abcb on tiny, trained on shapes5i fold 1, step 8 of 8, 25 px" in told


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = "import sys, fsseg; assert not {'torch', 'pandas', 'hydra', 'numpy'} & set(sys.modules); fsseg.load"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fsseg_run_is_a_module_that_can_be_called() -> None:
    assert callable(fsseg.run)
    assert fsseg.run.run is run
    with pytest.raises(AttributeError, match="nothing"):
        fsseg.nothing  # noqa: B018
