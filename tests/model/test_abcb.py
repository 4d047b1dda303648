"""Each step of ABCB, and the T rounds, against the float64 loops of `model_reference`; batches, orders, edges."""

from __future__ import annotations

from dataclasses import replace

import model_reference as reference
import model_samples as samples
import numpy as np
import pytest
import torch

from fsseg.data.types import Batch
from fsseg.model import build_model
from fsseg.model.abcb import Abcb, InformationCleansing, SupportModulation, entropy
from fsseg.model.base import Prediction
from fsseg.model.blocks import attention, tokens
from fsseg.model.blocks.attention import Keys, attend
from fsseg.model.blocks.tokens import Positions, Tokens, inside_and_outside

C, SIDE, CELLS = 8, 13, 4
N = CELLS * CELLS
SPAN = [{"histogram_range": "zero_one"}, {"histogram_range": "minus_one_one"}]
OPEN = [*SPAN[1:], {"histogram_width": 2}, {"cleansing_scaled": False}]
SWITCHES = [{}, {"pixel_evolution": False}, {"structure_evolution": False}, {"cleansing": False}, *OPEN]


def model_of(seed: int = 0, **changes) -> Abcb:
    torch.manual_seed(seed)
    model = build_model(samples.cell(samples.abcb(channels=C, heads=2, histogram_bins=5, **changes))).double()
    assert isinstance(model, Abcb)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("backbone"):
                parameter.mul_(2)  # far from the small numbers of the start, where errors would hide
    return model


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def support_of(counts: list[int]) -> Tokens:
    width = max(counts)
    return Positions.under(torch.arange(width) < torch.tensor(counts)[:, None]).gather(draw(len(counts), width, C))


def vectors(x: torch.Tensor) -> list[np.ndarray]:
    """Rows of (n, C)."""
    return list(x.detach().numpy())


