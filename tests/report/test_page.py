"""The page of `fsseg report`: what stands in it, and that foreign text is text; a parser takes it apart."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import fsseg
from html_page import Element, parsed
from PIL import Image
from run_directories import make_run, write_metrics

from fsseg.cell.episodes import EpisodeCounts, EpisodeScope, Scored, write_counts
from fsseg.cell.models import State
from fsseg.cell.record import RunDirectory, Snapshot, open_cell
from fsseg.config.compose import Composed, composer
from fsseg.report.collect import collect
from fsseg.report.page.contents import Contents, Standing, contents
from fsseg.report.page.curves import thinned
from fsseg.report.page.figures import Budget, embedded
from fsseg.report.page.render import render
from fsseg.report.tables import build
from fsseg.sweep import status

HOSTILE = (
    "<script>alert(1)</script>", "</title></style></script><img src=x onerror=alert(1)>", '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='", "{{ 7 * 7 }}{% raw %}", "%s %(x)s {0}", "a&lt;b & c;", "javascript:alert(1)",
    "café ‮ \U0001f600 \x1b[31m", "x" * 300,
)  # fmt: skip


def page_of(*folders: Path, **standing: object) -> tuple[Contents, Element]:
    cells = status.look_around(folders).cells
    report = build(collect(folders, whole=True))
    made = contents(report, Standing(cells, **standing), folders)  # type: ignore[arg-type]
    return made, parsed(render(made))


def section(page: Element, id: str) -> Element:
    return page.one("section", id=id)


def with_episodes(run: RunDirectory, ious: dict[str, list[int]]) -> None:
    """Give a finished run a record of episodes: of each class the intersections, of unions of 100 pixels."""
    from fsseg.cell.models import write_record

    scope = EpisodeScope((0,), tuple(range(len(ious))), tuple(ious))
    scored, number = [], 0
    for class_id, values in enumerate(ious.values()):
        for value in values:
            scored.append(Scored(0, number, class_id, "", 100, [(value, 100, 50, 150 - value)]))
            number += 1
    result = run.result()
    assert result is not None
    result.episodes = write_counts(run.episodes_file, EpisodeCounts.of(scope, scored))
    write_record(run.result_file, result)


def test_the_tables_are_those_of_aggregate(tmp_path, make_cell):
    for fold, miou in enumerate((60.0, 50.0, 70.0, 80.0)):
        make_cell(fold, miou, dataset="folder")
        make_cell(fold, miou - 10, dataset="folder", method="baseline")
    _, page = page_of(tmp_path)
    rows = section(page, "results").one("table").rows()
    assert rows[1] == ["row", "fold 0", "fold 1", "fold 2", "fold 3", "mean"]
    assert rows[2:] == [
        ["abcb resnet50", "60.0", "50.0", "70.0", "80.0", "65.0"],
        ["baseline resnet50", "50.0", "40.0", "60.0", "70.0", "55.0"],
    ]
    (_, differences) = section(page, "against").all("table")
    assert "to baseline resnet50" in differences.one("caption").text
    # Student's t over four equal differences: an interval without width
    assert differences.rows()[1][:5] == ["abcb resnet50", "+10.00", "[+10.00, +10.00]", "", "4"]


def test_a_row_that_lacks_folds_says_so_beside_its_score(tmp_path, make_cell):
    for fold in range(4):
        make_cell(fold, 60.0)
    for fold in range(3):
        make_cell(fold, 50.0, method="baseline")
    _, page = page_of(tmp_path)
    scores = next(iter(section(page, "against").all("table")))
    assert scores.rows()[2][:2] == ["baseline resnet50", "50.00"]
    assert "baseline resnet50: of folds 0, 1, 2 alone" in section(page, "against").text
    assert "[low, high]" not in section(page, "results").text  # nothing there has brackets


def test_rows_of_published_figures_stay_with_the_row_above(tmp_path, make_cell):
    data = {"num_val_images": 1449, "fingerprint_val": "v"}
    for fold in range(4):
        make_cell(fold, 60.0, protocol={"name": "standard"}, data=data)
    _, page = page_of(tmp_path)
    (body,) = section(page, "results").one("table").all("tbody")
    labels = [row.one("th").text for row in body.all("tr")]
    classes = [row.attributes.get("class", "") for row in body.all("tr")]
    assert labels == ["abcb resnet50", "paper (ABCB, CVPR 2024)", "difference"]
    assert classes == ["", "minor", "minor"]


def test_the_heat_map_has_means_over_seeds_and_their_colours(tmp_path, make_cell):
    for seed, (cat, dog) in enumerate(((40.0, 90.0), (60.0, 94.0))):
        classes = {"per_class": {"cat": cat, "dog": dog}}
        make_cell(0, (cat + dog) / 2, seed=seed, result={"metrics": classes})
    _, page = page_of(tmp_path)
    table = section(page, "classes").one("table")
    assert table.rows()[1:] == [["fold 0", "71.0"], ["cat", "50.0"], ["dog", "92.0"]]
    # from 50 to 100 percent in 20 steps of 2.5
    assert [cell.attributes["class"] for cell in table.all("td")] == ["h8", "h0", "h17"]
    assert "50.0 to 92.0 percent" in table.one("caption").text


def test_the_colours_are_cividis_and_their_numbers_are_legible():
    import matplotlib

    style = (Path(sys.modules["fsseg.report.page.render"].__file__ or "").parent / "templates/style.css").read_text()
    found = re.findall(r"\.h(\d+) { background: (#\w{6}); color: (#\w{3}); }", style)
    assert [int(step) for step, *_ in found] == list(range(21))
    for step, background, ink in found:
        exact = matplotlib.colormaps["cividis"](int(step) / 20)[:3]
        own = [int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert np.abs(np.subtract(exact, own)).max() < 1 / 250
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in own]
        luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
        contrast = 1.05 / (luminance + 0.05) if ink == "#fff" else (luminance + 0.05) / 0.05
        assert contrast >= 4.5, step  # WCAG 2, AA


def test_what_is_missing_stands_there_with_its_reason_and_the_line(tmp_path, make_cell):
    make_cell(0, 60.0)
    make_cell(1, None, status={"state": "failed", "reason": "disk full"})
    make_cell(2, None, status={"state": "running", "phase": "train", "step": 3, "steps": 10, "host": "node7"})
    made, page = page_of(tmp_path, lines=["python train.py fold=1"], notes={"its overrides are gone": ["cell seven"]})
    assert made.counts == {"done": 1, "running": 1, "failed": 1, "missing": 1}
    rows = section(page, "missing").one("table").rows()
    assert rows[1][:2] == ["x/pascal5i/abcb/resnet50/1shot/default/fold1/seed0", "failed"]
    assert rows[1][2].startswith("disk full")
    assert rows[2][2] == "train step 3 of 10, on node7"
    told = section(page, "missing").text
    assert section(page, "missing").one("pre").text == "python train.py fold=1"
    assert "x/pascal5i/abcb/resnet50/1shot/default/fold3/seed0" in told
    assert "No line for 1 cell: its overrides are gone" in told
    assert (
        "Of 4 cells 1 done, 1 running, 1 failed, 1 missing"
        in page.one("svg", **{"class": "bar"}).attributes["aria-label"]
    )


def test_only_a_cell_that_runs_has_time_to_go(tmp_path, make_cell):
    for fold, age in ((0, 1.0), (1, 10_000.0)):
        status = {"state": "running", "phase": "train", "step": 30, "steps": 100, "eta_seconds": 480.0}
        make_cell(fold, None, status=status, age=age)
    _, page = page_of(tmp_path)
    told = {row[1]: row[2] for row in section(page, "missing").one("table").rows()[1:]}
    assert told["running"] == "train step 30 of 100, 8 min to go"
    assert "to go" not in told["stale"]


def test_a_cell_that_a_sweep_has_not_come_to_is_not_missing_twice(tmp_path, make_cell):
    for fold in range(3):
        make_cell(fold, 60.0)
    known = status.look_around([tmp_path]).cells
    later = Snapshot(RunDirectory(known[0].directory.parents[1] / "fold3/seed0"), State.QUEUED, "sweep 1")
    made = contents(build(collect([tmp_path], whole=True)), Standing([*known, later]), [tmp_path])
    assert made.counts == {"done": 3, "running": 1, "failed": 0, "missing": 0}
    assert made.not_started == []


def test_foreign_text_is_text(tmp_path, make_cell):
    plain, hostile = tmp_path / "plain", tmp_path / "hostile"
    for place, texts in ((plain, [f"word {i}" for i in range(len(HOSTILE))]), (hostile, HOSTILE)):
        for i, text in enumerate(texts):
            name = text.replace("/", "|").replace("\0", "")[:150]
            run = make_cell(
                0, 50.0, root=place, name=f"n{i}{name}"[:90], variant=f"v{i}{name}"[:90],
                result={"metrics": {"per_class": {text: 50.0}}, "provenance": {"host": text, "device": text}},
                data={"novel_classes": [text]}, identity={"train.lr": 0.1, text: text}, overrides=[text],
            )  # fmt: skip
            write_metrics(run, [{"step": 1, f"{text}loss": 1.0}, {"step": 2, f"{text}loss": 0.5}])
            make_cell(1, None, root=place, name=f"n{i}", status={"state": "failed", "reason": text})
    (_, expected), (_, page) = (
        page_of(place, lines=list(texts), notes={text: [text] for text in texts})
        for place, texts in ((plain, ["word"] * len(HOSTILE)), (hostile, HOSTILE))
    )

    def shape(element: Element) -> set[tuple[str, frozenset[str]]]:
        return {(e.tag, frozenset(e.attributes)) for e in element.all()}

    assert shape(page) == shape(expected)
    assert [pre.text for pre in section(page, "missing").all("pre")] == [
        text.replace("‮", "\\u202e").replace("\x1b", "\\x1b") for text in HOSTILE
    ]
    shown = section(page, "classes").text
    assert "<script>alert(1)</script>" in shown
    assert "{{ 7 * 7 }}{% raw %}" in shown
    assert "x" * 300 in shown


def test_the_policy_names_the_only_style_and_the_only_script_and_nothing_is_fetched(tmp_path, make_cell):
    run = make_cell(0, 60.0)
    run.figures.mkdir()
    Image.new("RGB", (8, 8), "red").save(run.episodes_figure)
    _, page = page_of(tmp_path)
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.one(tag).text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:; ")
    addresses = [e.attributes[k] for e in page.all() for k in ("src", "href", "srcset", "action") if k in e.attributes]
    assert addresses
    assert all(address.startswith(("#", "data:image/")) for address in addresses)
    assert not any(name.startswith("on") or name == "style" for e in page.all() for name in e.attributes)
    ids = {e.attributes["id"] for e in page.all() if "id" in e.attributes}
    assert {e.attributes["href"][1:] for e in page.all("a")} <= ids


def test_every_picture_and_table_says_what_it_shows(tmp_path, make_cell):
    for seed in range(2):
        run = make_cell(0, 60.0, seed=seed, result={"metrics": {"per_class": {"cat": 60.0}}})
        write_metrics(run, [{"step": step, "train/loss": 1.0 / step} for step in (1, 2, 4)])
        run.figures.mkdir()
        Image.new("RGB", (8, 8), "red").save(run.episodes_figure)
    _, page = page_of(tmp_path)
    pictures = [e for e in page.all("svg") if e.attributes.get("role") == "img"]
    assert len(pictures) == len(list(page.all("svg")))
    assert all(len(e.attributes["aria-label"]) > 10 for e in pictures)
    assert all(len(e.attributes["alt"]) > 10 for e in page.all("img"))
    (curve,) = section(page, "curves").all("svg")
    assert curve.attributes["aria-label"] == (
        "train/loss of abcb resnet50, fold 0: seed 0 from 1 at step 1 to 0.25 at step 4, "
        "seed 1 from 1 at step 1 to 0.25 at step 4"
    )
    for table in page.all("table"):
        assert table.one("caption").text
        assert all(th.attributes["scope"] in ("col", "row", "colgroup") for th in table.all("th"))


def test_a_curve_is_drawn_on_the_axes_of_its_row(tmp_path, make_cell):
    write_metrics(make_cell(0, 60.0), [{"step": step, "train/loss": 2.0} for step in range(0, 101, 25)])
    write_metrics(make_cell(1, 60.0), [{"step": step, "train/loss": 1.0} for step in range(0, 51, 25)])
    _, page = page_of(tmp_path)
    lines = [line.attributes["points"] for line in section(page, "curves").all("polyline")]
    # 220 wide for 100 steps, 90 high for a loss of 2
    assert lines == [
        "0.0,0.0 55.0,0.0 110.0,0.0 165.0,0.0 220.0,0.0",
        "0.0,45.0 55.0,45.0 110.0,45.0",
    ]


def test_a_long_curve_is_thinned_to_means():
    steps = [float(step) for step in range(1, 601)]
    thin = thinned((steps, steps))
    assert thin[0] == [float(step) for step in range(10, 601, 10)]
    assert thin[1] == [step - 4.5 for step in thin[0]]


def test_sheets_tell_the_episodes_that_they_are_of(tmp_path, make_cell):
    run = make_cell(0, 60.0)
    with_episodes(run, {"cat": [10, 20, 90], "dog": [50, 30, 40, 60]})
    run.figures.mkdir()
    for rank in ("best", "median", "worst"):
        Image.new("RGB", (1400, 700), "red").save(run.figures / f"{rank}_per_class.png")
    _, page = page_of(tmp_path)
    sheets = section(page, "sheets")
    assert [row[:4] for row in sheets.one("table").rows()] == [
        ["class", "best", "median", "worst"], ["cat", "90.0", "20.0", "10.0"], ["dog", "60.0", "40.0", "30.0"],
    ]  # fmt: skip
    pictures = list(sheets.all("img"))
    assert [(p.attributes["width"], p.attributes["height"]) for p in pictures] == [("1000", "500")] * 3
    assert pictures[0].attributes["alt"].endswith("IoU: cat 90.0, dog 60.0.")
    assert pictures[2].attributes["alt"].endswith("IoU: cat 10.0, dog 30.0.")


def test_pictures_stop_where_the_budget_ends(tmp_path):
    file = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    first = embedded(file, "noise", Budget())
    assert first is not None
    budget = Budget(most_bytes=int(2.5 * len(first.address)))
    assert [embedded(file, "noise", budget) is not None for _ in range(4)] == [True, True, False, False]
    budget = Budget(most=1)
    assert [embedded(file, "noise", budget) is not None for _ in range(2)] == [True, False]


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_a_damaged_picture_is_left_out(tmp_path, content):
    file = tmp_path / "a.png"
    file.write_bytes(content)
    assert embedded(file, "nothing", Budget()) is None


def test_cells_that_nobody_started_stand_there_with_the_line_that_runs_them(tmp_path):
    with composer() as c:
        for fold in (0, 2):
            line = ["dataset=pascal5i", "method=baseline", f"fold={fold}", "train.lr=0.01", f"output_dir={tmp_path}"]
            ((_, composed),) = c.grid(line)
            assert isinstance(composed, Composed)
            make_run(open_cell(composed.cfg, composed.resolved, composed.task_overrides), result=50.0)
    out = tmp_path / "page.html"
    done = fsseg("report", str(tmp_path), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "(2 done, 2 missing)" in done.stdout
    missing = section(parsed(out.read_text()), "missing")
    assert [item.text.split("/")[-2:] for item in missing.all("li")] == [["fold1", "seed0"], ["fold3", "seed0"]]
    [pre] = missing.all("pre")
    words = shlex.split(pre.text)
    assert words[2] == "-m"
    assert {"dataset=pascal5i", "method=baseline", "fold=1,3", "train.lr=0.01"} <= set(words)


def test_it_is_renewed_until_nothing_runs(tmp_path, make_cell, monkeypatch):
    running = make_cell(0, None, status={"state": "running", "phase": "train", "step": 1, "steps": 9})
    out, seen = tmp_path / "page.html", []

    def wait(seconds: float) -> None:
        seen.append((seconds, out.read_text()))
        if len(seen) == 2:
            make_cell(0, 61.0)

    monkeypatch.setattr("time.sleep", wait)
    done = fsseg("report", str(running.directory.parents[6]), "--out", str(out), "--watch", "--every", "7")
    assert done.returncode == 0, done.stderr
    assert [seconds for seconds, _ in seen] == [7.0, 7.0]
    refresh = [e.attributes for e in parsed(seen[0][1]).all("meta") if e.attributes.get("http-equiv") == "refresh"]
    assert [r["content"] for r in refresh] == ["7"]
    last = parsed(out.read_text())
    assert not any(e.attributes.get("http-equiv") == "refresh" for e in last.all("meta"))
    assert "61.00" in section(last, "cells").text


def test_it_says_what_it_has_written(tmp_path, make_cell):
    make_cell(0, 60.0)
    make_cell(1, None, status="failed")
    done = fsseg("report", str(tmp_path), "--out", str(tmp_path / "new folder" / "p.html"))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r".*p\.html: 4 cells \(1 done, 1 failed, 2 missing\), \d+ kB\n", done.stdout)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere is no folder"),
        ([".", "--out", "."], ". is a folder"),
        ([".", "--also", "device=cpu"], "--also is for --sheets"),
        ([".", "--watch", "--every", "nan"], "--every=nan"),
        (["."], "no run found under ."),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_two_lines(tmp_path, words, told):
    done = fsseg("report", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {told}")
    assert done.stderr.count("\n") == 2
    assert list(tmp_path.iterdir()) == []


def test_it_is_made_without_torch(tmp_path, make_cell):
    run = make_cell(0, 60.0, result={"metrics": {"per_class": {"cat": 60.0}}})
    write_metrics(run, [{"step": 1, "train/loss": 1.0}])
    make_run(tmp_path, run.result().cell.__class__(**{**vars(run.result().cell), "fold": 1}), status="failed")
    code = (
        "import sys; from fsseg.cli.app import app\n"
        f"app(['report', {str(tmp_path)!r}, '--out', {str(tmp_path / 'p.html')!r}], standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
