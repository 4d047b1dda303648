"""ABCB's steps in float64, with plain loops, written from the paper's equations and not from the package.

Only layer weights are taken from the modules under test. Tokens are lists of vectors; nothing is padded or batched.
"""

from __future__ import annotations

import math

import numpy as np

Vector = np.ndarray


def linear(layer, x: Vector) -> Vector:
    """A linear layer, or a 1x1 convolution at one position."""
    weight = layer.weight.detach().numpy().reshape(layer.weight.shape[0], -1)
    return np.array([sum(w * v for w, v in zip(row, x)) for row in weight]) + layer.bias.detach().numpy()


def relu(x: Vector) -> Vector:
    return np.array([max(v, 0.0) for v in x])


def two_layers(first, second, x: Vector) -> Vector:
    return linear(second, relu(linear(first, x)))


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    return [w / sum(weights) for w in weights]


def attention(
    module, queries: list[Vector], keys: list[Vector], bias: list[float] | None = None, scaled: bool = True
) -> list[Vector]:
    """softmax(Q K^T / sqrt(d) + bias) V, head by head; the paper's equation of IC shows no sqrt(d): `scaled`."""
    q = [linear(module.query, x) for x in queries]
    k = [linear(module.key, x) for x in keys]
    v = [linear(module.value, x) for x in keys]
    depth = len(q[0]) // module.heads
    out = []
    for one in q:
        parts = []
        for head in range(module.heads):
            part = slice(head * depth, (head + 1) * depth)
            scores = [float(one[part] @ other[part]) / (math.sqrt(depth) if scaled else 1) for other in k]
            if bias is not None:
                scores = [s + b for s, b in zip(scores, bias)]
            parts.append(sum(w * value[part] for w, value in zip(softmax(scores), v)))
        out.append(np.concatenate(parts))
    return out


def mean(tokens: list[Vector]) -> Vector:
    return sum(tokens) / len(tokens)


def query_prediction(qp, tokens: list[Vector], f_q: list[Vector]) -> list[Vector]:
    """P = phi_p(cat(mean(S_QP), f_q)): two logits for each position."""
    average = mean(tokens)
    return [two_layers(qp.first, qp.second, np.concatenate((average, x))) for x in f_q]


def cosine(a: Vector, b: Vector) -> float:
    length = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / length if length > 0 else 0.0


def histogram(tokens: list[Vector], bins: int, low: float, high: float, reach: int = 1) -> Vector:
    """Dense form: every pair's weight in every bin, and in the bins mirrored beyond either end."""
    width = (high - low) / (bins - 1)
    counts = np.zeros(bins)
    for a in tokens:
        for b in tokens:
            value = min(max(cosine(a, b), low), high)
            for number in range(-bins, 2 * bins):
                home = -1 - number if number < 0 else 2 * bins - 1 - number if number >= bins else number
                counts[home] += max(0.0, 1 - abs(value - (low + number * width)) / (reach * width)) / reach
    return counts


def pixel_evolution(module, image: list[Vector], features: list[Vector]) -> list[Vector]:
    return [
        two_layers(module.mlp[0], module.mlp[2], np.concatenate((linear(module.image, i), linear(module.features, f))))
        for i, f in zip(image, features)
    ]


def structure_evolution(module, image: list[Vector], features: list[Vector]) -> Vector:
    low, high = (0.0, 1.0) if module.span == "zero_one" else (-1.0, 1.0)
    parts = []
    for tokens in (image, features):
        counts = histogram(tokens, module.bins, low, high, module.width)
        parts.append(counts / counts.sum())
    return two_layers(module.mlp[0], module.mlp[2], np.concatenate(parts))


def support_modulation(
    sm, s_qp: list[Vector], image: list[Vector], f_q: list[Vector], foreground: list[bool]
) -> list[Vector]:
    image_tokens = [x for x, inside in zip(image, foreground) if inside]
    feature_tokens = [x for x, inside in zip(f_q, foreground) if inside]
    background = [x for x, inside in zip(f_q, foreground) if not inside]
    if not feature_tokens or not background:
        return s_qp
    evolved = [np.zeros(len(f_q[0])) for _ in feature_tokens]
    if sm.pixel is not None:
        evolved = [e + p for e, p in zip(evolved, pixel_evolution(sm.pixel, image_tokens, feature_tokens))]
    if sm.structure is not None:
        same = structure_evolution(sm.structure, image_tokens, feature_tokens)
        evolved = [e + same for e in evolved]
    context = attention(sm.context, background, evolved)
    return [s + a for s, a in zip(s_qp, attention(sm.modulate, s_qp, context))]


def entropy(logits: Vector) -> float:
    return -sum(p * math.log(p) for p in softmax(list(logits)) if p > 0)


class _Query:
    """Lets `attention` project Q from another input than the raw tokens; same layers."""

    def __init__(self, module) -> None:
        self.query, self.key, self.value, self.heads = module.query, module.key, module.value, module.heads


def information_cleansing(
    ic, s_qp: list[Vector], s_sm: list[Vector], f_q: list[Vector], rise: list[float]
) -> list[Vector]:
    queries = [two_layers(ic.mlp[0], ic.mlp[2], np.concatenate(pair)) for pair in zip(s_qp, s_sm)]
    noise = attention(_Query(ic.attention), queries, f_q, rise, ic.scaled)
    return [s - linear(ic.linear, x) for s, x in zip(s_sm, noise)]


def rounds(
    model,
    s_qp: list[Vector],
    f_q: list[Vector],
    image: list[Vector],
    iterations: int,
    picture: list[bool] | None = None,
):
    """P_1..P_T, P_hat_1..P_hat_{T-1} (lists of two logits per position) and mean(S_QP) of round T.

    SM and IC see only the positions of `picture`; the rest is padding.
    """
    seen = [place for place in range(len(f_q)) if picture is None or picture[place]]

    def cut(values: list) -> list:
        return [values[place] for place in seen]

    answers, hats = [], []
    for t in range(1, iterations + 1):
        p = query_prediction(model.qp, s_qp, f_q)
        answers.append(p)
        if t == iterations:
            return answers, hats, mean(s_qp)
        foreground = [bool(two[1] > two[0]) for two in p]
        s_sm = support_modulation(model.sm, s_qp, cut(image), cut(f_q), cut(foreground))
        if model.ic is None:
            s_qp = s_sm
            continue
        p_hat = query_prediction(model.qp, s_sm, f_q)
        hats.append(p_hat)
        rise = [entropy(after) - entropy(before) for after, before in zip(p_hat, p)]
        s_qp = information_cleansing(model.ic, s_qp, s_sm, cut(f_q), cut(rise))
    raise AssertionError


def area_average(image: np.ndarray, cells: int) -> np.ndarray:
    """(channels, side, side) -> (channels, cells, cells): mean over the stride + 1 pixels around pixel stride * i."""
    side = image.shape[-1]
    stride = (side - 1) // (cells - 1)
    reach = stride // 2
    out = np.zeros((image.shape[0], cells, cells))
    for y in range(cells):
        for x in range(cells):
            top, left = max(0, y * stride - reach), max(0, x * stride - reach)
            area = image[:, top : y * stride + reach + 1, left : x * stride + reach + 1]
            out[:, y, x] = area.reshape(len(image), -1).mean(1)
    return out
