"""HSNet's steps in float64, with plain loops, written from the method's description and not from the package.

Only layer weights are taken from the modules under test. A 4D map is an array (C, h, w, h', w') of one sample.
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def _numbers(parameter) -> Array:
    return parameter.detach().double().numpy()


def _axis(size: int, place: int, places: int) -> tuple[int, int, float]:
    """The two cells that a point of a scaled axis lies between, corners aligned, and the share of the second."""
    at = place * (size - 1) / (places - 1) if places > 1 else 0.0
    low = min(math.floor(at), size - 1)
    return low, min(low + 1, size - 1), at - low


def resize(maps: Array, height: int, width: int) -> Array:
    """(C, h, w) -> (C, height, width): bilinear, corners aligned."""
    out = np.zeros((len(maps), height, width))
    for y in range(height):
        top, bottom, down = _axis(maps.shape[1], y, height)
        for x in range(width):
            left, right, across = _axis(maps.shape[2], x, width)
            above = maps[:, top, left] * (1 - across) + maps[:, top, right] * across
            below = maps[:, bottom, left] * (1 - across) + maps[:, bottom, right] * across
            out[:, y, x] = above * (1 - down) + below * down
    return out


def conv2d(layer, maps: Array) -> Array:
    """A convolution of stride 1 with zeros around, (C, h, w) -> (D, h, w)."""
    weight, bias = _numbers(layer.weight), _numbers(layer.bias)
    reach, (height, width) = weight.shape[2] // 2, maps.shape[1:]
    out = np.zeros((len(weight), height, width))
    for y in range(height):
        for x in range(width):
            out[:, y, x] = bias
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        out[:, y, x] += weight[:, :, reach + dy, reach + dx] @ maps[:, y + dy, x + dx]
    return out


def conv4d(layer, maps: Array) -> Array:
    """The 4D convolution whose kernel is zero but where the offset of the query, or that of the support, is zero."""
    of_query, of_support = _numbers(layer.over_query.weight), _numbers(layer.over_support.weight)
    bias = _numbers(layer.over_query.bias) + _numbers(layer.over_support.bias)
    reach, stride = of_query.shape[2] // 2, layer.stride
    _, height, width, rows, columns = maps.shape
    out = np.zeros((len(bias), height, width, -(-rows // stride), -(-columns // stride)))
    offsets = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    for y, x, v, u in np.ndindex(*out.shape[1:]):
        row, column = v * stride, u * stride
        out[:, y, x, v, u] = bias
        for dy, dx in offsets:
            if 0 <= y + dy < height and 0 <= x + dx < width:
                out[:, y, x, v, u] += of_query[:, :, reach + dy, reach + dx] @ maps[:, y + dy, x + dx, row, column]
            if 0 <= row + dy < rows and 0 <= column + dx < columns:
                out[:, y, x, v, u] += of_support[:, :, reach + dy, reach + dx] @ maps[:, y, x, row + dy, column + dx]
    return out


def group_norm(layer, maps: Array, groups: int = 4) -> Array:
    size = len(maps) // groups
    out = np.zeros_like(maps)
    for group in range(groups):
        own = maps[group * size : (group + 1) * size]
        mean = own.sum() / own.size
        variance = ((own - mean) ** 2).sum() / own.size
        out[group * size : (group + 1) * size] = (own - mean) / math.sqrt(variance + layer.eps)
    weight, bias = _numbers(layer.weight), _numbers(layer.bias)
    return np.stack([weight[c] * out[c] + bias[c] for c in range(len(maps))])


def blocks(layers, maps: Array) -> Array:
    """4D convolution, GroupNorm, ReLU, one after the other."""
    for convolution, norm, _ in layers:
        maps = np.maximum(group_norm(norm, conv4d(convolution, maps)), 0)
    return maps


def resize_query(maps: Array, height: int, width: int) -> Array:
    out = np.zeros((len(maps), height, width, *maps.shape[3:]))
    for v, u in np.ndindex(*maps.shape[3:]):
        out[:, :, :, v, u] = resize(maps[:, :, :, v, u], height, width)
    return out


def head(module, maps: dict[str, Array]) -> Array:
    """From layer4 to layer3 to layer2; the mean over the support; the decoder. Logits (2, 2 h, 2 w)."""
    mixed = blocks(module.squeeze["layer4"], maps["layer4"])
    for layer in ("layer3", "layer2"):
        own = blocks(module.squeeze[layer], maps[layer])
        mixed = blocks(module.mix[layer], own + resize_query(mixed, own.shape[1], own.shape[2]))
    cells = mixed.shape[3] * mixed.shape[4]
    flat = sum(mixed[:, :, :, v, u] for v, u in np.ndindex(*mixed.shape[3:])) / cells
    first, _, second, _ = module.decode_small
    small = np.maximum(conv2d(second, np.maximum(conv2d(first, flat), 0)), 0)
    third, _, last = module.decode_large
    large = resize(small, 2 * small.shape[1], 2 * small.shape[2])
    return conv2d(last, np.maximum(conv2d(third, large), 0))


def correlation(query: list[Array], support: list[Array], mask: Array) -> Array:
    """Features (C, h, w) of the blocks of a stage, and a mask (H, W) of 0 and 1 -> (L, h, w, h', w')."""
    height, width = query[0].shape[1:]
    rows, columns = support[0].shape[1:]
    share = resize(mask[None].astype(float), rows, columns)[0]
    out = np.zeros((len(query), height, width, rows, columns))
    for block, y, x, v, u in np.ndindex(*out.shape):
        asked, shown = query[block][:, y, x], support[block][:, v, u] * share[v, u]
        lengths = (math.sqrt(asked @ asked) + 1e-5) * (math.sqrt(shown @ shown) + 1e-5)
        out[block, y, x, v, u] = max(float(asked @ shown) / lengths, 0.0)
    return out


def votes(answers: list[Array]) -> list[list[bool]]:
    """Foreground of K shots' logits (2, H, W) at the size of the image."""
    height, width = answers[0].shape[1:]
    count = [[sum(int(p[1, y, x] > p[0, y, x]) for p in answers) for x in range(width)] for y in range(height)]
    most = max(1, max(max(row) for row in count))
    return [[number / most >= 0.5 for number in row] for row in count]
