"""PFENet against the float64 loops of `pfenet_reference`; its size, loss, dropout, batches and edges."""

from __future__ import annotations

import math

import model_samples as samples
import numpy as np
import pfenet_reference as reference
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fsseg.config.schema import BackboneConfig, PfenetConfig
from fsseg.data.types import Batch
from fsseg.errors import UserError
from fsseg.model import build_model
from fsseg.model.backbones import build_backbone
from fsseg.model.base import Prediction
from fsseg.model.blocks.neck import prior_map
from fsseg.model.blocks.tokens import Tokens, picture_cells
from fsseg.model.pfenet import Pfenet, sides


def model_of(seed: int = 0, training: bool = False, **changes) -> Pfenet:
    torch.manual_seed(seed)
    model = build_model(samples.cell(samples.pfenet(**changes))).double().train(training)
    assert isinstance(model, Pfenet)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("backbone"):
                parameter.mul_(3)  # far from the small numbers of the start, where errors would hide
    return model


def batch_of(objects: list[list[int]], side: int = 33) -> Batch:
    return samples.batch(samples.square_masks(objects, side), side, dtype=torch.float64)


def all_logits(prediction: Prediction) -> list[Tensor]:
    return prediction.rounds + prediction.hats


@torch.no_grad()
def in_loops(model: Pfenet, batch: Batch, b: int) -> list[np.ndarray]:
    """The answer and the sides' logits of episode b."""

    def maps(image: Tensor) -> dict[str, np.ndarray]:
        return {name: x[0].numpy() for name, x in model.backbone(image[None]).items()}

    query = maps(batch.query_image[b])
    cells = query["layer3"].shape[1:]
    seen = picture_cells(batch.support_pictures[b], cells).numpy()
    supports = [
        (maps(image), mask.numpy(), seen[k])
        for k, (image, mask) in enumerate(zip(batch.support_images[b], batch.support_masks[b]))
    ]
    answer, of_sides = reference.answer(
        model,
        lambda x: model.backbone.layer4(torch.from_numpy(x)[None])[0].numpy(),
        query,
        picture_cells(batch.query_picture[b : b + 1], cells)[0].numpy(),
        supports,
    )
    return [answer, *of_sides]


@pytest.mark.parametrize(
    ("side", "objects"),
    # cells on pixels, and between them, where weights are soft
    [(33, [[9], [20]]), (36, [[14, 21]])],
)
def test_the_answer_and_the_sides_equal_the_loops(side: int, objects: list[list[int]]) -> None:
    model, batch = model_of(channels=4), batch_of(objects, side)
    batch.query_picture[0, side - 9 :] = False
    batch.support_pictures[-1, -1, :, :6] = False  # as in a rotated image
    with torch.no_grad():
        found = all_logits(model(batch))
    for b in range(len(batch)):
        in_loop = in_loops(model, batch, b)
        assert np.ptp(in_loop[0][1]) > 0.05  # no answer that is the same everywhere
        for ours, expected in zip(found, in_loop, strict=True):
            assert ours[b].shape == expected.shape
            np.testing.assert_allclose(ours[b], expected, atol=1e-6)


def test_sides_are_those_published_for_473_and_641_pixels_and_fit_small_maps() -> None:
    shares = PfenetConfig("pfenet").sides
    assert [side for side, _ in sides((60, 60), shares)] == [60, 30, 15, 8]
    assert [side for side, _ in sides((81, 81), shares)] == [81, 40, 20, 10]  # the whole part of 40.5, 20.25, 10.125
    assert sides((21, 9), shares) == [(21, 9), (10, 4), (5, 2), (3, 1)]
    assert sides((3, 2), shares) == [(3, 2), (2, 1), (1, 1), (1, 1)]


def test_other_sides_can_be_chosen() -> None:
    prediction = model_of(sides=[0.5, 1.0])(batch_of([[9]]))
    assert [tuple(p.shape[2:]) for p in all_logits(prediction)] == [(9, 9), (4, 4), (9, 9)]


