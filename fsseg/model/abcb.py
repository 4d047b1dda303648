"""`method=abcb`: the baseline with support modulation (SM) and information cleansing (IC) in T rounds.

Zhu, Chen, Yin, See, Liu, "Addressing Background Context Bias in Few-Shot Segmentation through Iterative Modulation",
CVPR 2024. Exact shortcuts: what f_q alone gives (QP's share, SM's queries, IC's keys and values) is computed once for
all rounds, SM and IC do not run in round T, similarities are taken between the tokens concerned only, and of two linear
layers in a row the product is applied. `fsseg cost` prints what they save.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsseg.data.pixels import MEAN, STD
from fsseg.model.backbones import Backbone
from fsseg.model.base import Prediction
from fsseg.model.baseline import Baseline
from fsseg.model.blocks.attention import Attention, Keys, attend
from fsseg.model.blocks.exact import wide
from fsseg.model.blocks.histogram import normalised_cosine_histogram
from fsseg.model.blocks.tokens import Tokens, area_average, inside_and_outside, to_tokens

if TYPE_CHECKING:
    from fsseg.config.schema import AbcbConfig


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear layers with a ReLU between them."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


Layer = tuple[Tensor, Tensor, Tensor]
"""A linear layer of image and f_q side by side: weights of the image (D, 3) and of f_q (D, C), bias (D)."""


class PixelEvolution(nn.Module):
    """E_p: the query's foreground pixel by pixel, without context (the image) and with it (f_q).

    1x1 convolutions of the image at feature size and of f_q, concatenated, two-layer MLP of hidden width 2C. Nothing
    stands between the convolutions and the MLP's first layer, so their products are applied: the same sum, with fewer
    multiply-adds for each token.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.image = nn.Linear(3, channels)
        self.features = nn.Linear(channels, channels)
        self.mlp = mlp(2 * channels, 2 * channels, channels)

    def first_layer(self) -> Layer:
        """The MLP's first layer after the convolutions."""
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        of_image, of_features = first.weight.chunk(2, 1)
        bias = first.bias + of_image @ self.image.bias + of_features @ self.features.bias
        return of_image @ self.image.weight, of_features @ self.features.weight, bias

    def forward(self, image: Tensor, features: Tensor, layer: Layer) -> Tensor:
        """Tokens at predicted foreground, image (B, Nf, 3) and f_q (B, Nf, C), and `first_layer()` -> (B, Nf, C)."""
        of_image, of_features, bias = layer
        return self.mlp[1:](F.linear(features, of_features, bias) + F.linear(image, of_image))


class StructureEvolution(nn.Module):
    """E_s: how similar the foreground's tokens are to each other, without context (the image) and with it (f_q).

    Histograms of the two cosine-similarity matrices, normalised, concatenated, two-layer MLP of hidden width C.
    """

    def __init__(self, channels: int, bins: int, span: str, width: int = 1) -> None:
        super().__init__()
        self.bins, self.span, self.width = bins, span, width
        self.mlp = mlp(2 * bins, channels, channels)

    def forward(self, image: Tokens, features: Tokens) -> Tensor:
        """Tokens at predicted foreground, image (B, Nf, 3) and f_q (B, Nf, C) -> (B, C)."""
        histograms = [
            normalised_cosine_histogram(tokens, self.bins, self.span, self.width) for tokens in (image, features)
        ]
        return self.mlp(torch.cat(histograms, 1).to(features.values.dtype))


class SupportModulation(nn.Module):
    """SM: adapts the support's foreground to the query's background.

    E = E_p + E_s; Ctx = attention(Q = background of f_q, K = V = E); S_SM = S_QP + attention(Q = S_QP, K = V = Ctx).
    """

    def __init__(self, cfg: AbcbConfig) -> None:
        super().__init__()
        self.pixel = PixelEvolution(cfg.channels) if cfg.pixel_evolution else None
        self.structure = (
            StructureEvolution(cfg.channels, cfg.histogram_bins, cfg.histogram_range, cfg.histogram_width)
            if cfg.structure_evolution
            else None
        )
        self.context = Attention(cfg.channels, cfg.heads)
        self.modulate = Attention(cfg.channels, cfg.heads)

    def prepare(self, f_q: Tensor) -> tuple[Tensor, Layer | None]:
        """Once for all rounds: the queries to the context of f_q (B, n, C), likewise, and E_p's first layer."""
        return self.context.query(f_q), None if self.pixel is None else self.pixel.first_layer()

    def evolution(self, image: Tokens, features: Tokens, layer: Layer | None) -> Tensor:
        """E at the query's predicted foreground: (B, Nf, C); E_s is the same for all tokens of a sample."""
        e: Tensor | None = None
        if self.pixel is not None and layer is not None:
            e = self.pixel(image.values, features.values, layer)
        if self.structure is not None:
            same = self.structure(image, features)[:, None]
            e = same.expand(-1, features.values.shape[1], -1) if e is None else e + same
        assert e is not None
        return e

    def forward(self, s_qp: Tokens, image: Tokens, features: Tokens, background: Tokens, layer: Layer | None) -> Tensor:
        """One modulation.

        Args:
            s_qp: support foreground tokens (B, Ns, C).
            image: query image at feature size, where it is predicted foreground, (B, Nf, 3).
            features: f_q there, (B, Nf, C).
            background: queries from `prepare` where f_q is predicted background, (B, Nb, C).
            layer: from `prepare`.

        Returns:
            S_SM (B, Ns, C). A sample without foreground or without background gets arbitrary values, which
            `Abcb.rounds` replaces.
        """
        keys = self.context.project(self.evolution(image, features, layer), features.mask)
        context = attend(background.values, keys, self.context.heads)
        return s_qp.values + self.modulate(s_qp.values, context, background.mask)


