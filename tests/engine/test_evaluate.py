"""The way of an answer to the size where it is scored, classes that seeds lack, what is drawn; all by hand."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from runs import cell_of, composed, done

from fsseg.data.transforms import EvalTransform
from fsseg.data.types import EpisodeSpec
from fsseg.engine.evaluate import figure_numbers
from fsseg.engine.scoring import predicted_foreground
from fsseg.errors import UserError
from fsseg.run import run


def foreground(logits: torch.Tensor, *where: Any) -> np.ndarray:
    """Of one answer (2, h, w)."""
    return predicted_foreground(logits[None], *where)[0].numpy()


def half_plane(border: float, cells: int = 3, stride: int = 8) -> torch.Tensor:
    """Logits (2, cells, cells), linear in x, foreground right of pixel `border`; cell i lies at pixel stride * i."""
    x = (torch.arange(cells) * stride).float() - border
    return torch.stack((torch.zeros(cells, cells), x.expand(cells, cells)))


def columns(mask: np.ndarray) -> list[int]:
    """Columns of foreground of a mask whose rows are all alike."""
    assert (mask == mask[:1]).all()
    return np.flatnonzero(mask[0]).tolist()


def test_cells_lie_at_multiples_of_the_stride() -> None:
    # 3 cells at pixels 0, 8, 16 of 17; foreground right of 5.5
    found = foreground(half_plane(5.5), (17, 17), (17, 17), None)
    assert found.shape == (17, 17)
    assert columns(found) == list(range(6, 17))


def test_the_rounds_of_an_episode_are_scaled_together_as_each_on_its_own() -> None:
    logits = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    for fit in ("longer_side", "squash", "pfenet"):
        where = ((33, 33), (24, 32), (41, 57), fit)
        together = predicted_foreground(logits, *where).numpy()
        assert together.shape == (3, 41, 57)
        assert all(np.array_equal(own, foreground(one, *where)) for own, one in zip(together, logits))


def test_padding_is_cut_off_before_anything_is_scaled() -> None:
    # Of 17 x 17 pixels 9 x 8 are image. Foreground begins at column 9: outside, and must not bleed in.
    found = foreground(half_plane(8.5), (17, 17), (9, 8), None)
    assert found.shape == (9, 8)
    assert not found.any()
    assert not foreground(half_plane(8.5), (17, 17), (9, 8), (36, 32)).any()
    # 4.5 is in the middle of the 9 x 9 pixels that are image: half of them, at twice the size too
    assert columns(foreground(half_plane(4.5), (17, 17), (10, 10), (20, 20))) == list(range(10, 20))


@pytest.mark.parametrize(
    ("border", "truth", "first"),
    [
        # Pixel i of n covers [i, i + 1) of n, at any size. A border at pixel position b of 16 is b + 1/2 pixels off the
        # left edge: 16 -> 64 puts it at 4 (b + 1/2), and the first pixel whose centre lies right of it is foreground.
        (3.5, 64, 16),  # 4 of 16 -> 16 of 64
        (3.0, 64, 14),  # 3.5 of 16 -> 14 of 64: pixel 14 has its centre at 14.5
        (11.5, 64, 48),
        (3.5, 24, 6),
        (11.25, 40, 29),  # 11.75 of 16 -> 29.375 of 40: pixel 29 has its centre at 29.5
        (3.5, 8, 2),  # and smaller
    ],
)
def test_the_way_back_to_original_size_keeps_borders_where_they_are(border: float, truth: int, first: int) -> None:
    found = foreground(half_plane(border), (17, 17), (16, 16), (truth, truth))
    assert columns(found) == list(range(first, truth))


def test_fitting_and_scaling_back_leave_a_mask_where_it_was() -> None:
    # A disc of radius 30 about the centre of 128 x 96 pixels (its pixel (63.5, 47.5)), answered perfectly at 64 x 48:
    # the logit is the distance from the border, the answer at full size the disc again. The corners-aligned way would
    # keep the centre but scale by 127 / 63: a radius of 30.24, an area 1.6 % larger.
    y, x = torch.meshgrid(torch.arange(65.0), torch.arange(65.0), indexing="ij")
    inside = 15 - torch.hypot(y - 31.5, x - 23.5)
    found = foreground(torch.stack((torch.zeros(65, 65), inside)), (65, 65), (64, 48), (128, 96))
    rows, across = np.mgrid[:128, :96]
    expected = np.hypot(rows - 63.5, across - 47.5) < 30
    assert found.shape == expected.shape
    assert (found != expected).sum() < 0.004 * expected.sum()


def test_squash_scales_the_whole_square_corners_aligned() -> None:
    # Pixel b of 17 lies at 2 b of 33: foreground right of 10.5. 17 rows become 20.
    found = foreground(half_plane(5.25), (17, 17), (17, 17), (20, 33), "squash")
    assert found.shape == (20, 33)
    assert columns(found) == list(range(11, 33))
    down = foreground(half_plane(5.25).transpose(1, 2), (17, 17), (17, 17), (33, 20), "squash")
    assert columns(down.T) == list(range(11, 33))
    assert columns(foreground(half_plane(5.25), (17, 17), (17, 17), None, "squash")) == list(range(6, 17))


def test_pfenet_scales_the_square_to_the_longer_side_and_the_truth_lies_in_its_upper_left_corner() -> None:
    # 33 x 20 pixels lie in the square as 16 x 8 (9.7, floored). Pixel b of 17 goes to 2 b of 33, whatever is image.
    found = foreground(half_plane(5.25), (17, 17), (16, 8), (33, 20), "pfenet")
    assert found.shape == (33, 20)
    assert columns(found) == list(range(11, 20))
    # the answer on the padding counts as well: pixel 8.75 is right of the 8 that are image, and goes to 17.5
    assert columns(foreground(half_plane(8.75), (17, 17), (16, 8), (33, 20), "pfenet")) == [18, 19]
    # landscape: the longer side is the width, and all of the square's is used
    wide = foreground(half_plane(5.25), (17, 17), (8, 16), (20, 33), "pfenet")
    assert wide.shape == (20, 33)
    assert columns(wide) == list(range(11, 33))
    # at network size the part that is image is scored
    near = foreground(half_plane(5.25), (17, 17), (16, 8), None, "pfenet")
    assert near.shape == (16, 8)
    assert columns(near) == [6, 7]


def corners_aligned(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, pixel by pixel: the first and the last pixels of both grids lie on each other."""
    out = np.empty(size)
    for row, column in np.ndindex(*size):
        y = row * (grid.shape[0] - 1) / max(1, size[0] - 1)
        x = column * (grid.shape[1] - 1) / max(1, size[1] - 1)
        top, left = min(int(y), grid.shape[0] - 2), min(int(x), grid.shape[1] - 2)
        (a, b), (c, d) = grid[top : top + 2, left : left + 2]
        down, right = y - top, x - left
        out[row, column] = (a * (1 - right) + b * right) * (1 - down) + (c * (1 - right) + d * right) * down
    return out


