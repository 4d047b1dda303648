"""BAM against the float64 loops of `bam_reference`; its size, loss, base learner, shots, batches and edges."""

from __future__ import annotations

import math
from dataclasses import replace

import bam_reference as reference
import model_samples as samples
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fsseg.config.compose import compose
from fsseg.config.schema import BackboneConfig, BamConfig
from fsseg.data.types import Batch
from fsseg.errors import UserError
from fsseg.model import build_model
from fsseg.model.backbones import build_backbone
from fsseg.model.bam import Aspp, Bam, BamRun, Ensemble, ShotWeights, gram_matrix, style_difference
from fsseg.model.base import Prediction
from fsseg.model.base_learner import BaseLearner
from fsseg.model.blocks.tokens import picture_cells
from fsseg.model.cost import cost

FROZEN = BackboneConfig("tiny", pretrained=False, trainable_layers=0)


def built(shots: int = 1, **changes) -> Bam:
    model = build_model(samples.cell(samples.bam(**changes), FROZEN, shots))
    assert isinstance(model, Bam)
    return model


def model_of(shots: int = 1, training: bool = False, **changes) -> Bam:
    """Far from its start, where errors would hide; backbone and head as after a training."""
    torch.manual_seed(0)
    model = built(shots, **changes).double().train(training)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("ensemble", "shot_weights")):
                parameter.uniform_(-1, 1)
            elif "norm2" in name:
                parameter.uniform_(0.5, 1)
            elif not name.startswith(("backbone", "head")):
                parameter.mul_(3)
        model.head.classify.weight.mul_(10)
        for module in model.head.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.1, 0.5)
    return model


def batch_of(objects: list[list[int]], side: int = 33) -> Batch:
    return samples.batch(samples.square_masks(objects, side), side, dtype=torch.float64)


def both(prediction: Prediction) -> list[Tensor]:
    return prediction.rounds + prediction.hats


# ------------------------------------------------------------------------------------------------ against the loops


def test_the_class_of_an_episode_has_a_label_of_the_base_learner() -> None:
    """Fold 1 of shapes5i holds classes 5 to 9 out: class 0 has label 1, class 10 label 6."""
    model = built()
    assert model.of_run.base_classes == (0, 1, 2, 3, 4, *range(10, 20))
    assert (model.place[0], model.place[10]) == (0, 5)


