"""Query prediction against loops, and the way from a batch to its tokens."""

from __future__ import annotations

import model_reference as reference
import model_samples as samples
import numpy as np
import pytest
import torch

from fsseg.errors import UserError
from fsseg.model import build_model, method_class
from fsseg.model.baseline import Baseline, QueryPrediction
from fsseg.model.blocks.tokens import Positions


@pytest.mark.parametrize("counts", [[1, 1], [5, 2], [16, 16]])
def test_query_prediction_equals_the_loops(counts: list[int]) -> None:
    torch.manual_seed(0)
    qp = QueryPrediction(6).double()
    support, f_q = torch.randn(2, 16, 6, dtype=torch.float64), torch.randn(2, 6, 3, 4, dtype=torch.float64)
    tokens = Positions.under(torch.arange(16) < torch.tensor(counts)[:, None]).gather(support)
    result = qp(tokens.mean(), qp.prepare(f_q))
    for b, count in enumerate(counts):
        expected = reference.query_prediction(qp, list(support[b, :count].numpy()), list(f_q[b].flatten(1).T.numpy()))
        np.testing.assert_allclose(result[b].detach().flatten(1).T, expected, atol=1e-6)


def test_gradients_of_query_prediction_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    qp = QueryPrediction(3).double()
    mean, f_q = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 3), (2, 3, 2, 2)))
    assert torch.autograd.gradcheck(lambda m, f, *_: qp(m, qp.prepare(f)), [mean, f_q, *qp.parameters()])


@pytest.mark.parametrize("shots", [1, 3])
def test_support_foreground_is_the_mean_of_f_s_under_the_masks_of_all_shots(shots: int) -> None:
    torch.manual_seed(0)
    model = build_model(samples.cell(samples.baseline()))
    assert isinstance(model, Baseline)
    batch = samples.batch(samples.square_masks([[13] * shots, [29] * shots], 33), 33)
    seen = {}
    model.neck.register_forward_hook(
        lambda module, inputs, output: seen.update(
            masks=inputs[1].masks, f_s=inputs[1].kept[0]["refined"].permute(0, 3, 1, 2).unflatten(0, (2, shots))
        )
    )
    prediction = model(batch)
    assert prediction.support_foreground is not None
    for b in range(2):
        vectors = [seen["f_s"][b, k, :, y, x].detach().numpy() for k, y, x in seen["masks"][b].nonzero().tolist()]
        np.testing.assert_allclose(prediction.support_foreground[b].detach(), np.mean(vectors, 0), rtol=1e-5, atol=1e-6)


def test_an_empty_support_mask_is_named() -> None:
    model = build_model(samples.cell(samples.baseline()))
    masks = samples.square_masks([[9, 9], [9, 9]], 33)
    masks[1, 1] = 255
    with pytest.raises(UserError, match="support_1_1"):
        model(samples.batch(masks, 33))


def test_features_kept_from_before_give_the_same_answer() -> None:
    torch.manual_seed(0)
    model = build_model(samples.cell(samples.abcb()))
    assert isinstance(model, Baseline)
    batch = samples.batch(samples.square_masks([[9], [20]], 33), 33)
    supports = model.encode(batch.support_images.flatten(0, 1), batch.support_pictures.flatten(0, 1))
    query = model.encode(batch.query_image, batch.query_picture)
    assert torch.equal(model.decode([supports], query, batch).logits, model(batch).logits)
    each = [{name: x[n : n + 1] for name, x in supports.items()} for n in range(len(supports["embedded"]))]
    torch.testing.assert_close(model.decode(each, query, batch).logits, model(batch).logits)


def test_every_method_is_built_by_name_and_unknown_ones_are_refused() -> None:
    configs = {
        "abcb": samples.abcb(),
        "baseline": samples.baseline(),
        "pfenet": samples.pfenet(),
        "bam": samples.bam(),
        "dino": samples.dino(),
        "hsnet": samples.hsnet(),
        "prototype": samples.prototype(),
    }
    for name, config in configs.items():
        assert type(build_model(samples.cell(config))) is method_class(name)
    with pytest.raises(UserError, match=r"model\.name=panet"):
        build_model(samples.cell(samples.baseline(name="panet")))