def test_loss_is_the_answers_and_the_mean_of_the_sides() -> None:
    # A foreground logit of ln 3 is p = 3/4: of foreground each pixel costs ln(4/3), of background ln 4. The pixel of
    # 255 counts nowhere.
    def logits(side: int, odds: float) -> Tensor:
        return torch.tensor([0.0, math.log(odds)]).view(1, 2, 1, 1).expand(1, 2, side, side)

    target = torch.ones(1, 9, 9, dtype=torch.uint8)
    target[0, 0, 0], target[0, 8, 8] = 0, 255
    prediction = Prediction([logits(3, 3.0)], (9, 9), [logits(3, 1.0), logits(2, 3.0), logits(1, 1.0), logits(1, 1.0)])
    loss, terms = model_of().loss(prediction, target)
    at_three = (79 * math.log(4 / 3) + math.log(4)) / 80
    assert list(terms) == ["answer", "side_1", "side_2", "side_3", "side_4"]
    expected = [at_three, math.log(2), at_three, math.log(2), math.log(2)]
    assert [term.item() for term in terms.values()] == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(at_three + (3 * math.log(2) + at_three) / 4, rel=1e-5)


def test_the_sides_are_no_rounds() -> None:
    prediction = model_of()(batch_of([[9], [20]]))
    assert [tuple(p.shape) for p in prediction.rounds] == [(2, 2, 9, 9)]
    assert [tuple(p.shape) for p in prediction.hats] == [(2, 2, side, side) for side in (9, 4, 2, 1)]


def test_learnable_parameters_and_multiply_adds_meet_the_published_counts() -> None:
    # ResNet-50 at 473 pixels, on no device: 10.82 M, and for the head 46.0 GMACs, with the similarities to all 3600
    # cells of the support.
    with FakeTensorMode(), torch.no_grad():
        model = Pfenet(build_backbone(BackboneConfig("resnet50", pretrained=False)), PfenetConfig("pfenet"))
        layers, layer4 = torch.empty(1, 512 + 1024, 60, 60), torch.empty(1, 60, 60, 2048)
        every = Tokens(layer4.flatten(1, 2), torch.ones(1, 3600, dtype=torch.bool), [3600])
        with FlopCounterMode(display=False) as counter:
            q, _ = model.neck.query(layers), model.neck.support(layers)
            features, _ = model.enrichment(q, torch.empty(1, 256), prior_map(layer4, every, [[3600]]))
            model.classify(model.refine(features))
    learnable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert learnable / 1e6 == pytest.approx(10.82, abs=0.005)
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert counter.get_total_flops() / 2e9 == pytest.approx(46.0, rel=0.01)


def test_layer4_runs_on_queries_and_on_masked_supports_alone() -> None:
    model, seen = model_of(), []
    model.backbone.layer4.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    batch = batch_of([[9, 20, 13], [20, 9, 5]])
    batch.support_masks[0, 0] = 0
    batch.support_masks[0, 0, 4, 8] = 1  # the pixel of cell (1, 2), and no other's
    model(batch)
    assert [len(x) for x in seen] == [2, 6]
    inside = seen[1][0].abs().sum(0) > 0
    assert inside.nonzero().tolist() == [[1, 2]]


def test_the_prior_may_start_with_the_weight_of_all_others_together() -> None:
    usual, strong = model_of(), model_of(strong_prior=True)  # of the same random numbers
    for ours, other in zip(strong.enrichment.merge, usual.enrichment.merge, strict=True):
        torch.testing.assert_close(ours[0].weight[:, :-1], other[0].weight[:, :-1], rtol=0, atol=0)
        torch.testing.assert_close(ours[0].weight[:, -1], other[0].weight[:, -1] * 33**0.5)  # 2 * 16 + 1 inputs


def test_dropout_is_drawn_in_training_alone() -> None:
    batch = batch_of([[9], [20]])
    assert torch.equal(model_of()(batch).logits, model_of()(batch).logits)
    plain, training = model_of(dropout=0.0), model_of(training=True, dropout=0.0)
    assert not torch.equal(training(batch).logits, plain(batch).logits)  # the classifiers' own