@torch.no_grad()
def in_loops(model: Bam, batch: Batch, b: int, own_label: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The answer and the meta learner's logits of episode b."""

    def maps(image: Tensor) -> dict[str, np.ndarray]:
        return {name: x[0].numpy() for name, x in model.backbone(image[None]).items()}

    def module(run: nn.Module):
        return lambda x: run(torch.from_numpy(x)[None])[0].numpy()

    query = maps(batch.query_image[b])
    cells = query["layer3"].shape[1:]
    seen = picture_cells(batch.support_pictures[b], cells).numpy()
    supports = [
        (maps(image), mask.numpy(), seen[k])
        for k, (image, mask) in enumerate(zip(batch.support_images[b], batch.support_masks[b]))
    ]
    picture = picture_cells(batch.query_picture[b : b + 1], cells)[0].numpy()
    modules = (module(model.backbone.layer4), module(model.head))
    return reference.answer(model, own_label, modules, (query, picture), supports)


@pytest.mark.parametrize(
    ("side", "objects", "classes"),
    # cells on pixels, and between them; class 10 is the sixth of the base classes, class 7 is novel
    [(33, [[9], [20]], {10: 6, 7: None}), (36, [[14, 21, 9]], {0: 1})],
)
def test_answer_and_meta_learner_equal_the_loops(
    side: int, objects: list[list[int]], classes: dict[int, int | None]
) -> None:
    model, batch = model_of(len(objects[0]), channels=4), batch_of(objects, side)
    batch.query_picture[0, side - 9 :] = False
    batch.support_pictures[-1, -1, :, :6] = False  # as in a rotated image
    batch.specs = [samples.spec(n, len(row), class_id) for n, (row, class_id) in enumerate(zip(objects, classes))]
    with torch.no_grad():
        answer, meta = both(model(batch))
    for b, label in enumerate(classes.values()):
        expected, of_meta = in_loops(model, batch, b, label)
        assert np.ptp(expected[0]) > 0.05  # no answer that is the same everywhere
        np.testing.assert_allclose(meta[b], of_meta, atol=1e-6)
        np.testing.assert_allclose(answer[b], expected, atol=1e-6)


def test_aspp_sees_as_far_as_its_dilations() -> None:
    """On a map larger than they are, so that every tap of the kernels counts."""
    torch.manual_seed(0)
    module, x = Aspp(8).double(), torch.randn(1, 8, 38, 3, dtype=torch.float64)
    np.testing.assert_allclose(module(x)[0].detach(), reference.aspp(module, x[0].numpy()), atol=1e-10)
    with torch.no_grad():
        module.everywhere.weight.zero_()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(module(x)[0, :, 18, 1].sum(), x)
    reached = gradient[0].abs().sum((0, 2)) > 0
    assert reached.nonzero().flatten().tolist() == [0, 6, 12, 18, 24, 30, 36]


def test_psi_by_hand() -> None:
    # Two channels over four cells, of which the last is padding: (1, 0, 1) and (0, 1, 1) have a cosine of 1/2. Of the
    # support's the second is 0 everywhere.
    query = torch.tensor([[[[1.0, 0, 1, 9]], [[0, 1, 1, 9]]]], dtype=torch.float64)
    support = torch.tensor([[[[1.0, 2, 3, 4]], [[0, 0, 0, 0]]]], dtype=torch.float64)
    picture = torch.tensor([[[True, True, True, False]]])
    own, other = gram_matrix(query, picture), gram_matrix(support, torch.ones_like(picture))
    torch.testing.assert_close(own[0], torch.tensor([[1, 0.5], [0.5, 1]], dtype=torch.float64))
    torch.testing.assert_close(other[0], torch.tensor([[1.0, 0], [0, 0]], dtype=torch.float64))
    found = style_difference(own, torch.stack((other, own), 1))
    assert found[0].tolist() == pytest.approx([math.sqrt(0.25 + 0.25 + 1) / 2, 0])


# ------------------------------------------------------------------------------------------------ ensemble


def test_it_starts_with_the_answer_of_the_meta_learner() -> None:
    meta = torch.randn(2, 2, 3, 3)
    found = Ensemble()(meta, torch.rand(2), torch.rand(2, 1, 3, 3))
    torch.testing.assert_close(found, meta.softmax(1))


def test_base_classes_become_background_once_their_weight_is_up() -> None:
    """A cell that is foreground for the meta learner (0.6), but to 0.9 of another base class."""
    ensemble, meta = Ensemble(), torch.tensor([0.4, 0.6]).log().view(1, 2, 1, 1)
    with torch.no_grad():
        ensemble.merge.weight[0, 1] = 0.5
    found = ensemble(meta, torch.zeros(1), torch.full((1, 1, 1, 1), 0.9)).flatten().tolist()
    assert found == pytest.approx([0.4 + 0.5 * 0.9, 0.6])


@pytest.mark.parametrize("training", [True, False])
def test_an_episodes_own_class_is_no_background_and_of_a_novel_class_all_base_classes_are(training: bool) -> None:
    model, batch = model_of(training=training), batch_of([[9], [9]])
    batch.specs = [samples.spec(0, 1, 0), samples.spec(1, 1, 12 if training else 5)]
    query = model.encode(batch.query_image, batch.query_picture, "query")
    seen: list[Tensor] = []
    model.ensemble.register_forward_hook(lambda _, inputs, output: seen.append(inputs[2]))
    model(batch)
    probability = query["base"]
    torch.testing.assert_close(seen[0][0, 0], probability[0].sum(2) - probability[0, ..., 0])
    own = probability[1, ..., 7] if training else 0  # 12 is the eighth base class
    torch.testing.assert_close(seen[0][1, 0], probability[1].sum(2) - own)
    logits = model.head(model.backbone(batch.query_image)["layer4"])
    torch.testing.assert_close(probability.sum(3), 1 - logits.softmax(1)[:, 0])


def test_loss_is_the_answers_and_the_meta_learners() -> None:
    # A foreground logit of ln 3 is p = 3/4: of foreground each pixel costs ln(4/3), of background ln 4. The pixel of
    # 255 counts nowhere.
    def logits(odds: float) -> Tensor:
        return torch.tensor([0.0, math.log(odds)]).view(1, 2, 1, 1).expand(1, 2, 3, 3)

    target = torch.ones(1, 9, 9, dtype=torch.uint8)
    target[0, 0, 0], target[0, 8, 8] = 0, 255
    loss, terms = built().loss(Prediction([logits(3.0)], (9, 9), [logits(1.0)]), target)
    at_three = (79 * math.log(4 / 3) + math.log(4)) / 80
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"answer": at_three, "meta": math.log(2)}, rel=1e-5
    )
    assert loss.item() == pytest.approx(at_three + math.log(2), rel=1e-5)


