"""PFENet in float64, with plain loops, written from its description and not from the package.

Only layer weights, and the backbone's layer4, are taken from the modules under test. Maps are arrays (C, h, w); nothing
is batched. BAM's meta learner is built of the same parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Map = np.ndarray
SHARES = (1.0, 0.5, 0.25, 0.125)


def relu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.0)


def convolve(layer, x: Map) -> Map:
    """A convolution of stride 1 whose output has the size of its input: outside there are zeros."""
    weight, spacing = layer.weight.detach().numpy(), layer.dilation[0]
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().numpy()
    reach = weight.shape[2] // 2
    height, width = x.shape[1:]
    out = np.zeros((len(weight), height, width))
    for row in range(height):
        for column in range(width):
            out[:, row, column] = bias
            for down in range(-reach, reach + 1):
                for right in range(-reach, reach + 1):
                    y, z = row + down * spacing, column + right * spacing
                    if 0 <= y < height and 0 <= z < width:
                        out[:, row, column] += weight[:, :, down + reach, right + reach] @ x[:, y, z]
    return out


def bilinear(x: Map, size: tuple[int, int]) -> Map:
    """To another size, the corners kept."""

    def sources(small: int, large: int) -> list[tuple[int, int, float]]:
        found = []
        for place in range(large):
            where = place * (small - 1) / (large - 1) if large > 1 else 0.0
            low = min(int(where), small - 1)
            found.append((low, min(low + 1, small - 1), where - low))
        return found

    out = np.zeros((len(x), *size))
    for row, (top, bottom, down) in enumerate(sources(x.shape[1], size[0])):
        for column, (left, right, across) in enumerate(sources(x.shape[2], size[1])):
            upper = (1 - across) * x[:, top, left] + across * x[:, top, right]
            lower = (1 - across) * x[:, bottom, left] + across * x[:, bottom, right]
            out[:, row, column] = (1 - down) * upper + down * lower
    return out


def adaptive_mean(x: Map, size: tuple[int, int]) -> Map:
    """Means over areas that cover the map: area i of m begins at floor(i n / m) and ends at ceil((i + 1) n / m)."""
    height, width = x.shape[1:]
    out = np.zeros((len(x), *size))
    for row in range(size[0]):
        for column in range(size[1]):
            rows = range(row * height // size[0], math.ceil((row + 1) * height / size[0]))
            columns = range(column * width // size[1], math.ceil((column + 1) * width / size[1]))
            cells = [x[:, y, z] for y in rows for z in columns]
            out[:, row, column] = sum(cells) / len(cells)
    return out


def reduced(layers, layer2: Map, layer3: Map) -> Map:
    return relu(convolve(layers[0], np.concatenate((layer2, layer3))))


def weights(mask: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """The foreground (1) of a mask (H, W) at the size of the picture's cells, and none of it on padding."""
    return bilinear((mask == 1).astype(float)[None], picture.shape)[0] * picture


def prototype(features: Map, weight: np.ndarray) -> np.ndarray:
    total, area = np.zeros(len(features)), 0.0
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            total += features[:, row, column] * weight[row, column]
            area += weight[row, column]
    return total / (area + 5e-4)


def prior(query: Map, support: Map, weight: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Largest cosine with the support's foreground, scaled to [0, 1] by its range over the query's picture."""
    best = np.full(picture.shape, -np.inf)
    for row in range(picture.shape[0]):
        for column in range(picture.shape[1]):
            one = query[:, row, column]
            for y in range(weight.shape[0]):
                for x in range(weight.shape[1]):
                    if weight[y, x] > 0:
                        other = support[:, y, x]
                        cosine = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
                        best[row, column] = max(best[row, column], cosine)
    low, high = best[picture].min(), best[picture].max()
    return np.where(picture, (best - low) / (high - low + 1e-7), 0.0)


def residual(pair, x: Map) -> Map:
    return x + relu(convolve(pair.second, relu(convolve(pair.first, x))))


def classified(classifier, x: Map) -> Map:
    return convolve(classifier.second, relu(convolve(classifier.first, x)))


def enriched(module, query: Map, vector: np.ndarray, guide: np.ndarray) -> tuple[Map, list[Map]]:
    """The enriched features, and the logits of each side."""
    full = query.shape[1:]
    maps: list[Map] = []
    for number, share in enumerate(SHARES):
        size = tuple(max(1, round(side * share)) for side in full)
        everywhere = np.broadcast_to(vector[:, None, None], (len(vector), *size))
        merged = np.concatenate((adaptive_mean(query, size), everywhere, bilinear(guide[None], size)))
        merged = relu(convolve(module.merge[number][0], merged))
        if number > 0:
            both = np.concatenate((merged, bilinear(maps[-1], size)))
            merged = merged + relu(convolve(module.previous[number - 1][0], both))
        maps.append(residual(module.refine[number], merged))
    logits = [classified(classifier, x) for classifier, x in zip(module.classify, maps)]
    return relu(convolve(module.fuse[0], np.concatenate([bilinear(x, full) for x in maps]))), logits


def answer(
    model,
    layer4: Callable[[Map], Map],
    query: dict[str, Map],
    picture: np.ndarray,
    supports: list[tuple[dict[str, Map], np.ndarray, np.ndarray]],
) -> tuple[Map, list[Map]]:
    """The logits of the answer and of each side, of one episode.

    Args:
        layer4: the backbone's stage.
        query: the backbone's maps of the query.
        picture: (h, w), its cells that are picture.
        supports: of each shot the backbone's maps, the mask (H, W) and the cells that are picture.
    """
    vectors, guides = [], []
    for maps, mask, seen in supports:
        weight = weights(mask, seen)
        vectors.append(prototype(reduced(model.neck.support, maps["layer2"], maps["layer3"]), weight))
        guides.append(prior(query["layer4"], layer4(maps["layer3"] * weight), weight, picture))
    features = reduced(model.neck.query, query["layer2"], query["layer3"])
    vector, guide = sum(vectors) / len(vectors), sum(guides) / len(guides)
    features, logits = enriched(model.enrichment, features, vector, guide)
    return classified(model.classify, residual(model.refine, features)), logits