class InformationCleansing(nn.Module):
    """IC: removes from S_SM what made the prediction less certain.

    N = softmax(Q K^T / sqrt(d) + V) V', Q from a two-layer MLP on cat(S_QP, S_SM), K and V' from f_q,
    V = H(P_hat) - H(P); S_IC = S_SM - linear(N). The paper's equation has no sqrt(d); `scaled=False` leaves it out.
    """

    def __init__(self, channels: int, heads: int, scaled: bool = True) -> None:
        super().__init__()
        self.scaled = scaled
        self.mlp = mlp(2 * channels, channels, channels)
        self.attention = Attention(channels, heads)
        self.linear = nn.Linear(channels, channels)

    def prepare(self, f_q: Tensor, valid: Tensor | None = None) -> Keys:
        """K and V', once for all rounds, of f_q (B, n, C) at the `valid` positions, (B, n) bool."""
        return self.attention.project(f_q, valid)

    def forward(self, s_qp: Tensor, s_sm: Tensor, keys: Keys, uncertainty: Tensor) -> Tensor:
        """S_QP and S_SM (B, Ns, C), `prepare(f_q)` and V (B, n) -> S_IC (B, Ns, C)."""
        query = self.attention.query(self.mlp(torch.cat((s_qp, s_sm), 2)))
        noise = attend(query, replace(keys, bias=uncertainty), self.attention.heads, self.scaled)
        return s_sm - self.linear(noise)


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the two-class distribution at each position: (B, 2, h, w) -> (B, h * w)."""
    log_p = F.log_softmax(wide(logits), 1)
    return -(log_p.exp() * log_p).sum(1).flatten(1)


class Abcb(Baseline):
    """The whole method. With `modulation=false` it is the baseline, whatever `iterations` says."""

    def __init__(self, backbone: Backbone, cfg: AbcbConfig) -> None:
        super().__init__(backbone, cfg)
        self.loss_weight = cfg.loss_weight
        self.iterations = cfg.iterations if cfg.modulation else 1
        self.sm = SupportModulation(cfg) if cfg.modulation else None
        self.ic = (
            InformationCleansing(cfg.channels, cfg.heads, cfg.cleansing_scaled)
            if cfg.cleansing and cfg.modulation
            else None
        )
        self.rgb = cfg.evolution_image == "rgb"

    def rounds(self, s_qp: Tokens, f_q: Tensor, query_image: Tensor, picture: Tensor | None = None) -> Prediction:
        """T rounds of QP, SM, IC with shared weights.

        The answer is P of round T. SM and IC do not run in round T, as nothing uses their output. A sample without
        predicted foreground, or without predicted background, has S_SM = S_QP in that round. Without IC the next
        round's P is QP(S_SM) itself, so there is no P_hat then. Padding of the query is neither foreground nor
        background, and IC ignores it.
        """
        tokens, prepared = to_tokens(f_q), self.qp.prepare(f_q)
        valid = None if picture is None else picture.flatten(1)
        image = to_tokens(area_average(query_image, (f_q.shape[2], f_q.shape[3]))).to(f_q.dtype)
        if self.rgb:
            image = image * image.new_tensor(STD) + image.new_tensor(MEAN)
        asked, layer = self.sm.prepare(tokens) if self.sm is not None and self.iterations > 1 else (tokens, None)
        keys = self.ic.prepare(tokens, valid) if self.ic is not None and self.iterations > 1 else None
        result = Prediction([], (query_image.shape[-2], query_image.shape[-1]), query_features=f_q)
        for t in range(1, self.iterations + 1):
            mean = s_qp.mean()
            p = self.qp(mean, prepared)
            result.rounds.append(p)
            if t == self.iterations or self.sm is None:
                result.support_foreground = mean
                break
            inside, outside = inside_and_outside((p[:, 1] > p[:, 0]).flatten(1), valid)
            active = (inside.valid.any(1) & outside.valid.any(1))[:, None, None]
            modulated = self.sm(s_qp, inside.gather(image), inside.gather(tokens), outside.gather(asked), layer)
            s_sm = s_qp.with_values(torch.where(active, modulated, s_qp.values))
            if self.ic is not None and keys is not None:
                p_hat = self.qp(s_sm.mean(), prepared)
                result.hats.append(p_hat)
                rise = entropy(p_hat) - entropy(p)
                s_sm = s_qp.with_values(self.ic(s_qp.values, s_sm.values, keys, rise))
            s_qp = s_sm
        return result
