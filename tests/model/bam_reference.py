"""BAM in float64, with plain loops, written from its description and not from the package.

Only layer weights, the backbone's layer4 and the base learner's head are taken from the modules under test; the head
has a reference of its own in `test_base_learner`. What BAM shares with PFENet is in `pfenet_reference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pfenet_reference as pfenet
from pfenet_reference import Map, convolve, relu


def softmax(values: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    powers = np.exp(values - values.max(0))
    return powers / powers.sum(0)


def aspp(module, x: Map) -> Map:
    height, width = x.shape[1:]
    mean = sum(x[:, row, column] for row in range(height) for column in range(width)) / (height * width)
    single = relu(convolve(module.everywhere, mean[:, None, None]))
    parts = [np.broadcast_to(single, x.shape), relu(convolve(module.here, x))]
    for layer, dilation in zip(module.around, (6, 12, 18), strict=True):
        assert layer.dilation == (dilation, dilation)
        parts.append(relu(convolve(layer, x)))
    return relu(convolve(module.fuse[0], np.concatenate(parts)))


def gram(features: Map, picture: np.ndarray) -> np.ndarray:
    """Cosine of each channel with each other, over the cells of the picture."""
    rows = [np.array([channel[place] for place in zip(*np.nonzero(picture))]) for channel in features]
    out = np.zeros((len(rows), len(rows)))
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            lengths = math.sqrt((one @ one) * (other @ other))
            out[i, j] = one @ other / lengths if lengths else 0.0
    return out


def psi(query: np.ndarray, support: np.ndarray) -> float:
    total = ones = 0.0
    for mine, other in zip(query.ravel(), support.ravel(), strict=True):
        total += (mine - other) ** 2
        ones += 1.0
    return math.sqrt(total) / math.sqrt(ones)


def shot_weights(module, differences: list[float]) -> list[float]:
    """One for each shot, in the order given."""
    order = sorted(range(len(differences)), key=lambda shot: differences[shot])
    first, second = module.layers[0], module.layers[2]
    hidden = [
        max(0.0, sum(w * differences[shot] for w, shot in zip(row, order)) + bias)
        for row, bias in zip(first.weight.tolist(), first.bias.tolist(), strict=True)
    ]
    scores = [
        sum(w * value for w, value in zip(row, hidden)) + bias
        for row, bias in zip(second.weight.tolist(), second.bias.tolist(), strict=True)
    ]
    powers = [math.exp(score) for score in scores]
    found = [0.0] * len(order)
    for place, shot in enumerate(order):
        found[shot] = powers[place] / sum(powers)
    return found


def ensemble(module, meta: Map, difference: float, base: np.ndarray) -> Map:
    """Logits of the meta learner (2, h, w) and the sum of base probabilities (h, w) -> the answer (2, h, w)."""
    (of_map, of_psi), (of_background, of_base) = module.adjust.weight.flatten(), module.merge.weight.flatten()
    background, foreground = softmax(meta)
    background = of_map.item() * background + of_psi.item() * difference
    foreground = of_map.item() * foreground + of_psi.item() * difference
    return np.stack((of_background.item() * background + of_base.item() * base, foreground))


def answer(
    model,
    own_label: int | None,
    modules: tuple[Callable[[Map], Map], Callable[[Map], Map]],
    query: tuple[dict[str, Map], np.ndarray],
    supports: list[tuple[dict[str, Map], np.ndarray, np.ndarray]],
) -> tuple[Map, Map]:
    """The answer, and the logits of the meta learner, of one episode.

    Args:
        own_label: of the base learner for the episode's class, from 1 on; None of a novel class.
        modules: the backbone's layer4, and the base learner's head.
        query: the backbone's maps, and the cells that are picture.
        supports: of each shot the backbone's maps, the mask (H, W) and the cells that are picture.
    """
    (layer4, head), (maps, picture) = modules, query
    own = gram(maps["layer2"], picture)
    vectors, guides, differences = [], [], []
    for found, mask, seen in supports:
        weight = pfenet.weights(mask, seen)
        vectors.append(pfenet.prototype(pfenet.reduced(model.neck.support, found["layer2"], found["layer3"]), weight))
        guides.append(pfenet.prior(maps["layer4"], layer4(found["layer3"] * weight), weight, picture))
        differences.append(psi(own, gram(found["layer2"], seen)))
    shares = [1.0] if len(supports) == 1 else shot_weights(model.shot_weights, differences)
    vector = sum(share * one for share, one in zip(shares, vectors))
    guide = sum(share * one for share, one in zip(shares, guides))
    features = pfenet.reduced(model.neck.query, maps["layer2"], maps["layer3"])
    everywhere = np.broadcast_to(vector[:, None, None], features.shape)
    merged = relu(convolve(model.merge[0], np.concatenate((features, everywhere, guide[None]))))
    meta = pfenet.classified(model.classify, pfenet.residual(model.refine, aspp(model.aspp, merged)))
    base = np.zeros(picture.shape)
    for label, probability in enumerate(softmax(head(maps["layer4"]))):
        if label not in (0, own_label):
            base += probability
    difference = sum(share * one for share, one in zip(shares, differences))
    return ensemble(model.ensemble, meta, difference, base), meta
