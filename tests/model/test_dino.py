"""`method=dino` against float64 loops, and what its answer must not depend on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import model_reference as reference
import model_samples as samples
import numpy as np
import pytest
import torch
from runs import composed, done
from torch import Tensor

from fsseg.config.schema import DinoConfig
from fsseg.data.types import Batch
from fsseg.errors import UserError
from fsseg.model import build_model
from fsseg.model.blocks import attention, tokens
from fsseg.model.blocks.tokens import Tokens
from fsseg.model.dino import Dino, spherical_kmeans, spread

Vector = np.ndarray
SIDE, CELLS = 33, 5
SETTINGS = [
    {"background_prototypes": 5, "gram_temperature": 0.1},
    {"foreground_prototypes": 2, "background_prototypes": 3, "gram_passes": 2, "gram_temperature": 0.5},
    {"foreground_prototypes": 3, "background_prototypes": 0, "kmeans_iterations": 2},
    {"background_prototypes": 1, "gram_passes": 0, "kmeans_iterations": 1},
]


def model(**changes) -> Dino:
    return Dino(samples.Pixels(), samples.dino(**changes))


def unit(vector: Vector) -> Vector:
    return vector / math.sqrt(float(vector @ vector))


def kmeans(points: list[Vector], number: int, iterations: int) -> list[Vector]:
    """Lloyd's iterations by cosine, from farthest-first, token by token."""
    middle = unit(np.sum(points, 0))
    closeness = [float(p @ middle) for p in points]
    centres: list[Vector] = []
    while len(centres) < number:
        centres.append(points[closeness.index(min(closeness))])
        closeness = [max(float(p @ c) for c in centres) for p in points]
    for _ in range(iterations):
        groups: list[list[Vector]] = [[] for _ in centres]
        for p in points:
            cosines = [float(p @ c) for c in centres]
            groups[cosines.index(max(cosines))].append(p)
        centres = [unit(np.sum(group, 0)) if group else c for group, c in zip(groups, centres)]
    return centres


def otsu_cut(values: list[float]) -> float:
    ordered = sorted(values)
    cuts = []
    for k in range(1, len(ordered)):
        left, right = ordered[:k], ordered[k:]
        between = len(left) * len(right) * (sum(right) / len(right) - sum(left) / len(left)) ** 2
        cuts.append((between, (left[-1] + right[0]) / 2))
    return max(cuts)[1]


def answer(
    cfg: DinoConfig, inside: list[Vector], outside: list[Vector], query: list[Vector], shown: list[bool]
) -> list[float]:
    """The whole method for one query: its cells, and whether they are picture."""
    fore = kmeans([unit(x) for x in inside], cfg.foreground_prototypes, cfg.kmeans_iterations)
    cells = [unit(x) for x in query]
    likeness = [max(float(x @ c) for c in fore) for x in cells]
    if outside and cfg.background_prototypes:
        back = kmeans([unit(x) for x in outside], cfg.background_prototypes, cfg.kmeans_iterations)
        found = [value - max(float(x @ c) for c in back) for value, x in zip(likeness, cells)]
    else:
        cut = otsu_cut([value for value, on in zip(likeness, shown) if on])
        found = [value - cut for value in likeness]
    for _ in range(cfg.gram_passes):
        passed = []
        for x in cells:
            weights = reference.softmax([float(x @ y) / cfg.gram_temperature for y, on in zip(cells, shown) if on])
            passed.append(sum(w * value for w, value in zip(weights, [v for v, on in zip(found, shown) if on])))
        found = passed
    return found


def painted(labels: Tensor) -> Tensor:
    """Masks (B, K, 33, 33) of which each cell has the label (B, K, 5, 5) on most of its area."""
    nearest = (torch.arange(SIDE) + 4) // 8
    return labels[..., nearest, :][..., nearest]


