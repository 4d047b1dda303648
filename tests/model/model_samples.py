"""Batches and configurations that the model tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from types import SimpleNamespace

import torch
from torch import Tensor

from fsseg.config.schema import (
    AbcbConfig,
    BackboneConfig,
    BamConfig,
    BaselineConfig,
    DinoConfig,
    HsnetConfig,
    PfenetConfig,
    PrototypeConfig,
    ShapesConfig,
)
from fsseg.data.types import Batch, EpisodeSpec
from fsseg.model.backbones import LAYERS, Backbone, Features
from fsseg.model.base import FewShotModel


class Pixels(Backbone):
    """Stands in for a backbone: the image's own channels at every 8th pixel, or in the middle of patches of 8."""

    def __init__(self, patches: bool = False) -> None:
        super().__init__()
        self.patches = patches

    def forward(self, images: Tensor) -> Features:
        start = 4 if self.patches else 0
        return dict.fromkeys(LAYERS, images[..., start::8, start::8])


def spec(number: int, shots: int, class_id: int = 0) -> EpisodeSpec:
    return EpisodeSpec(number, class_id, f"query_{number}", tuple(f"support_{number}_{k}" for k in range(shots)))


def batch(masks: Tensor, side: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    """Random images with the given support masks (B, K, side, side); all pixels are picture."""
    generator = torch.Generator().manual_seed(seed)
    count, shots = masks.shape[:2]
    return Batch(
        support_images=torch.randn(count, shots, 3, side, side, generator=generator, dtype=dtype),
        support_masks=masks.to(torch.uint8),
        support_pictures=torch.ones(count, shots, side, side, dtype=torch.bool),
        query_image=torch.randn(count, 3, side, side, generator=generator, dtype=dtype),
        query_mask=torch.randint(0, 2, (count, side, side), generator=generator, dtype=torch.uint8),
        query_picture=torch.ones(count, side, side, dtype=torch.bool),
        specs=[spec(number, shots) for number in range(count)],
        valid_sizes=[(side, side)] * count,
        query_truths=[None] * count,
    )


def square_masks(sides: list[list[int]], side: int) -> Tensor:
    """One mask per (sample, shot): a square of the given side, somewhere."""
    masks = torch.zeros(len(sides), len(sides[0]), side, side, dtype=torch.uint8)
    for b, row in enumerate(sides):
        for k, size in enumerate(row):
            start = (3 * b + 5 * k) % (side - size + 1)
            masks[b, k, start : start + size, start : start + size] = 1
    return masks


def only(whole: Batch, b: int) -> Batch:
    """Sample b of a batch as a batch of its own."""
    return replace(whole, **{field.name: getattr(whole, field.name)[b : b + 1] for field in fields(whole)})


def check_alone_and_kept(model: FewShotModel, data: Batch, shots: int, read: Callable) -> None:
    """An episode's answer, all that `read` takes of it, is the same alone, in a batch, and with kept features."""
    with torch.no_grad():
        together = read(model(data))
        for b in range(len(data)):
            alone = read(model(only(data, b)))
            torch.testing.assert_close([p[0] for p in alone], [p[b] for p in together], rtol=1e-9, atol=1e-9)
        supports = model.encode(data.support_images.flatten(0, 1), data.support_pictures.flatten(0, 1))
        query = model.encode(data.query_image, data.query_picture)
        each = [{name: x[n : n + 1] for name, x in supports.items()} for n in range(len(data) * shots)]
        torch.testing.assert_close(read(model.decode([supports], query, data)), together)
        torch.testing.assert_close(read(model.decode(each, query, data)), together)


def in_float32_and_bf16(model: FewShotModel, data: Batch) -> tuple[Tensor, Tensor]:
    """Foreground probabilities without and with autocast; they differ a little, for else it did nothing."""
    with torch.no_grad():
        exact = model(data)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(data)
    before, after = (p.logits.float().softmax(1)[:, 1] for p in (exact, rounded))
    assert 0 < (before - after).abs().max() < 0.1
    return before, after


def abcb(**changes) -> AbcbConfig:
    return AbcbConfig(**{"name": "abcb", "channels": 16, "heads": 2, **changes})


def baseline(**changes) -> BaselineConfig:
    return BaselineConfig(**{"name": "baseline", "channels": 16, "heads": 2, **changes})


def pfenet(**changes) -> PfenetConfig:
    return PfenetConfig(**{"name": "pfenet", "channels": 16, **changes})


def bam(**changes) -> BamConfig:
    return BamConfig(**{"name": "bam", "channels": 16, **changes})


def prototype(**changes) -> PrototypeConfig:
    return PrototypeConfig(**{"name": "prototype", **changes})


def dino(**changes) -> DinoConfig:
    return DinoConfig(**{"name": "dino", **changes})


def hsnet(**changes) -> HsnetConfig:
    return HsnetConfig(**{"name": "hsnet", "channels": 32, **changes})


def gradients_agree(run: Callable, leaves: list[Tensor]) -> bool:
    """Whether the gradient by each leaf agrees with finite differences, along one random direction a leaf and output.

    One direction says as much as all single entries do where the tolerance is as far below gradcheck's usual one (1e-3)
    as the entries are many.
    """
    return torch.autograd.gradcheck(run, leaves, fast_mode=True, atol=1e-7, rtol=1e-6)


def cell(model, backbone: BackboneConfig | None = None, shot: int = 1) -> SimpleNamespace:
    """What `build_model` reads of a whole configuration; class 0, of which the batches are, is a base class."""
    return SimpleNamespace(
        model=model, backbone=backbone or BackboneConfig(name="tiny", pretrained=False, trainable_layers=5), seed=0,
        dataset=ShapesConfig(name="shapes5i"), fold=1, shot=shot,
    )  # fmt: skip


def marked_batch() -> Batch:
    """Four episodes of 33 px whose objects are marked in the red channel, of supports and of queries."""
    marked = batch(square_masks([[15], [20], [12], [24]], 33), 33)
    marked.query_mask = marked.support_masks[:, 0].flip(1)
    for images, masks in (
        (marked.support_images[:, 0], marked.support_masks[:, 0]),
        (marked.query_image, marked.query_mask),
    ):
        images[:, 0] += 4 * masks
    return marked


def losses_of_steps(model: FewShotModel, data: Batch, optimiser: torch.optim.Optimizer, steps: int) -> list[float]:
    """Steps on one batch; the gradients of the last one stay."""
    losses = []
    for _ in range(steps):
        loss, _ = model.loss(model(data), data.query_mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def silent_parameters(model: torch.nn.Module) -> list[str]:
    """Names of the parameters that the last backward pass gave no gradient, or one of zero."""
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