@pytest.mark.parametrize("truth", [(31, 18), (18, 31), (12, 9), (20, 20), (1, 25)])
@pytest.mark.parametrize("side", [16, 17])
def test_the_published_ways_back_agree_with_a_plain_loop(truth: tuple[int, int], side: int) -> None:
    logits = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(truth[0]))
    margin = (logits[1] - logits[0]).numpy().astype(float)
    square = corners_aligned(margin, (side, side))
    longer = max(truth)
    expected = {
        "squash": corners_aligned(square, truth),
        "pfenet": corners_aligned(square, (longer, longer))[: truth[0], : truth[1]],
    }
    for fit, values in expected.items():
        found = foreground(logits, (side, side), (8, 8), truth, fit)
        clear = np.abs(values) > 1e-5
        assert (found == (values > 0))[clear].all()
        assert clear.mean() > 0.9


@pytest.mark.parametrize("fit", ["longer_side", "squash", "pfenet"])
@pytest.mark.parametrize("size", [(100, 80), (70, 100), (40, 32)])  # fitted to 80 they are multiples of 8
def test_a_perfect_answer_scores_well_with_every_fit(fit: str, size: tuple[int, int]) -> None:
    rows, across = np.mgrid[: size[0], : size[1]]
    mask = (np.hypot(rows - 0.5 * size[0], across - 0.6 * size[1]) < 0.3 * min(size)).astype(np.uint8)
    sample = EvalTransform(80, fit)(np.zeros((*size, 3), dtype=np.uint8), mask)
    answer = torch.where(sample.mask == 1, 1.0, -1.0)
    found = foreground(torch.stack((-answer, answer)), (80, 80), sample.valid_size, size, fit)
    both, either = (found & (mask == 1)).sum(), (found | (mask == 1)).sum()
    assert both / either > 0.9
    near = foreground(torch.stack((-answer, answer)), (80, 80), sample.valid_size, None, fit)
    high, wide = sample.valid_size
    assert (near == (sample.mask[:high, :wide] == 1).numpy()).all()


def spec(number: int, class_id: int) -> EpisodeSpec:
    return EpisodeSpec(number, class_id, f"q{number}", (f"s{number}",))


def test_figures_take_the_classes_in_turn() -> None:
    specs = [spec(n, c) for n, c in enumerate([3, 3, 1, 3, 1, 2])]
    # first of 3, of 1, of 2; second of 3, of 1; third of 3
    assert figure_numbers(specs, 10) == [0, 2, 5, 1, 4, 3]
    assert figure_numbers(specs, 4) == [0, 2, 5, 1]
    assert figure_numbers(specs, 0) == figure_numbers([], 3) == []


