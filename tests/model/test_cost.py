"""The budget of the paper, pinned; and the cost table against a count of the code as it really runs."""

from __future__ import annotations

from types import SimpleNamespace

import model_samples as samples
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fsseg.config.schema import AbcbConfig, BackboneConfig, BaselineConfig, MethodConfig
from fsseg.model import build_model
from fsseg.model.baseline import Baseline
from fsseg.model.cost import CostRow, cost, format_cost


def config(model: MethodConfig, backbone: str = "tiny", side: int = 65, shot: int = 1):
    return SimpleNamespace(
        model=model, backbone=BackboneConfig(backbone), dataset=SimpleNamespace(image_size=side), shot=shot
    )


@pytest.fixture(scope="module")
def table() -> dict[str, CostRow]:
    return {row.part: row for row in cost(config(AbcbConfig("abcb"), "resnet50", 473))}


def test_parameters_meet_the_paper(table: dict[str, CostRow]) -> None:
    millions = {part: row.parameters / 1e6 for part, row in table.items() if row.parameters is not None}
    assert millions["baseline"] == pytest.approx(27.6, rel=0.01)
    assert millions["T = 3"] == pytest.approx(33.5, rel=0.01)
    assert [round(millions[part], 1) for part in ("QP", "SM", "IC")] == [0.6, 3.9, 2.0]
    assert millions["backbone, 2 images"] == pytest.approx(25.557 - 2.049, abs=1e-3)  # torchvision's figure less its fc


def test_multiply_adds_meet_the_paper_in_its_dense_form(table: dict[str, CostRow]) -> None:
    assert table["backbone, 2 images"].dense_macs / 1e9 == pytest.approx(175.1, abs=0.05)
    assert table["baseline"].dense_macs / 1e9 == pytest.approx(210.3, rel=0.05)
    assert table["one more round"].dense_macs / 1e9 == pytest.approx(15.6, rel=0.1)
    for t, paper in enumerate((225.8, 241.3, 257.0, 272.7, 288.2), start=1):
        assert table[f"T = {t}"].dense_macs / 1e9 == pytest.approx(paper, rel=0.05)


def test_shortcuts_cost_less_than_the_dense_form(table: dict[str, CostRow]) -> None:
    assert all(row.macs <= row.dense_macs for row in table.values())
    assert table["T = 1"].macs == table["baseline"].macs  # SM and IC of the last round do not run
    assert table["neck"].macs < 0.5 * table["neck"].dense_macs


def test_the_papers_figures_stand_only_beside_its_own_setting(
    table: dict[str, CostRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (table["T = 3"].paper_parameters, table["T = 3"].paper_gmacs) == (33.5, 257.0)
    assert (table["T = 2"].paper_parameters, table["T = 2"].paper_gmacs) == (None, 241.3)
    assert (table["baseline"].paper_parameters, table["baseline"].paper_gmacs) == (27.6, 210.3)
    model = BaselineConfig("baseline")
    for setting, own in (
        (("tiny", 65, 1), True),
        (("tiny", 33, 1), False),
        (("tiny", 65, 2), False),
        (("x", 65, 1), False),
    ):
        monkeypatch.setattr("fsseg.model.cost.PAPER_SETTING", setting)
        rows = {row.part: row for row in cost(config(model))}
        assert (rows["baseline"].paper_gmacs == 210.3) == own
        assert own or all(row.paper_parameters is None and row.paper_gmacs is None for row in rows.values())


def test_parts_can_be_left_out() -> None:
    plain = {row.part: row for row in cost(config(BaselineConfig("baseline")))}
    assert list(plain) == ["backbone, 2 images", "neck", "QP", "baseline"]
    without = {row.part for row in cost(config(AbcbConfig("abcb", cleansing=False)))}
    assert "SM" in without
    assert "IC" not in without


@pytest.mark.parametrize("passes", [0, 2])
def test_a_method_without_training_has_its_matching_counted(passes: int) -> None:
    """By hand: 17 x 17 cells of C channels, 2 prototypes a side, 3 iterations, half of the supports foreground."""
    model = samples.dino(
        foreground_prototypes=2, background_prototypes=2, kmeans_iterations=3, gram_passes=passes, layer="layer4"
    )
    rows = {row.part: row for row in cost(config(model, shot=2), share=0.5)}
    assert list(rows) == ["encode, 3 images", "decode", "dino"]
    assert rows["decode"].parameters == 0
    cells, channels = 17 * 17, build_model(samples.cell(model)).backbone.channels["layer4"]
    both = 2 * cells  # foreground and background of the supports together; rows between the two are of one of them
    # start: nearness to the mean and to 2 centres; each iteration: nearness to 2 centres, and 2 sums
    clusters = both * channels * (1 + 2 + 3 * 2 * 2)
    answers = cells * channels * (2 + 2)
    spread = passes * cells * cells * (channels + 1)
    assert rows["decode"].macs == pytest.approx(clusters + answers + spread, rel=0.02)
    assert rows["dino"].macs == rows["encode, 3 images"].macs + rows["decode"].macs
    plain = [row.part for row in cost(config(samples.prototype(), shot=5))]
    assert plain == ["encode, 6 images", "decode", "prototype"]


@pytest.mark.parametrize("shots", [1, 2])
def test_the_table_equals_a_count_of_the_running_model(shots: int) -> None:
    """8 x 8 of the 17 x 17 cells are foreground in every support, and are predicted so in the query."""
    side, cells = 65, 64
    settings = config(samples.abcb(iterations=2), "tiny", side, shots)
    rows = {row.part: row for row in cost(settings, share=cells / 289)}
    torch.manual_seed(0)
    model = build_model(samples.cell(settings.model))
    assert isinstance(model, Baseline)
    masks = torch.zeros(1, shots, side, side, dtype=torch.uint8)
    masks[..., 14:46, 14:46] = 1  # cells 4..11, whole blocks of the pooled map
    batch = samples.batch(masks, side)
    with torch.no_grad():
        p = model(batch).rounds[0]
        cut = (p[:, 1] - p[:, 0]).flatten().sort(descending=True).values[cells - 1 : cells + 1].mean()
        model.qp.second.bias[0] += cut
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            prediction = model(batch)
    assert int((prediction.rounds[0][:, 1] > prediction.rounds[0][:, 0]).sum()) == cells
    assert counter.get_total_flops() // 2 == rows["T = 2"].macs


def test_render_lines_up_and_leaves_gaps_empty(table: dict[str, CostRow]) -> None:
    lines = format_cost([*table.values()]).splitlines()
    width = lines[0].index("GMACs") + len("GMACs")  # a column of its own: every figure of it ends there
    assert [line[:width].split()[-1] for line in lines[1:]] == [f"{row.macs / 1e9:.1f}" for row in table.values()]
    assert lines[0].split() == ["parameters", "M", "paper", "M", "GMACs", "GMACs", "dense", "paper", "GMACs"]
    assert lines[3].split()[:3] == ["QP", "0.56", "0.6"]