def test_draws_of_dropout_are_those_of_the_episode_and_of_the_run() -> None:
    model, batch = model_of(training=True), batch_of([[9, 4], [20, 7], [12, 12]])
    whole = model(batch)
    torch.testing.assert_close(model(batch).logits, whole.logits, rtol=0, atol=0)
    for b in range(3):  # whatever else is in the batch
        torch.testing.assert_close(model(samples.only(batch, b)).logits[0], whole.logits[b], rtol=1e-9, atol=1e-9)
    other = samples.only(batch, 1)
    other.specs = [samples.spec(7, 2)]
    assert not torch.allclose(model(other).logits[0], whole.logits[1])
    model.seed = 1
    assert not torch.allclose(model(batch).logits, whole.logits)


@pytest.mark.parametrize("shots", [1, 3])
def test_an_episode_gets_the_same_answer_alone_in_a_batch_and_with_kept_features(shots: int) -> None:
    model, batch = model_of(), batch_of([row[:shots] for row in ([1, 9, 5], [30, 4, 17], [12, 12, 1])])
    batch.query_picture[0, 20:] = False
    samples.check_alone_and_kept(model, batch, shots, all_logits)


def test_shots_count_alike_and_copies_of_one_give_its_answer() -> None:
    model, batch = model_of(), batch_of([[9, 20, 3]])
    before = all_logits(model(batch))
    batch.support_images, batch.support_masks = batch.support_images.flip(1), batch.support_masks.flip(1)
    torch.testing.assert_close(all_logits(model(batch)), before)
    one = batch_of([[9], [20]])
    three = samples.batch(one.support_masks.expand(-1, 3, -1, -1), 33, dtype=torch.float64)
    three.support_images, three.query_image = one.support_images.expand(-1, 3, -1, -1, -1), one.query_image
    torch.testing.assert_close(all_logits(model(three)), all_logits(model(one)))


def test_an_empty_support_mask_is_named_and_a_small_object_is_not_refused() -> None:
    model, batch = model_of(), batch_of([[9, 9], [9, 9]])
    batch.support_masks[0, 1] = 0
    batch.support_masks[0, 1, 2, 2] = 1  # one pixel, between the cells
    assert bool(torch.isfinite(model(batch).logits).all())
    batch.support_masks[1, 1] = 255
    with pytest.raises(UserError, match="support_1_1"):
        model(batch)


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(1)
    model = build_model(samples.cell(samples.pfenet()))
    batch = samples.batch(samples.square_masks([[9], [20]], 33), 33)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    # A layer behind one that starts at zero feels nothing in the first step.
    samples.losses_of_steps(model, batch, optimiser, 2)
    assert samples.silent_parameters(model) == []


def test_a_frozen_backbone_builds_no_graph() -> None:
    torch.manual_seed(0)
    model = build_model(samples.cell(samples.pfenet(), BackboneConfig("tiny", False, trainable_layers=0)))
    assert isinstance(model, Pfenet)
    seen: list[bool] = []
    model.backbone.layer4.register_forward_hook(lambda _, inputs, output: seen.append(output.requires_grad))
    batch = samples.batch(samples.square_masks([[9], [20]], 33), 33)
    model.loss(model(batch), batch.query_mask)[0].backward()
    assert seen == [False, False]
    assert all(p.grad is None for p in model.backbone.parameters())


def test_learns_to_copy_the_marked_colour() -> None:
    """A few steps on one batch bring the loss of the answer down to a fraction: gradients point the right way."""
    torch.manual_seed(0)
    model = build_model(samples.cell(samples.pfenet(dropout=0.0)))
    batch = samples.marked_batch()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)  # SGD finds the way, too, in a hundred steps
    answers = []
    for _ in range(25):
        loss, terms = model.loss(model(batch), batch.query_mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        answers.append(terms["answer"].item())
    assert answers[-1] < 0.3 * answers[0]


def test_bf16_answers_stay_close_to_float32() -> None:
    torch.manual_seed(0)
    model = build_model(samples.cell(samples.pfenet())).eval()
    batch = samples.batch(samples.square_masks([[25]], 65), 65)
    samples.in_float32_and_bf16(model, batch)