# ------------------------------------------------------------------------------------------------ base learner


def test_it_takes_over_backbone_and_head_and_says_if_they_do_not_fit() -> None:
    torch.manual_seed(0)
    model, learner = built(), BaseLearner(build_backbone(FROZEN), 15)
    model.start_from_base(learner.state_dict())
    own = model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in learner.state_dict().items())
    with pytest.raises(RuntimeError, match="classify"):
        model.start_from_base(BaseLearner(build_backbone(FROZEN), 60).state_dict())


def test_steps_leave_backbone_and_head_as_they_are() -> None:
    torch.manual_seed(1)
    model, batch = built(2), samples.batch(samples.square_masks([[9, 12], [20, 5]], 33), 33)
    assert model.training
    assert not any(module.training for module in model.head.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():  # both hidden units are on: a unit that is off feels nothing
        assert model.shot_weights is not None
        model.shot_weights.layers[0].weight.abs_()
        model.shot_weights.layers[0].bias.abs_()
    samples.losses_of_steps(model, batch, torch.optim.SGD(trained, lr=0.1, weight_decay=0.1), 3)
    after = model.state_dict()
    changed = {name.partition(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"neck", "merge", "aspp", "refine", "classify", "shot_weights", "ensemble"}
    silent = {name.partition(".")[0] for name in samples.silent_parameters(model)}
    assert silent == {"backbone", "head"}
    assert all(p.grad is None for part in (model.backbone, model.head) for p in part.parameters())


# ------------------------------------------------------------------------------------------------ shots


def test_weights_follow_the_order_of_the_differences() -> None:
    torch.manual_seed(0)
    module = ShotWeights(4).double()
    with torch.no_grad():
        module.layers[0].weight.uniform_(0, 3)
    psi = torch.tensor([[0.3, 0.1, 0.4, 0.2], [0.5, 0.6, 0.7, 0.8]], dtype=torch.float64)
    found = module(psi).tolist()
    for row, differences in zip(found, psi.tolist()):
        assert sum(row) == pytest.approx(1)
        assert row == pytest.approx(reference.shot_weights(module, differences))
    turned = module(psi[:, [2, 0, 3, 1]])[0].tolist()
    assert turned == pytest.approx([found[0][2], found[0][0], found[0][3], found[0][1]])


def test_the_order_of_the_shots_does_not_matter_and_copies_of_one_give_its_answer() -> None:
    model, batch = model_of(3), batch_of([[9, 20, 3]])
    before = both(model(batch))
    batch.support_images, batch.support_masks = batch.support_images.flip(1), batch.support_masks.flip(1)
    torch.testing.assert_close(both(model(batch)), before)
    one = batch_of([[9], [20]])
    three = samples.batch(one.support_masks.expand(-1, 3, -1, -1), 33, dtype=torch.float64)
    three.support_images, three.query_image = one.support_images.expand(-1, 3, -1, -1, -1), one.query_image
    single = model_of()
    single.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("shot_weights")})
    torch.testing.assert_close(both(model(three)), both(single(one)))


@pytest.mark.parametrize(("trained", "shots"), [(1, 5), (5, 1), (2, 3)])
def test_weights_of_another_number_of_shots_are_told_in_words(trained: int, shots: int) -> None:
    model, weights = built(shots), built(trained).state_dict()
    assert built(trained).misfit(weights) is None
    fault = model.misfit(weights)
    assert fault is not None
    assert f"was trained with {trained} shot" in fault.what
    assert f"set shot={trained}, or train with shot={shots}" in fault.fix
    other = build_model(samples.cell(samples.pfenet())).state_dict()
    assert model.misfit(other) is None  # to be told by the names of its tensors


# ------------------------------------------------------------------------------------------------ size