def predict_only(model: Abcb, share: str, mean: torch.Tensor, f_q: torch.Tensor) -> None:
    """Bend phi_p's last bias so that round 1 predicts none, one, all, all but one, or about half of the positions."""
    model.qp.second.bias.data.zero_()
    p = model.qp(mean, model.qp.prepare(f_q))
    ordered = (p[:, 1] - p[:, 0]).flatten().sort().values.detach()
    cuts = {
        "none": ordered[-1] + 1,
        "one": (ordered[-1] + ordered[-2]) / 2,
        "half": (ordered[len(ordered) // 2] + ordered[len(ordered) // 2 - 1]) / 2,
        "all_but_one": (ordered[0] + ordered[1]) / 2,
        "all": ordered[0] - 1,
    }
    model.qp.second.bias.data[0] = cuts[share]


MASKS = {
    "half": torch.arange(N) % 2 == 0,
    "one": torch.arange(N) == 5,
    "all_but_one": torch.arange(N) != 5,
    "random": torch.rand(N, generator=torch.Generator().manual_seed(3)) > 0.7,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("changes", [*SPAN, {"pixel_evolution": False}, {"structure_evolution": False}])
def test_support_modulation_equals_the_loops(mask: str, changes: dict) -> None:
    sm = model_of(**changes).sm
    assert sm is not None
    support, image, f_q = support_of([6, 3]), draw(2, N, 3), draw(2, N, C)
    foreground = torch.stack((MASKS[mask], MASKS["half"]))
    inside, outside = inside_and_outside(foreground)
    asked, layer = sm.prepare(f_q)
    result = sm(support, inside.gather(image), inside.gather(f_q), outside.gather(asked), layer)
    for b, count in enumerate(support.counts):
        expected = reference.support_modulation(
            sm, vectors(support.values[b, :count]), vectors(image[b]), vectors(f_q[b]), foreground[b].tolist()
        )
        np.testing.assert_allclose(result[b, :count].detach(), expected, atol=1e-6)


@pytest.mark.parametrize("mask", MASKS)
def test_both_evolutions_equal_the_loops(mask: str) -> None:
    sm = model_of().sm
    assert sm is not None
    assert sm.pixel is not None
    assert sm.structure is not None
    image, f_q = draw(1, N, 3), draw(1, N, C)
    where = Positions.under(MASKS[mask][None])
    tokens, features = where.gather(image), where.gather(f_q)
    expected = reference.pixel_evolution(sm.pixel, vectors(tokens.values[0]), vectors(features.values[0]))
    np.testing.assert_allclose(
        sm.pixel(tokens.values, features.values, sm.pixel.first_layer())[0].detach(), expected, atol=1e-6
    )
    same = reference.structure_evolution(sm.structure, vectors(tokens.values[0]), vectors(features.values[0]))
    np.testing.assert_allclose(sm.structure(tokens, features)[0].detach(), same, atol=1e-6)
    both = sm.evolution(tokens, features, sm.pixel.first_layer())[0].detach()
    np.testing.assert_allclose(both, [e + same for e in expected], atol=1e-6)


def test_information_cleansing_equals_the_loops() -> None:
    ic = model_of().ic
    assert ic is not None
    before, after, f_q, rise = draw(2, 5, C), draw(2, 5, C), draw(2, N, C), draw(2, N)
    result = ic(before, after, ic.prepare(f_q), rise)
    for b in range(2):
        expected = reference.information_cleansing(
            ic, vectors(before[b]), vectors(after[b]), vectors(f_q[b]), rise[b].tolist()
        )
        np.testing.assert_allclose(result[b].detach(), expected, atol=1e-6)


def test_entropy_of_two_logits() -> None:
    # Equal logits: ln 2. Odds of 3 to 1: -(0.75 ln 0.75 + 0.25 ln 0.25). Beyond all doubt: 0, not NaN.
    logits = torch.tensor([[0.0, np.log(3), 1e4], [0.0, 0.0, -1e4]]).view(1, 2, 1, 3)
    np.testing.assert_allclose(entropy(logits), [[0.693147, 0.562335, 0.0]], atol=1e-6)


@pytest.mark.parametrize("share", ["none", "one", "half", "all_but_one", "all"])
@pytest.mark.parametrize("changes", SWITCHES)
@pytest.mark.parametrize("iterations", [1, 3])
def test_the_rounds_equal_the_loops(share: str, changes: dict, iterations: int) -> None:
    model = model_of(iterations=iterations, **changes)
    support, f_q, image = support_of([5]), draw(1, C, CELLS, CELLS), draw(1, 3, SIDE, SIDE)
    predict_only(model, share, support.mean(), f_q)
    p = check_rounds(model, support, f_q, image, iterations).rounds[0]
    predicted = int((p[:, 1] > p[:, 0]).sum())
    assert predicted == {"none": 0, "one": 1, "half": N // 2, "all_but_one": N - 1, "all": N}[share]


def check_rounds(
    model: Abcb,
    support: Tokens,
    f_q: torch.Tensor,
    image: torch.Tensor,
    iterations: int,
    picture: list[bool] | None = None,
) -> Prediction:
    """The model's rounds, which are found to equal the loops'."""
    cells = None if picture is None else torch.tensor(picture).view(1, CELLS, CELLS)
    result = model.rounds(support, f_q, image, cells)
    small = reference.area_average(image[0].numpy(), CELLS).reshape(3, N).T
    answers, hats, last = reference.rounds(
        model, vectors(support.values[0]), vectors(f_q[0].flatten(1).T), list(small), iterations, picture
    )
    assert len(result.rounds) == iterations
    assert len(result.hats) == len(hats) == (iterations - 1 if model.ic is not None else 0)
    for ours, loops in zip(result.rounds + result.hats, answers + hats):
        np.testing.assert_allclose(ours[0].detach().flatten(1).T, loops, atol=1e-6)
    assert result.support_foreground is not None
    np.testing.assert_allclose(result.support_foreground[0].detach(), last, atol=1e-6)
    return result


@pytest.mark.parametrize("changes", [{}, {"cleansing": False}])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_padding_of_the_query_is_neither_foreground_nor_background(rows: int, changes: dict) -> None:
    model = model_of(**changes)
    support, f_q, image = support_of([5]), draw(1, C, CELLS, CELLS), draw(1, 3, SIDE, SIDE)
    predict_only(model, "half", support.mean(), f_q)
    # cell i lies at pixel 4 i: with the last 4 (rows - 1) + 1 pixel rows padded, that many rows of cells are
    image[:, :, SIDE - 4 * (rows - 1) - 1 :] = 0
    picture = [place < N - rows * CELLS for place in range(N)]
    ours = check_rounds(model, support, f_q, image, 3, picture)
    other = f_q.clone()
    other[:, :, CELLS - rows :] = draw(1, C, rows, CELLS)
    theirs = model.rounds(support, other, image, torch.tensor(picture).view(1, CELLS, CELLS))
    for p, q in zip(all_logits(ours), all_logits(theirs)):
        torch.testing.assert_close(p[:, :, : CELLS - rows], q[:, :, : CELLS - rows])


def test_the_image_of_the_evolutions_may_be_rgb() -> None:
    ours, plain = model_of(evolution_image="rgb"), model_of()
    support, f_q, image = support_of([5]), draw(1, C, CELLS, CELLS), draw(1, 3, SIDE, SIDE)
    predict_only(ours, "half", support.mean(), f_q)
    predict_only(plain, "half", support.mean(), f_q)
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in imagenet)
    expected = plain.rounds(support, f_q, image * std + mean)
    torch.testing.assert_close(all_logits(ours.rounds(support, f_q, image)), all_logits(expected))


@pytest.mark.parametrize("share", ["none", "all"])
def test_without_predicted_foreground_or_background_only_cleansing_moves_the_support(share: str) -> None:
    model, alone = model_of(), model_of(cleansing=False)
    support, f_q, image = support_of([5]), draw(1, C, CELLS, CELLS), draw(1, 3, SIDE, SIDE)
    predict_only(model, share, support.mean(), f_q)
    predict_only(alone, share, support.mean(), f_q)
    for p in alone.rounds(support, f_q, image).rounds[1:]:
        torch.testing.assert_close(p, alone.rounds(support, f_q, image).rounds[0], rtol=0, atol=0)
    result = model.rounds(support, f_q, image)
    torch.testing.assert_close(result.hats[0], result.rounds[0], rtol=0, atol=0)
    assert not torch.equal(result.rounds[1], result.rounds[0])
    loss, _ = model.loss(result, torch.ones(1, SIDE, SIDE))
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


def edge_batch(model: Abcb) -> tuple[Tokens, torch.Tensor, torch.Tensor]:
    """Four samples: nothing, everything, one pixel and whatever comes out predicted as foreground in round 1."""
    support, f_q, image = support_of([5, 2, 1, 7]), draw(4, C, CELLS, CELLS), draw(4, 3, SIDE, SIDE)

    def margin(features: torch.Tensor) -> torch.Tensor:
        p = model.qp(support.mean(), model.qp.prepare(features))
        return (p[:, 1] - p[:, 0]).flatten(1).detach()

    model.qp.second.bias.data[0] += margin(f_q)[2].sort().values[-2:].mean()
    many = draw(1, C, 30, 30).expand(4, -1, -1, -1) * 4
    flat = many[0].flatten(1)
    for b, best in ((0, margin(many)[0].argmin()), (1, margin(many)[1].argmax())):
        f_q[b] = flat[:, best, None, None]
    return support, f_q, image


def test_a_batch_gives_each_sample_its_own_numbers() -> None:
    model = model_of()
    support, f_q, image = edge_batch(model)
    whole = model.rounds(support, f_q, image)
    predicted = (whole.rounds[0][:, 1] > whole.rounds[0][:, 0]).flatten(1).sum(1).tolist()
    assert predicted[:3] == [0, N, 1]
    for b in range(4):
        part = slice(b, b + 1)
        alone = model.rounds(Positions.under(support.valid[part]).gather(support.values[part]), f_q[part], image[part])
        for one, many in zip(alone.rounds + alone.hats, whole.rounds + whole.hats):
            torch.testing.assert_close(one[0], many[b], rtol=1e-9, atol=1e-9)


def test_order_of_support_tokens_changes_nothing() -> None:
    model = model_of()
    support, f_q, image = support_of([6]), draw(1, C, CELLS, CELLS), draw(1, 3, SIDE, SIDE)
    predict_only(model, "half", support.mean(), f_q)
    shuffled = support.with_values(support.values[:, torch.randperm(6)])
    torch.testing.assert_close(model.rounds(shuffled, f_q, image).rounds, model.rounds(support, f_q, image).rounds)


def test_what_padding_holds_changes_nothing() -> None:
    model = model_of()
    support, f_q, image = support_of([6, 2]), draw(2, C, CELLS, CELLS), draw(2, 3, SIDE, SIDE)
    padded = Tokens(
        torch.zeros(2, 10, C, dtype=torch.float64),
        torch.cat((support.valid, torch.zeros(2, 4, dtype=torch.bool)), 1),
        support.counts,
    ).with_values(torch.cat((support.values, 1e3 * draw(2, 4, C)), 1))
    torch.testing.assert_close(model.rounds(padded, f_q, image).rounds, model.rounds(support, f_q, image).rounds)


def gradcheck_modulation(sm: SupportModulation, foreground: torch.Tensor) -> bool:
    where = torch.tensor([[True, True, True], [True, False, False]])
    inputs = [draw(2, 3, 4), draw(2, 6, 3), draw(2, 6, 4)]

    def run(values: torch.Tensor, image: torch.Tensor, f_q: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        inside, outside = inside_and_outside(foreground)
        asked, layer = sm.prepare(f_q)
        support = Positions.under(where).gather(values)
        return sm(support, inside.gather(image), inside.gather(f_q), outside.gather(asked), layer)

    leaves = [x.requires_grad_() for x in inputs] + list(sm.parameters())
    return samples.gradients_agree(run, leaves)


def test_gradients_of_modulation_agree_with_finite_differences() -> None:
    torch.manual_seed(5)
    sm = SupportModulation(samples.abcb(channels=4, heads=2, histogram_bins=4)).double()
    foreground = torch.tensor([[True, True, False, True, False, True], [False, True, False, False, False, False]])
    assert gradcheck_modulation(sm, foreground)


def test_gradients_of_cleansing_agree_with_finite_differences() -> None:
    torch.manual_seed(5)
    ic = InformationCleansing(4, 2).double()
    valid = torch.tensor([[True] * 5, [True, True, False, True, False]])
    inputs = [draw(2, 3, 4), draw(2, 3, 4), draw(2, 5, 4), draw(2, 5)]

    def run(
        before: torch.Tensor, after: torch.Tensor, f_q: torch.Tensor, rise: torch.Tensor, *_: torch.Tensor
    ) -> torch.Tensor:
        return ic(before, after, ic.prepare(f_q, valid), rise)

    assert samples.gradients_agree(run, [x.requires_grad_() for x in inputs] + list(ic.parameters()))


@pytest.mark.parametrize("share", ["none", "one", "half", "all"])
def test_gradients_of_the_rounds_agree_with_finite_differences(share: str) -> None:
    torch.manual_seed(6)
    model = model_of(iterations=2)
    support, f_q, image = support_of([3]), draw(1, C, 3, 3), draw(1, 3, 9, 9)
    predict_only(model, share, support.mean(), f_q)

    def run(values: torch.Tensor, query: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = model.rounds(support.with_values(values), query, image)
        return (*result.rounds, *result.hats)

    leaves = [support.values.clone().requires_grad_(), f_q.requires_grad_()]
    steps = [*model.qp.parameters(), *model.ic.linear.parameters(), *model.sm.structure.parameters()]
    assert samples.gradients_agree(run, [*leaves, *steps])


def all_logits(prediction: Prediction) -> list[torch.Tensor]:
    return prediction.rounds + prediction.hats


@pytest.mark.parametrize("method", ["abcb", "baseline"])
def test_copies_of_a_shot_give_the_answer_of_one(method: str) -> None:
    torch.manual_seed(0)
    config = samples.abcb() if method == "abcb" else samples.baseline()
    model = build_model(samples.cell(config)).double()
    one = samples.batch(samples.square_masks([[9], [20]], 33), 33, dtype=torch.float64)
    three = samples.batch(one.support_masks.expand(-1, 3, -1, -1), 33, dtype=torch.float64)
    three.support_images = one.support_images.expand(-1, 3, -1, -1, -1)
    three.query_image = one.query_image
    torch.testing.assert_close(all_logits(model(three)), all_logits(model(one)))


@pytest.mark.parametrize("fusion", ["union", "logits"])
def test_what_is_padding_is_told_to_the_neck_and_the_rounds(fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(samples.cell(samples.abcb(shot_fusion=fusion)))
    batch = samples.batch(samples.square_masks([[9, 20]], 33), 33)
    batch.query_image[..., :16, :] = 0  # the mean colour: picture all the same
    batch.query_picture[..., 16:, :] = False  # cells lie at pixels 0, 4, ..., 32: the last five rows of nine
    batch.support_pictures[0, 1, ..., 28:] = False
    expected_q, expected_s = torch.ones(1, 9, 9, dtype=torch.bool), torch.ones(2, 9, 9, dtype=torch.bool)
    expected_q[:, 4:], expected_s[1, :, 7:] = False, False
    seen = []
    monkeypatch.setattr(model, "rounds", lambda *given: seen.append(given[3]) or type(model).rounds(model, *given))
    encode = model.neck.encode
    monkeypatch.setattr(model.neck, "encode", lambda *given: seen.append(given[1]) or encode(*given))
    model.neck.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    model(batch)
    del seen[1]  # of the query's image: no part of what is kept of it is attention
    assert torch.equal(seen[0], expected_s)
    assert torch.equal(seen[1], expected_q)
    assert torch.equal(seen[2], expected_q.expand(2 if fusion == "logits" else 1, -1, -1))


def test_shots_may_answer_one_by_one_and_their_logits_be_averaged() -> None:
    torch.manual_seed(0)
    model = build_model(samples.cell(samples.abcb(shot_fusion="logits"))).double()
    batch = samples.batch(samples.square_masks([[9, 20], [4, 12]], 33), 33, dtype=torch.float64)
    batch.query_picture[1, ..., 16:, :] = False
    together = model(batch)
    names = ("support_images", "support_masks", "support_pictures")
    alone = [model(replace(batch, **{name: getattr(batch, name)[:, k : k + 1] for name in names})) for k in (0, 1)]
    for number, logits in enumerate(all_logits(together)):
        torch.testing.assert_close(logits, (all_logits(alone[0])[number] + all_logits(alone[1])[number]) / 2)
    torch.testing.assert_close(
        together.support_foreground, (alone[0].support_foreground + alone[1].support_foreground) / 2
    )


@pytest.mark.parametrize("shots", [1, 2])
def test_the_whole_model_gives_each_sample_its_own_numbers(shots: int) -> None:
    torch.manual_seed(0)
    model = build_model(samples.cell(samples.abcb())).double()
    sizes = [[1, 9], [30, 4], [12, 12]]
    masks = samples.square_masks([row[:shots] for row in sizes], 33)
    whole = samples.batch(masks, 33, dtype=torch.float64)
    together = model(whole)
    for b in range(3):
        alone = model(samples.only(whole, b))
        for one, many in zip(all_logits(alone), all_logits(together)):
            torch.testing.assert_close(one[0], many[b], rtol=1e-8, atol=1e-8)


def test_order_of_shots_changes_nothing() -> None:
    torch.manual_seed(0)
    model = build_model(samples.cell(samples.abcb())).double()
    batch = samples.batch(samples.square_masks([[9, 20, 3]], 33), 33, dtype=torch.float64)
    before = all_logits(model(batch))
    batch.support_images, batch.support_masks = batch.support_images.flip(1), batch.support_masks.flip(1)
    torch.testing.assert_close(all_logits(model(batch)), before)


def test_without_modulation_it_is_the_baseline() -> None:
    torch.manual_seed(0)
    plain = build_model(samples.cell(samples.baseline()))
    torch.manual_seed(0)
    model = build_model(samples.cell(samples.abcb(modulation=False, cleansing=False, iterations=3)))
    assert model.state_dict().keys() == plain.state_dict().keys()
    batch = samples.batch(samples.square_masks([[9], [20]], 33), 33)
    ours, theirs = model(batch), plain(batch)
    assert len(ours.rounds) == 1
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=0)
    assert model.loss(ours, batch.query_mask)[0] == plain.loss(theirs, batch.query_mask)[0]


def test_round_one_is_what_the_baseline_with_the_same_weights_says() -> None:
    torch.manual_seed(0)
    plain, full = (build_model(samples.cell(c)) for c in (samples.baseline(), samples.abcb()))
    plain.load_state_dict({k: v for k, v in full.state_dict().items() if not k.startswith(("sm.", "ic."))})
    batch = samples.batch(samples.square_masks([[9], [20]], 33), 33)
    torch.testing.assert_close(full(batch).logits_of_round(1), plain(batch).logits, rtol=0, atol=0)


def test_evaluation_is_deterministic() -> None:
    torch.manual_seed(0)
    model = build_model(samples.cell(samples.abcb())).eval()
    batch = samples.batch(samples.square_masks([[9], [20]], 33), 33)
    with torch.no_grad():
        assert torch.equal(model(batch).logits, model(batch).logits)


def test_bf16_answers_stay_close_to_float32() -> None:
    torch.manual_seed(0)
    model = build_model(samples.cell(samples.abcb())).eval()
    batch = samples.batch(samples.square_masks([[25]], 65), 65)
    bend_round_one(model, batch)
    before, after = samples.in_float32_and_bf16(model, batch)
    assert ((before > 0.5) != (after > 0.5)).float().mean() < 0.1


def bend_round_one(model: Abcb, batch: Batch) -> None:
    """Shift phi_p's last bias until round 1 predicts about half of the positions as foreground."""
    p = model(batch).rounds[0]
    model.qp.second.bias.data[0] += (p[:, 1] - p[:, 0]).median().detach()


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(1)
    model = build_model(samples.cell(samples.abcb()))
    batch = samples.batch(samples.square_masks([[9], [20]], 33), 33)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    # A layer behind one that starts at zero feels nothing in the first step.
    samples.losses_of_steps(model, batch, optimiser, 2)
    optimiser.zero_grad()
    bend_round_one(model, batch)
    prediction = model(batch)
    share = (prediction.rounds[0][:, 1] > prediction.rounds[0][:, 0]).double().mean().item()
    assert 0 < share < 1, "the test needs both classes predicted"
    model.loss(prediction, batch.query_mask)[0].backward()
    silent = samples.silent_parameters(model)
    # A key's bias moves all scores of a query alike, and softmax does not see that.
    assert all(name.endswith("key.bias") for name in silent), silent


def test_learns_to_copy_the_marked_colour() -> None:
    """A few steps on one batch bring the loss down to a fraction: gradients point the right way through all rounds."""
    torch.manual_seed(0)
    model = build_model(samples.cell(samples.abcb()))
    batch = samples.marked_batch()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = samples.losses_of_steps(model, batch, optimiser, 25)
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("sides", [[[9], [20], [33]], [[9, 4], [20, 33], [33, 14]]])
@pytest.mark.parametrize(
    "changes", [{}, {"histogram_range": "minus_one_one"}, {"cleansing": False}, {"shot_fusion": "logits"}]
)
def test_tokens_in_place_and_gathered_tokens_give_the_same_answer_and_gradients(
    changes: dict, sides: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU all positions are tokens, and a mask says which take part; on a CPU those are gathered.

    Tokens of supports are gathered on both, and padded on a GPU to a multiple; no mask is a mask there, but a bias.
    """
    torch.manual_seed(0)
    model = build_model(samples.cell(samples.abcb(**changes))).double()
    batch = samples.batch(samples.square_masks(sides, 33), 33, dtype=torch.float64)
    batch.support_pictures[0, ..., 28:] = False
    batch.query_picture[1, ..., 20:] = False
    batch.query_image[2] = 0  # one answer everywhere: no foreground, or no background
    first = model(batch).rounds[0]
    with torch.no_grad():  # about half of the others is foreground
        model.qp.second.bias[0] += (first[:2, 1] - first[:2, 0]).median()
    found = []
    monkeypatch.setattr(tokens, "_MULTIPLE", 16)
    for as_on_a_gpu in (False, True):
        monkeypatch.setattr(tokens, "waits_for_nothing", lambda _, on=as_on_a_gpu: on)
        monkeypatch.setattr(attention, "masks_by_bias", lambda _, on=as_on_a_gpu: on)
        model.zero_grad()
        prediction = model(batch)
        loss, _ = model.loss(prediction, batch.query_mask)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((prediction.rounds, prediction.hats, gradients))
    answer = found[0][0][0]
    assert 0.3 < (answer[:2, 1] > answer[:2, 0]).double().mean() < 0.7
    assert {name.split(".")[0] for name in found[0][2]} >= {"sm", "qp", "neck"}
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_a_key_that_takes_no_part_may_be_told_by_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form of a GPU, where a mask would rule out the quickest kernel."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 5, 16, dtype=torch.float64).unbind(0)
    valid = torch.tensor([[True, False, True, True, False], [False] * 5])
    for bias in (None, torch.randn(2, 5, dtype=torch.float64)):
        keys = Keys(key, value, valid, bias)
        masked = attend(query, keys, 2)
        monkeypatch.setattr(attention, "masks_by_bias", lambda _: True)
        torch.testing.assert_close(attend(query, keys, 2), masked)
        monkeypatch.undo()
        assert (masked[1] == 0).all()
