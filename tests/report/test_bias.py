"""Figure 5 and the test of the claim, from made-up results and figures worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiment_files import BASELINE, FULL, SM, Add, report, rows
from made_episodes import counts_of

from fsseg.cell.episodes import write_counts
from fsseg.cell.models import write_record


def distance(counts: list[int], mean: float) -> dict[str, Any]:
    bins = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    rest = {"std": 0.1, "episodes": sum(counts), "without_foreground": 0}
    return {"foreground_distance": {"bins": bins, "counts": counts, "mean": mean, **rest}}


def test_figure_5_gives_shares_of_episodes(tmp_path: Path, add: Add) -> None:
    add("figure5_distance", "b", 50.0, BASELINE, metrics=distance([1, 1, 2, 0, 0, 0, 0], 0.2))
    add("figure5_distance", "f", 60.0, FULL, metrics=distance([6, 0, 0, 0, 0, 0, 2], 0.125))
    report(tmp_path)
    table = rows(tmp_path, "figure5_distance")
    assert table[""] == ["baseline (backbone + QP)", "baseline + SM + IC"]
    assert table["0-0.1"] == ["25.0", "75.0"]
    assert table["0.2-0.3"] == ["50.0", "0.0"]
    assert table[">0.6"] == ["0.0", "25.0"]
    assert table["mean distance"] == ["0.200", "0.125"]
    assert (tmp_path / "figure5_distance.png").read_bytes().startswith(b"\x89PNG")


def test_background_bias_shows_what_each_model_loses(tmp_path: Path, add: Add) -> None:
    def metrics(near: float, far: float, before: tuple[float, float] | None = None) -> dict[str, Any]:
        of_near = {"miou": near, "miou_per_round": [near]} | distance([4, 0, 0, 0, 0, 0, 0], 0.05)
        of_far = {"miou": far, "miou_per_round": [far]} | distance([0, 0, 4, 0, 0, 0, 0], 0.25)
        if before is not None:
            of_near["miou_per_round"], of_far["miou_per_round"] = [before[0], near], [before[1], far]
        return {"by_background_shift": {"0.0": of_near, "1.0": of_far}}

    for seed, near, far in ((0, 60.0, 40.0), (1, 62.0, 44.0)):
        add("background_bias", "b", 50.0, BASELINE, seed=seed, metrics=metrics(near, far))
    for seed, near, far in ((0, 61.0, 51.0), (1, 61.0, 53.0)):
        add("background_bias", "f", 50.0, FULL, seed=seed, metrics=metrics(near, far, before=(59.0, 42.0 + seed)))
    text = report(tmp_path)
    table = rows(tmp_path, "background_bias")
    assert table[""] == ["mIoU at shift 0.0", "mIoU at shift 1.0", "lost", "distance at 0.0", "distance at 1.0"]
    # (60 + 62) / 2 = 61 with deviation sqrt(2); (40 + 44) / 2 = 42, sqrt(8); lost 20 and 18: 19, sqrt(2)
    assert table["baseline (backbone + QP)"] == ["61.00 ±1.41", "42.00 ±2.83", "19.00 ±1.41", "0.050", "0.250"]
    assert table["baseline + SM + IC"] == ["61.00 ±0.00", "52.00 ±1.41", "9.00 ±1.41", "0.050", "0.250"]
    # P_1: 59 and 59; 42 and 43: 42.5, sqrt(0.5); lost 17 and 16
    assert table["baseline + SM + IC: P_1"] == ["59.00 ±0.00", "42.50 ±0.71", "16.50 ±0.71", "", ""]
    assert not any(label.endswith("P_2") or label.startswith("baseline (backbone + QP):") for label in table)
    # 20 and 18, error 1; t of 1 degree is 12.706
    assert "baseline (backbone + QP) loses from shift 0.0 to 1.0: +19.00 [+6.29, +31.71] (2 pairs)\n" in text
    # pairs at 0: +1 and -1, error sqrt(2) / sqrt(2) = 1; at 1: +11 and +9, error the same
    assert (
        "baseline + SM + IC against the baseline, paired by fold and seed: +0.00 [-12.71, +12.71] (2 pairs) at "
        "shift 0.0, +10.00 [-2.71, +22.71] (2 pairs) at shift 1.0\n"
    ) in text
    # the baseline loses 20 and 18, the model 10 and 8: 10 less, twice
    assert (
        "what the baseline loses from shift 0.0 to 1.0, less what baseline + SM + IC loses (positive: baseline + SM + "
        "IC loses less), paired by fold and seed: +10.00 [+10.00, +10.00] (2 pairs)\n"
    ) in text
    # at 0: 61 - 59 twice; at 1: 51 - 42 = 9 and 53 - 43 = 10, deviation sqrt(0.5), error sqrt(0.5) / sqrt(2) = 0.5
    assert (
        "baseline + SM + IC, P_T - P_1 of the same model: +2.00 [+2.00, +2.00] (2 pairs) at shift 0.0, +9.50 "
        "[+3.15, +15.85] (2 pairs) at shift 1.0\n"
    ) in text
    assert text.count("P_T - P_1") == 1  # the baseline has one round
    assert (
        "[low, high]: 95 % interval over runs (Student's t), as single episodes cannot be used: "
        f"{tmp_path / 'background_bias'}"
    ) in text
    assert {p.name for p in tmp_path.glob("*.png")} == {"background_bias.png", "background_bias-distance.png"}


def test_every_paired_figure_says_how_many_pairs_it_is_of(tmp_path: Path, add: Add) -> None:
    def metrics(*by_shift: list[float]) -> dict[str, Any]:
        return {"by_background_shift": {f"{i}.0": {"miou": r[-1], "miou_per_round": r} for i, r in enumerate(by_shift)}}

    # seed 1 of SM was not measured at shift 1; seed 2 of the baseline not at all
    for seed, near, far in ((0, 60.0, 40.0), (1, 50.0, 40.0)):
        add("background_bias", "b", 50.0, BASELINE, seed=seed, metrics=metrics([near], [far]))
    add("background_bias", "b", 50.0, BASELINE, seed=2)
    add("background_bias", "s", 50.0, SM, seed=0, metrics=metrics([58.0, 63.0], [30.0, 39.0]))
    add("background_bias", "s", 50.0, SM, seed=1, metrics=metrics([50.0, 51.0]))
    add("background_bias", "s", 50.0, SM, seed=2, metrics=metrics([40.0, 46.0], [20.0, 25.0]))
    text = report(tmp_path)
    # at 0: 63 - 60 = 3 and 51 - 50 = 1, deviation sqrt(2), error 1; at 1: 39 - 40
    assert (
        "baseline + SM against the baseline, paired by fold and seed: +2.00 [-10.71, +14.71] (2 pairs) at shift "
        "0.0, -1.00 (1 pair, no interval) at shift 1.0\n"
    ) in text
    # the baseline loses 60 - 40 = 20, SM 63 - 39 = 24: 4 more
    assert "(positive: baseline + SM loses less), paired by fold and seed: -4.00 (1 pair, no interval)\n" in text
    # at 0: 5, 1 and 6: mean 4, deviation sqrt((1 + 9 + 4) / 2) = sqrt(7), error sqrt(7 / 3) = 1.53
    # t of 2 degrees is 4.303; at 1: 9 and 5: mean 7, deviation sqrt(8), error 2
    assert (
        "baseline + SM, P_T - P_1 of the same model: +4.00 [-2.57, +10.57] (3 pairs) at shift 0.0, +7.00 "
        "[-18.41, +32.41] (2 pairs) at shift 1.0\n"
    ) in text


def test_recorded_episodes_give_intervals_over_images_at_every_shift(tmp_path: Path, add: Add) -> None:
    """Every image loses a tenth of its object at shift 1 with the baseline and nothing with SM: intervals of no width
    but for rounding to whole pixels. Of an area A, 0.6 A or 0.5 A of 1.2 A: 50 and 41.67 percent."""
    areas = {0: [1200, 2400, 3600, 4800], 1: [600, 6000, 1800, 3000]}
    for name, model, shares in (("b", BASELINE, (0.6, 0.5)), ("s", SM, (0.6, 0.6))):
        counts = counts_of(
            areas, lambda c, i, s, shift, r, at=shares: int(areas[c][i] * at[shift == "1.0"]), shifts=("", "0.0", "1.0")
        )
        by_shift = {
            s: {"miou": 100 * at / 1.2, "miou_per_round": [100 * at / 1.2]} for s, at in zip(("0.0", "1.0"), shares)
        }
        record = write_counts(tmp_path / "e.npz", counts)
        run = add("background_bias", name, 50.0, model, metrics={"by_background_shift": by_shift})
        result = run.result()
        assert result is not None
        result.episodes = record
        write_record(run.result_file, result)
        (tmp_path / "e.npz").replace(run.episodes_file)
    text = report(tmp_path)
    assert "baseline (backbone + QP) loses from shift 0.0 to 1.0: +8.33 [+8.33, +8.33] (1 pair)\n" in text
    assert (
        "baseline + SM against the baseline, paired by fold and seed: +0.00 [+0.00, +0.00] (1 pair) at shift 0.0, "
        in text
    )
    assert "+8.33 [+8.33, +8.33] (1 pair) at shift 1.0\n" in text
    assert "[low, high]: 95 % interval over query images, for these trained models" in text