PROTOTYPE = ("method=prototype", "train.enabled=false")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


def listed(root: Path, output: Path, name: str, episodes: dict[int, list[int]], protocol: str = "mine") -> Path:
    """A file of the given episodes (seed -> classes in order), taken from those that the protocol draws."""
    from fsseg.data.episode_file import ListHead, write_episodes
    from fsseg.data.loader import evaluation_plan
    from fsseg.data.registry import build_source

    cfg = composed(root, output, *PROTOTYPE, "protocol.num_episodes=60").config
    source = build_source(cfg)
    of_class: dict[int, EpisodeSpec] = {}
    for drawn in evaluation_plan(source, cfg).episodes[0]:
        of_class.setdefault(drawn.class_id, drawn)
    chosen = {
        seed: [EpisodeSpec(n, c, of_class[c].query_id, of_class[c].support_ids) for n, c in enumerate(classes)]
        for seed, classes in episodes.items()
    }
    path = output / name
    write_episodes(path, chosen, ListHead(source.name, 0, 1, source.classes, protocol))
    return path


def evaluated(root: Path, output: Path, *overrides: str) -> dict[str, Any]:
    c = composed(root, output, *PROTOTYPE, f"name=run{len(list(output.iterdir()))}", *overrides)
    return msgspec.to_builtins(done(c))


def _both(left_out: float, zero: float, name: str) -> dict[str, Any]:
    return {"left_out": pytest.approx(left_out), "zero": pytest.approx(zero), "classes": [name]}


def test_a_class_that_one_seed_does_not_draw_is_left_out_or_counts_zero_and_both_figures_stand(
    root: Path, tmp_path: Path
) -> None:
    whole, part = [0, 1, 2, 3, 4], [4, 3, 1, 0]
    files = [listed(root, tmp_path, f"{name}.tsv", {5: whole, 6: of_6}) for name, of_6 in (("a", whole), ("b", part))]
    complete, lacking = (evaluated(root, tmp_path, f"protocol.episodes_file={path}") for path in files)
    zero = evaluated(root, tmp_path, f"protocol.episodes_file={files[1]}", "protocol.undrawn=zero")
    assert complete["metrics"]["miou_undrawn"] is None
    name = complete["dataset"]["novel_classes"][2]
    ious = complete["metrics"]["per_class"]
    of_five, of_four = sum(ious.values()) / 5, sum(v for k, v in ious.items() if k != name) / 4
    # seed 6 has the same episodes but that of class 2, and one episode a class: each seed has the same IoUs
    for result, of_six in ((lacking, of_four), (zero, of_four * 4 / 5)):
        assert (result["partial"], result["missing_classes"]) == (False, [])  # the images are there
        metrics = result["metrics"]
        assert metrics["per_class"] == ious
        assert [s["classes_without_episode"] for s in metrics["per_seed"]] == [[], [name]]
        assert [s["miou"] for s in metrics["per_seed"]] == pytest.approx([of_five, of_six])
        assert metrics["per_seed"][0]["miou_undrawn"] is None
        assert metrics["per_seed"][1]["miou_undrawn"] == _both(of_four, of_four * 4 / 5, name)
        assert metrics["miou"] == pytest.approx((of_five + of_six) / 2)
        assert metrics["miou_per_round"][-1] == pytest.approx(metrics["miou"])
        both = _both((of_five + of_four) / 2, (of_five + of_four * 4 / 5) / 2, name)
        assert metrics["miou_undrawn"] == both
    foreground = [r["metrics"]["per_seed"][1]["miou_all_foreground"] for r in (lacking, zero)]
    assert foreground[1] == pytest.approx(foreground[0] * 4 / 5)


def test_the_result_names_the_protocol_that_the_episodes_came_from(root: Path, tmp_path: Path) -> None:
    own = evaluated(root, tmp_path)["protocol"]
    assert (own["seeds"], own["num_episodes"], own["query_order"]) == ([0], 6, "cycle")
    assert "episodes_list" not in own
    path = listed(root, tmp_path, "list.tsv", {7: [0, 1, 2, 3, 4], 8: [4, 3, 2, 1, 0]}, protocol="other")
    head = dict(line[2:].split(": ") for line in path.read_text().splitlines()[1:] if line.startswith("# "))
    of_file = evaluated(root, tmp_path, f"protocol.episodes_file={path}")["protocol"]
    assert (of_file["seeds"], of_file["num_episodes"]) == ([7, 8], 5)
    assert of_file["query_order"] == "episodes_file"
    assert of_file["episodes_list"] == {"protocol": "other", "fingerprint": head["fingerprint"]}
    assert of_file["min_pixels"] == own["min_pixels"]
    uneven = listed(root, tmp_path, "uneven.tsv", {7: [0, 1, 2, 3, 4], 8: [0, 1, 2, 3, 4, 0]})
    assert evaluated(root, tmp_path, f"protocol.episodes_file={uneven}")["protocol"]["num_episodes"] == [5, 6]


