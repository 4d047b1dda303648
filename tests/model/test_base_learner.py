"""The base learner's head: its parameters, its numbers against plain loops, and its statistics on several processes."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from model_samples import batch
from runs import fork_ranks
from torch import nn

from fsseg.config.compose import compose
from fsseg.config.schema import BackboneConfig, CocoConfig, PascalConfig, PspnetConfig, ShapesConfig
from fsseg.engine import distributed
from fsseg.model import build_model
from fsseg.model.base_learner import BINS, BaseLearner, PyramidHead, number_of_base_classes
from fsseg.model.blocks.batch_norm import SharedBatchNorm
from fsseg.model.cost import cost


def learner(name: str = "tiny", dataset: Any = ShapesConfig) -> BaseLearner:
    backbone = BackboneConfig(name=name, pretrained=False, trainable_layers=5)
    data = dataset(name=dataset.NAMES[0])
    cfg = SimpleNamespace(model=PspnetConfig(name="pspnet"), backbone=backbone, dataset=data, fold=0, seed=0)
    model = build_model(cfg)  # type: ignore[arg-type]
    assert isinstance(model, BaseLearner)
    return model


def test_the_published_number_of_parameters() -> None:
    """23.1 M in the head, with ResNet-50 and PASCAL's 15 base classes."""
    with torch.device("meta"):
        model = learner("resnet50", PascalConfig)
    assert model.head.classify.out_channels == 16
    own = sum(p.numel() for p in model.head.parameters())
    assert abs(own / 23.1e6 - 1) < 0.01
    # by hand: four reductions of 2048 to 512 with norm, 4096 -> 512 with 3x3 and norm, 512 -> 16 with bias
    assert own == 4 * (2048 * 512 + 2 * 512) + 4096 * 512 * 9 + 2 * 512 + 512 * 16 + 16


def test_the_published_multiply_adds_of_the_head() -> None:
    """68.0 GMACs at 473 px."""
    line = ["method=pspnet", "dataset=pascal5i", "base_training.image_size=473"]
    rows = {row.part: row for row in cost(compose(line).cfg)}
    assert abs(rows["head"].macs / 68.0e9 - 1) < 0.01
    assert abs(rows["head"].parameters / 23.1e6 - 1) < 0.01  # type: ignore[operator]


def test_coco_has_60_base_classes_in_a_fold() -> None:
    assert number_of_base_classes(SimpleNamespace(dataset=CocoConfig(name="coco20i"), fold=0)) == 60  # type: ignore[arg-type]


def areas(side: int, size: int) -> list[range]:
    """The rows of each of `side` areas of a map of `size` rows: floor of its start to ceiling of its end."""
    return [range(math.floor(i * size / side), math.ceil((i + 1) * size / side)) for i in range(side)]


def resized(grid: list[list[float]], size: int) -> list[list[float]]:
    """Bilinear with corners aligned."""
    n = len(grid)
    out = [[0.0] * size for _ in range(size)]
    for y in range(size):
        for x in range(size):
            v, u = (p * (n - 1) / (size - 1) for p in (y, x))
            top, left = min(int(v), max(n - 2, 0)), min(int(u), max(n - 2, 0))
            total = 0.0
            for dy in (0, 1):
                for dx in (0, 1):
                    weight = (v - top if dy else 1 - v + top) * (u - left if dx else 1 - u + left)
                    if weight:
                        total += weight * grid[top + dy][left + dx]
            out[y][x] = total
    return out


def normed(module: Any, maps: np.ndarray) -> np.ndarray:
    """Norm by the statistics of the batch (N, C, h, w), then ReLU."""
    out = np.zeros_like(maps)
    for c in range(maps.shape[1]):
        values = maps[:, c].ravel().tolist()
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        scaled = (maps[:, c] - mean) / math.sqrt(variance + module.eps)
        out[:, c] = np.maximum(scaled * module.weight[c].item() + module.bias[c].item(), 0)
    return out