def test_parameters_and_multiply_adds_meet_the_published_counts() -> None:
    """ResNet-50 at 473 pixels: 4.92 M learn, the base learner's head has 23.1 M.

    45.9 GMACs, with the similarities to all 3600 cells of the support and the Gram matrices of both images, and 68.0 of
    the base learner. The backbone sees two images: layer4 of the support is that of the masked layer3.
    """
    cfg = compose(["method=bam", "dataset=pascal5i"]).cfg
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig("resnet50", pretrained=False))
        model = Bam(backbone, BamConfig("bam"), BamRun((*range(15),)))
        with FlopCounterMode(display=False) as of_backbone, torch.no_grad():
            backbone(torch.empty(2, 3, 473, 473))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6 == pytest.approx(4.92, abs=0.005)
    assert not any(p.requires_grad for part in (model.backbone, model.head) for p in part.parameters())
    assert sum(p.numel() for p in model.head.parameters()) / 1e6 == pytest.approx(23.1, rel=0.01)
    rows = {row.part: row for row in cost(cfg, share=1.0)}
    assert rows["bam"].parameters == sum(p.numel() for p in model.parameters())
    own = rows["bam"].macs - of_backbone.get_total_flops() / 2
    assert own / 1e9 - 68.0 == pytest.approx(45.9, rel=0.01)  # of the head alone: `test_base_learner`


# ------------------------------------------------------------------------------------------------ batches and edges


def test_dropout_is_that_of_the_episode_and_of_the_run_and_of_training_alone() -> None:
    batch = batch_of([[9, 4], [20, 7], [12, 12]])
    assert torch.equal(model_of(2)(batch).logits, model_of(2)(batch).logits)
    model = model_of(2, training=True)
    whole = model(batch)
    assert not torch.allclose(model_of(2)(batch).logits, whole.logits)
    torch.testing.assert_close(model(batch).logits, whole.logits, rtol=0, atol=0)
    for b in range(3):  # whatever else is in the batch
        torch.testing.assert_close(model(samples.only(batch, b)).logits[0], whole.logits[b], rtol=1e-9, atol=1e-9)
    model.of_run = replace(model.of_run, seed=1)
    assert not torch.allclose(model(batch).logits, whole.logits)


@pytest.mark.parametrize("shots", [1, 3])
def test_an_episode_gets_the_same_answer_alone_in_a_batch_and_with_kept_features(shots: int) -> None:
    model, batch = model_of(shots), batch_of([row[:shots] for row in ([1, 9, 5], [30, 4, 17], [12, 12, 1])])
    batch.query_picture[0, 20:] = False
    batch.specs = [samples.spec(n, shots, class_id) for n, class_id in enumerate((0, 5, 11))]
    samples.check_alone_and_kept(model, batch, shots, both)


def test_what_stands_on_padding_changes_no_style() -> None:
    model, batch = model_of(), batch_of([[9]])
    batch.query_picture[0, 20:] = False
    features, picture = model.backbone(batch.query_image)["layer2"], picture_cells(batch.query_picture, (9, 9))
    before = gram_matrix(features, picture)
    features[:, :, 5:] += 3.0  # rows 5 to 8 lie at pixels 20 to 32
    torch.testing.assert_close(gram_matrix(features, picture), before)
    assert not torch.allclose(gram_matrix(features, torch.ones_like(picture)), before)


def test_an_empty_support_mask_is_named_and_a_small_object_is_not_refused() -> None:
    model, batch = model_of(2), batch_of([[9, 9], [9, 9]])
    batch.support_masks[0, 1] = 0
    batch.support_masks[0, 1, 2, 2] = 1  # one pixel, between the cells
    assert bool(torch.isfinite(model(batch).logits).all())
    batch.support_masks[1, 1] = 255
    with pytest.raises(UserError, match="support_1_1"):
        model(batch)


def test_learns_to_copy_the_marked_colour() -> None:
    """A few steps on one batch bring the loss of the answer down: gradients point the right way."""
    torch.manual_seed(0)
    model = built(dropout=0.0)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    losses = samples.losses_of_steps(model, samples.marked_batch(), optimiser, 35)
    assert losses[-1] < 0.4 * losses[0]


def test_bf16_answers_stay_close_to_float32() -> None:
    torch.manual_seed(0)
    model = built(2).eval()
    batch = samples.batch(samples.square_masks([[25, 30]], 65), 65)
    samples.in_float32_and_bf16(model, batch)