def test_at_network_size_the_fitted_image_is_scored_at_original_size_all_of_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answering foreground everywhere: pixels counted are those of the image, none of the padding."""
    from fsseg.engine import scoring

    sizes: list[tuple[int, ...]] = []
    count_pixels = scoring.count_pixels

    def noting(predictions: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        sizes.append((*predictions.shape[1:], *truth.shape))
        return count_pixels(predictions, truth)

    monkeypatch.setattr(scoring, "count_pixels", noting)
    found = {}
    for size in ("network", "original"):
        sizes.clear()
        evaluated(root, tmp_path, f"protocol.scoring_size={size}")
        assert len(sizes) == 6
        found[size] = list(sizes)
    for network, original in zip(found["network"], found["original"]):
        height, width = original[:2]
        fit = 25 / max(height, width)  # the longer side is the network's
        assert original[2:] == (height, width)
        assert network == (round(height * fit), round(width * fit)) * 2


@pytest.mark.parametrize("scoring", ["network", "original"])
@pytest.mark.parametrize("fit", ["squash", "pfenet"])
def test_each_fit_trains_and_is_scored_by_its_own_rule(
    fit: str, scoring: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsseg.engine import scoring as module

    seen: list[tuple[Any, ...]] = []
    rule = module.predicted_foreground

    def noting(logits: torch.Tensor, *arguments: Any) -> torch.Tensor:
        seen.append(arguments)
        return rule(logits, *arguments)

    monkeypatch.setattr(module, "predicted_foreground", noting)
    lines = (f"protocol.fit={fit}", f"protocol.scoring_size={scoring}", "train.max_steps=1", "logger.figures=2")
    c = composed(root, tmp_path, *lines, "logger.steps=true", "dataset.image_size=24")
    result = done(c)
    assert result.protocol["fit"] == fit
    assert cell_of(c).episodes_figure.is_file()
    assert len(seen) > 6  # 6 episodes, and the steps of the figures
    for size, valid, truth, own_fit, patches in seen:
        assert not patches
        assert (size, own_fit) == ((24, 24), fit)
        assert valid == (24, 24) if fit == "squash" else max(valid) == 24 and min(valid) % 8 == 0
        assert (truth is None) == (scoring == "network")


@pytest.mark.parametrize("factor", [1e30, float("nan")])
def test_exploded_weights_are_no_score_of_zero(factor: float, root: Path, tmp_path: Path) -> None:
    trained = composed(root, tmp_path, "train.max_steps=1", "eval.enabled=false")
    done(trained)
    file = tmp_path / "exploded.pt"
    state = torch.load(cell_of(trained).checkpoint, weights_only=True)
    state["model"] = {k: v * factor if v.is_floating_point() else v for k, v in state["model"].items()}
    torch.save(state, file)
    c = composed(root, tmp_path, "train.enabled=false", f"checkpoint={file}", "name=again")
    with pytest.raises(UserError, match=r"the answer to evaluation episode \d of seed 0 holds|are no finite numbers"):
        run(c.config, c.task_overrides)
    assert not cell_of(c).result_file.exists()


def test_a_checkpoint_of_another_run_than_the_result_beside_it_is_not_evaluated(root: Path, tmp_path: Path) -> None:
    trained = composed(root, tmp_path, "train.max_steps=2", "eval.enabled=false")
    done(trained)
    file = cell_of(trained).checkpoint
    state = torch.load(file, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "run"}, file)  # of an earlier version, which named none
    done(composed(root, tmp_path, "train.enabled=false", f"checkpoint={file}", "name=earlier"))
    for name, change in (("a", {"step": 1}), ("b", {"run": "other"})):
        torch.save(state | change, file)
        c = composed(root, tmp_path, "train.enabled=false", f"checkpoint={file}", f"name={name}")
        with pytest.raises(UserError, match=r"last\.pt: run .*, step .*, but result\.json beside it: run "):
            run(c.config, c.task_overrides)


def test_a_checkpoint_of_an_unfinished_training_is_said_to_be_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("fsseg"), "propagate", True)
    trained = composed(root, tmp_path, "train.max_steps=2", "eval.enabled=false")
    done(trained)
    file = tmp_path / "half.pt"
    torch.save(torch.load(cell_of(trained).checkpoint, weights_only=True) | {"step": 1}, file)
    done(composed(root, tmp_path, "train.enabled=false", f"checkpoint={file}", "name=again"))
    assert f"checkpoint={file} is of an unfinished training: step 1 of 2" in caplog.text