def reference(head: Any, features: np.ndarray) -> np.ndarray:
    """PSPNet's head as its paper draws it, without dropout."""
    count, channels, size, _ = features.shape
    parts = [features]
    for side, stage in zip(BINS, head.bins):
        weight = stage[1].weight.detach().numpy()[:, :, 0, 0]
        pooled = np.zeros((count, channels, side, side))
        for i, rows in enumerate(areas(side, size)):
            for j, columns in enumerate(areas(side, size)):
                cells = [features[:, :, y, x] for y in rows for x in columns]
                pooled[:, :, i, j] = sum(cells) / len(cells)
        reduced = normed(stage[2], np.einsum("oc,ncij->noij", weight, pooled))
        parts.append(np.array([[resized(one.tolist(), size) for one in image] for image in reduced]))
    wide = np.concatenate(parts, 1)
    padded = np.pad(wide, ((0, 0), (0, 0), (1, 1), (1, 1)))
    kernel = head.mix[0].weight.detach().numpy()
    mixed = np.zeros((count, kernel.shape[0], size, size))
    for dy in range(3):
        for dx in range(3):
            window = padded[:, :, dy : dy + size, dx : dx + size]
            mixed += np.einsum("oc,ncyx->noyx", kernel[:, :, dy, dx], window)
    mixed = normed(head.mix[1], mixed)
    last = head.classify.weight.detach().numpy()[:, :, 0, 0]
    return np.einsum("oc,ncyx->noyx", last, mixed) + head.classify.bias.detach().numpy()[None, :, None, None]


def test_the_head_is_that_of_the_reference() -> None:
    torch.manual_seed(0)
    head = PyramidHead(8, 4).double()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    features = torch.randn(2, 8, 7, 7, dtype=torch.float64)
    expected = reference(head, features.numpy())
    np.testing.assert_allclose(head(features).detach().numpy(), expected, rtol=1e-9, atol=1e-10)


def test_an_answer_does_not_depend_on_the_images_beside_it() -> None:
    torch.manual_seed(0)
    model = learner().eval()
    whole = batch(torch.zeros(3, 0, 33, 33, dtype=torch.uint8), 33)
    with torch.no_grad():
        together = model(whole).logits
        alone = model.encode(whole.query_image[1:2], whole.query_picture[1:2])["logits"]
    assert together.shape == (3, 16, 33, 33)
    torch.testing.assert_close(alone, model.encode(whole.query_image, whole.query_picture)["logits"][1:2])


def test_padding_and_what_is_left_open_train_nothing() -> None:
    model = learner()
    whole = batch(torch.zeros(2, 0, 33, 33, dtype=torch.uint8), 33)
    loss, _ = model.loss(model(whole), torch.full((2, 33, 33), 255, dtype=torch.uint8))
    assert loss.item() == 0


def shared_norm(half: bool) -> None:
    """One process of two: its part of a batch through the norm; prints answer, statistics and gradients."""
    ranks = distributed.set_up("cpu")
    torch.manual_seed(0)
    x, target = torch.randn(5, 3, 4, 4) * 2 + 7, torch.randn(5, 3, 4, 4)
    norm = SharedBatchNorm(3)
    nn.init.uniform_(norm.weight)
    mine = slice(0, 2) if ranks.rank == 0 else slice(2, 5)
    part = (x[mine] if half else x).clone().requires_grad_()
    answer = norm(part)
    (answer * (target[mine] if half else target)).pow(2).sum().backward()
    distributed.add_gradients(list(norm.parameters()), ranks)
    shown = [answer.detach(), part.grad, norm.weight.grad, norm.running_mean, norm.running_var]
    print("found", [[round(v, 4) for v in t.flatten().tolist()] for t in shown], flush=True)  # type: ignore[union-attr]


def test_statistics_on_two_processes_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, target = (torch.randn(5, 3, 4, 4) * 2 + 7).requires_grad_(), torch.randn(5, 3, 4, 4)
    norm = nn.BatchNorm2d(3)
    nn.init.uniform_(norm.weight)
    answer = norm(x)
    (answer * target).pow(2).sum().backward()
    found = []
    for status, text in fork_ranks(shared_norm, True, folder=tmp_path):
        assert status == 0, text
        found.append(eval(text.rpartition("found ")[2]))
    for mine, own in zip((slice(0, 2), slice(2, 5)), found):
        expected = (answer[mine], x.grad[mine], norm.weight.grad, norm.running_mean, norm.running_var)  # type: ignore[index]
        for ours, theirs in zip(own, expected):
            np.testing.assert_allclose(ours, theirs.detach().flatten().numpy(), atol=2e-4)  # type: ignore[union-attr]