def scene(shots: int = 2, seed: int = 0) -> tuple[Batch, Tensor]:
    """Two episodes with foreground, background, ignored cells and padding in the supports, and padding in one query;
    and the labels of the supports' cells."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (2, shots, CELLS, CELLS), generator=generator, dtype=torch.uint8)
    labels[..., 0, 0], labels[..., 0, 1] = 1, 0
    labels[0, 0, 3:] = 255  # padding below
    labels[1, :, 2, 2] = 255  # annotated as to be ignored
    batch = samples.batch(painted(labels), SIDE, seed, torch.float64)
    batch.support_pictures[0, 0, 20:] = False
    batch.query_picture[1, :, 20:] = False
    return batch, labels


def expected(cfg: DinoConfig, batch: Batch, labels: Tensor, b: int, first: int = 0) -> list[float]:
    """Cells lie at pixels `first`, `first` + 8, ..."""
    places = range(first, batch.query_mask.shape[1], 8)

    def cells(image: Tensor) -> list[Vector]:
        return [image[:, y, x].numpy() for y in places for x in places]

    marks = labels[b].flatten().tolist()
    seen = [x for image in batch.support_images[b] for x in cells(image)]
    shown = batch.query_picture[b, first::8, first::8].flatten().tolist()
    parts = ([x for x, mark in zip(seen, marks) if mark == value] for value in (1, 0))
    return answer(cfg, *parts, cells(batch.query_image[b]), shown)


def logit(prediction) -> Tensor:
    """Foreground against background, in cosines."""
    return (prediction.rounds[-1][:, 1] - prediction.rounds[-1][:, 0]) / 20


@pytest.mark.parametrize("form", ["together", "apart", "as on a GPU"])
@pytest.mark.parametrize("changes", SETTINGS)
def test_the_answer_equals_the_loops(changes: dict, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "as on a GPU":
        monkeypatch.setattr(tokens, "waits_for_nothing", lambda _: True)
        monkeypatch.setattr(tokens, "_MULTIPLE", 7)
        monkeypatch.setattr(attention, "masks_by_bias", lambda _: True)
    batch, labels = scene()
    dino = model(**changes)
    kept = dino.encode(batch.support_images.flatten(0, 1), batch.support_pictures.flatten(0, 1), "support")
    assert set(kept) == {"features"}
    supports = [{"features": x[None]} for x in kept["features"]] if form == "apart" else [kept]
    found = logit(dino.decode(supports, dino.encode(batch.query_image, batch.query_picture, "query"), batch))
    for b in range(2):
        np.testing.assert_allclose(
            found[b].flatten(), expected(samples.dino(**changes), batch, labels, b), rtol=1e-9, atol=1e-12
        )
    assert 0 < (found > 0).double().mean() < 1


def test_cells_that_are_patches_lie_side_by_side() -> None:
    labels = torch.randint(0, 2, (1, 2, CELLS, CELLS), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    labels[0, :, 3] = 255
    batch = samples.batch(labels.repeat_interleave(8, 2).repeat_interleave(8, 3), 40, dtype=torch.float64)
    batch.query_picture[:, :, 29:] = False  # of the fourth patch the middle, pixel 28, is picture
    prediction = Dino(samples.Pixels(patches=True), samples.dino())(batch)
    by_hand = expected(samples.dino(), batch, labels, 0, first=4)
    np.testing.assert_allclose(logit(prediction)[0].flatten(), by_hand, rtol=1e-9, atol=1e-12)
    assert prediction.patches
    assert prediction.logits.shape == (1, 2, 40, 40)


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("iterations", [1, 10])
def test_kmeans_equals_the_loops_wherever_the_tokens_stand(number: int, iterations: int) -> None:
    torch.manual_seed(0)
    values = torch.nn.functional.normalize(torch.randn(4, 20, 4, dtype=torch.float64), dim=2)
    valid = torch.rand(4, 20) < 0.7
    valid[1], valid[2], valid[3] = True, False, False
    valid[2, 5:8] = True  # fewer tokens than centres; the last sample has none
    given = Tokens(values.masked_fill(~valid[..., None], 0), valid, None)
    found = spherical_kmeans(given, number, iterations)
    for b in range(3):
        centres = kmeans(list(values[b, valid[b]].numpy()), number, iterations)
        if b == 2 and number > 3:  # which of the tokens stands for two centres is left to rounding
            same = (found[b] @ values[b, valid[b]].T) > 1 - 1e-12
            assert same.any(0).all()
            assert same.any(1).all()
        else:
            np.testing.assert_allclose(found[b], centres, rtol=1e-9, atol=1e-12)
    assert (found[3] == 0).all()


def test_one_centre_is_the_mean_direction_and_two_part_two_groups() -> None:
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    lean = torch.tensor([0.8, 0.6])
    points = torch.stack((east, north, lean, east))[None]
    given = Tokens(points, torch.ones(1, 4, dtype=torch.bool), [4])
    # the sum is (2.8, 1.6)
    torch.testing.assert_close(spherical_kmeans(given, 1, 1)[0, 0], torch.tensor([2.8, 1.6]) / math.hypot(2.8, 1.6))
    # farthest from the mean is north, from north east; (0.8, 0.6) is nearer to east
    two = torch.stack((north, torch.tensor([2.8, 0.6]) / math.hypot(2.8, 0.6)))
    torch.testing.assert_close(spherical_kmeans(given, 2, 1)[0], two)


def test_a_pass_mixes_the_answers_of_cells_that_look_alike() -> None:
    cells = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    given = torch.tensor([[1.0, 0.5, -3.0]])
    # cosines 1 and 0 at a temperature of 0.5: weights e^2 and 1
    e = math.exp(2)
    first, last = (1.5 * e - 3) / (2 * e + 1), (1.5 - 3 * e) / (2 + e)
    torch.testing.assert_close(spread(cells, given, 0.5), torch.tensor([[first, first, last]]))
    torch.testing.assert_close(spread(cells, given, 0.001), torch.tensor([[0.75, 0.75, -3.0]]))
    torch.testing.assert_close(spread(cells, given, 1000.0), torch.full((1, 3), -0.5), atol=2e-3, rtol=0)
    shown = torch.tensor([[True, False, True]])
    torch.testing.assert_close(spread(cells, given, 0.001, shown), torch.tensor([[1.0, 1.0, -3.0]]))


@pytest.mark.parametrize("changes", SETTINGS)
def test_an_episodes_answer_depends_neither_on_the_batch_nor_on_the_order_of_the_shots(changes: dict) -> None:
    batch, _ = scene(shots=3)
    batch.support_masks[1, :, 4:, 4:] = 0  # another number of tokens than in the first
    batch.support_masks[1, :, :4, :4] = 1
    dino = model(**changes)
    whole = logit(dino(batch))
    for b in range(2):
        torch.testing.assert_close(logit(dino(samples.only(batch, b)))[0], whole[b])
    order = [2, 0, 1]
    turned = replace(
        batch, support_images=batch.support_images[:, order], support_masks=batch.support_masks[:, order],
        support_pictures=batch.support_pictures[:, order],
    )  # fmt: skip
    torch.testing.assert_close(logit(dino(turned)), whole)


@pytest.mark.parametrize("changes", SETTINGS)
def test_padding_and_ignored_pixels_change_nothing(changes: dict) -> None:
    batch, labels = scene()
    dino = model(**changes)
    before = logit(dino(batch))
    assert (labels == 255).any()
    batch.support_images += 7.0 * painted(labels == 255)[:, :, None]
    batch.query_image += 7.0 * ~batch.query_picture[:, None]
    shown = batch.query_picture[:, ::8, ::8]
    assert not shown.all()
    after = logit(dino(batch))
    torch.testing.assert_close(after[shown], before[shown])
    assert not torch.allclose(after[~shown], before[~shown])


@pytest.mark.parametrize("passes", [0, 2])
def test_where_objects_fill_all_supports_the_map_is_cut_by_otsu(passes: int) -> None:
    batch, labels = scene()
    both = logit(model(gram_passes=passes)(batch))
    batch.support_masks[0] = 1
    labels[0] = 1
    found = logit(model(gram_passes=passes)(batch))
    torch.testing.assert_close(found[1], both[1])
    by_hand = expected(samples.dino(gram_passes=passes, background_prototypes=0), batch, labels, 0)
    np.testing.assert_allclose(found[0].flatten(), by_hand, rtol=1e-9, atol=1e-12)
    batch.support_masks[1] = 1  # now no sample of the batch has a background
    torch.testing.assert_close(logit(model(gram_passes=passes)(batch))[0], found[0])


def test_fewer_tokens_than_prototypes() -> None:
    """One cell of foreground and two of background: the answer is that of these cells, however many are asked for."""
    labels = torch.full((1, 1, CELLS, CELLS), 255, dtype=torch.uint8)
    labels[0, 0, 1, 1], labels[0, 0, 3, 3], labels[0, 0, 4, 0] = 1, 0, 0
    batch = samples.batch(painted(labels), SIDE, dtype=torch.float64)
    image, query = batch.support_images[0, 0].numpy(), batch.query_image[0].numpy()
    own, others = image[:, 8, 8], (image[:, 24, 24], image[:, 32, 0])
    found = logit(model(foreground_prototypes=4, background_prototypes=6, gram_passes=0)(batch))[0]
    for y in range(CELLS):
        for x in range(CELLS):
            cell = query[:, 8 * y, 8 * x]
            by_hand = reference.cosine(cell, own) - max(reference.cosine(cell, other) for other in others)
            assert found[y, x].item() == pytest.approx(by_hand, abs=1e-12)


def test_tokens_that_are_all_alike_answer_as_one() -> None:
    batch, _ = scene()
    red, blue = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ([1.0, 0.2, 0.0], [0.0, 0.2, 1.0]))
    batch.support_images[:] = torch.where(batch.support_masks[:, :, None] == 1, red, blue)
    one = model(background_prototypes=1)
    several = model(foreground_prototypes=3, background_prototypes=4)
    torch.testing.assert_close(logit(several(batch)), logit(one(batch)))
    batch.query_image[:] = red  # and a query of nothing but the object
    assert (logit(several(batch)) > 0.5).all()
    batch.query_image[:] = 0  # no direction at all
    assert torch.isfinite(logit(several(batch))).all()


def test_mixed_precision_leaves_the_matching_alone() -> None:
    batch, _ = scene()
    for name in ("support_images", "query_image"):
        setattr(batch, name, getattr(batch, name).float())
    plain = logit(model()(batch))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logit(model()(batch)), plain)


def test_nothing_of_it_trains() -> None:
    dino = build_model(samples.cell(samples.dino()))
    assert not dino.trainable
    assert not any(p.requires_grad for p in dino.parameters())
    assert {name.partition(".")[0] for name in dino.state_dict()} == {"backbone"}
    batch = samples.batch(samples.square_masks([[9, 20]], SIDE), SIDE)
    with pytest.raises(UserError, match="method=dino has nothing to train"):
        dino.loss(dino(batch), batch.query_mask)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shot", [1, 5])
def test_it_is_scored_on_shapes5i_without_a_checkpoint(shot: int, root: Path, tmp_path: Path) -> None:
    scores = []
    for batch_size in (1, 6):
        line = ("method=dino", f"shot={shot}", f"eval.batch_size={batch_size}", f"name=b{batch_size}")
        result = done(composed(root, tmp_path, *line))
        assert result.training is None
        assert result.metrics is not None
        scores.append(result.metrics.miou)
    assert scores[0] == scores[1]
    assert 0 < scores[0] < 100
