"""What a model costs: parameters and multiply-adds (MACs) of each part, our form and the paper's, and its figures.

`fsseg cost` prints it. MACs are half of what torch's own `FlopCounterMode` counts, on fake tensors: nothing is
computed for an image, and no weights are loaded. How many tokens there are depends on the images; `share` sets it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fsseg.data.types import EpisodeSpec, Tasks
from fsseg.model import FewShotModel, method_class
from fsseg.model.abcb import Abcb, InformationCleansing, SupportModulation
from fsseg.model.backbones import Features, build_backbone
from fsseg.model.base_learner import BaseLearner, number_of_base_classes
from fsseg.model.baseline import Baseline, QueryPrediction
from fsseg.model.blocks.attention import Keys
from fsseg.model.blocks.neck import CorrelationNeck, pool, prior_map
from fsseg.model.blocks.tokens import Tokens, to_tokens
from fsseg.process.tables import aligned

if TYPE_CHECKING:
    from fsseg.config.schema import Config

OBJECT_SHARE = 0.16
"""Foreground share of a map, support and prediction alike: the mean over PASCAL's objects of at least 2048 pixels, in
the image padded to a square (0.161 on every fifth of VOC's and SBD's masks). The paper does not say what its own count
assumed. With this share and one QP a round the dense form gives the paper's slope of 15.6 GMACs to 2 %; with two QPs a
round (P and P_hat) a share of 0.11 would. The row for T = 1 is one slope above the baseline, which has its own QP, and
so is each further row above the one before. This suggests one QP a round."""

PAPER_SETTING = ("resnet50", 473, 1)
PAPER_PARAMETERS = {"baseline": 27.6, "full": 33.5, "QP": 0.6, "SM": 3.9, "IC": 2.0}
PAPER_GMACS = {"baseline": 210.3, "one more round": 15.6, 1: 225.8, 2: 241.3, 3: 257.0, 4: 272.7, 5: 288.2}
"""Tables 3 and 5 of the paper (ResNet-50, 473 px, 1 shot); parameters in millions."""


@dataclass(frozen=True)
class CostRow:
    """One line of the table.

    Attributes:
        part: what is counted.
        parameters: number of parameters; None for a sum over rounds, which share theirs.
        macs: multiply-adds of the code as it runs, one episode, forward.
        dense_macs: the same in the paper's dense form: similarity with every support position, all of phi_p and of IC's
            projections again in each round, both triangles of E_s's similarities, SM and IC in round T as well.
        paper_parameters: the paper's, in millions.
        paper_gmacs: the paper's, in 1e9.
    """

    part: str
    parameters: int | None
    macs: int
    dense_macs: int
    paper_parameters: float | None = None
    paper_gmacs: float | None = None


def cost(cfg: Config, share: float = OBJECT_SHARE) -> list[CostRow]:
    """Count the parts of a method at `cfg`'s backbone, image size and shots.

    Args:
        cfg: a whole configuration; weights are not needed.
        share: foreground share of the support's and the predicted map.

    Returns:
        Rows from the parts to the sums. The paper's figures stand only beside its own setting (`PAPER_SETTING`).
    """
    cfg = copy.deepcopy(cfg)
    cfg.backbone.pretrained, cfg.backbone.weights = False, None
    method: Any = method_class(cfg.model.name)
    if not issubclass(method, (Baseline, BaseLearner)):
        return _halves(method, cfg, share)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with nullcontext() if _looks_at_numbers(cfg) else fake:
        backbone = build_backbone(cfg.backbone)
    with fake, sdpa_kernel(SDPBackend.MATH):  # this form of attention has countable matrix products
        if method is BaseLearner:
            return _base_learner_rows(BaseLearner(backbone, number_of_base_classes(cfg)).eval(), cfg.dataset.image_size)
        model = method(backbone, cfg.model).requires_grad_(False)
        side, shots = cfg.dataset.image_size, cfg.shot
        features = backbone(torch.empty(1 + shots, 3, side, side))
        both = _macs(lambda: backbone(torch.empty(1 + shots, 3, side, side)))
        rows = [CostRow(f"backbone, {1 + shots} images", _parameters(backbone), both, both)]
        rows += _method_rows(model, _Scene.of(features, model, shots, share), both)
    paper = (cfg.backbone.name, side, shots) == PAPER_SETTING
    return [_beside_paper(row) for row in rows] if paper else rows


def _base_learner_rows(model: BaseLearner, side: int) -> list[CostRow]:
    """Of one image: a base learner has no episodes."""
    image = torch.empty(1, 3, side, side)
    features = model.backbone(image)["layer4"]
    macs = [_macs(lambda: model.backbone(image)), _macs(lambda: model.head(features))]
    names = [("backbone, 1 image", model.backbone), ("head", model.head)]
    return [CostRow(name, _parameters(part), n, n) for (name, part), n in zip(names, macs)]


@dataclass
class _Scene:
    """Stand-ins for the tensors between the parts, with the token counts of a typical episode."""

    support: Features
    query: Features
    f_q: Tensor  # (1, C, h, w)
    image: Tensor  # (1, n, 3)
    shots: int
    num_foreground: int

    @classmethod
    def of(cls, features: Features, model: Baseline, shots: int, share: float) -> _Scene:
        height, width = features["layer2"].shape[2:]
        size = height * width
        return cls(
            support={name: x[:shots] for name, x in features.items()},
            query={name: x[shots:] for name, x in features.items()},
            f_q=torch.empty(1, model.qp.second.in_channels, height, width),
            image=torch.empty(1, size, 3),
            shots=shots,
            num_foreground=max(1, min(size - 1, round(share * size))),
        )


def _method_rows(model: Baseline, scene: _Scene, backbone: int) -> list[CostRow]:
    neck, neck_dense = _neck(model.neck, scene), _neck_dense(model.neck, scene)
    qp_once, qp_each, qp_dense = _query_prediction(model.qp, scene)
    base, base_dense = backbone + neck + qp_once + qp_each, backbone + neck_dense + qp_dense
    rows = [
        CostRow("neck", _parameters(model.neck), neck, neck_dense),
        CostRow("QP", _parameters(model.qp), qp_once + qp_each, qp_dense),
    ]
    base_parameters = _parameters(model.backbone) + _parameters(model.neck) + _parameters(model.qp)
    total = CostRow("baseline", base_parameters, base, base_dense)
    if not isinstance(model, Abcb) or model.sm is None:
        return [*rows, total]

    (sm_once, sm_each), sm_dense = _modulation(model.sm, scene), _modulation_dense(model.sm, scene)
    rows.append(CostRow("SM", _parameters(model.sm), sm_once + sm_each, sm_dense))
    ic_once = ic_each = ic_dense = 0
    if model.ic is not None:
        ic_once, ic_each = _cleansing(model.ic, scene)
        ic_dense = ic_once + ic_each
        rows.append(CostRow("IC", _parameters(model.ic), ic_once + ic_each, ic_dense))
    predictions = 2 if model.ic is not None else 1
    more, more_dense = sm_each + ic_each + predictions * qp_each, sm_dense + ic_dense + qp_dense
    rows += [total, CostRow("one more round", None, more, more_dense)]
    for t in range(1, max(5, model.iterations) + 1):
        ours = base + (t - 1) * more + (sm_once + ic_once if t > 1 else 0)
        parameters = _parameters(model) if t == model.iterations else None
        rows.append(CostRow(f"T = {t}", parameters, ours, base_dense + t * more_dense))
    return rows


def _beside_paper(row: CostRow) -> CostRow:
    rounds = int(row.part.removeprefix("T = ")) if row.part.startswith("T = ") else None
    parameters = PAPER_PARAMETERS.get("full" if rounds and row.parameters else row.part)
    gmacs = PAPER_GMACS.get(rounds or row.part)
    return CostRow(row.part, row.parameters, row.macs, row.dense_macs, parameters, gmacs)


def _looks_at_numbers(cfg: Config) -> bool:
    """Whether building the backbone reads numbers, so that shapes alone do not do: timm's models."""
    return hasattr(cfg.backbone, "model")


def _halves(method: type[FewShotModel], cfg: Config, share: float) -> list[CostRow]:
    """A method whose parts are not known here: `encode` of all images, `decode`, and the sum, which bears its name.

    Its tensors have shapes alone (torch's device `meta`); masks lie on the host, as in a run. The parameters beside
    `encode` are the backbone's.
    """
    side, shots = cfg.dataset.image_size, cfg.shot
    with torch.device("cpu" if _looks_at_numbers(cfg) else "meta"):
        model: Any = method.from_config(cfg).eval().requires_grad_(False).to("meta")
    images = torch.empty(1 + shots, 3, side, side, device="meta")
    pictures = torch.ones(1 + shots, side, side, dtype=torch.bool)
    masks = torch.zeros(1, shots, side, side, dtype=torch.uint8)
    masks[..., : max(1, round(share * side)), :] = 1
    tasks = Tasks(masks, masks[:, 0], [EpisodeSpec(0, 0, "query", ("support",) * shots)], [(side, side)], [None])
    kept = []

    def encode() -> None:
        kept.append(model.encode(images[:shots], pictures[:shots], "support"))
        kept.append(model.encode(images[shots:], pictures[shots:], "query"))

    with sdpa_kernel(SDPBackend.MATH):
        for_images = _macs(encode)
        for_episode = _macs(lambda: model.decode(kept[:1], kept[1], tasks))
    backbone, total = _parameters(model.backbone), _parameters(model)
    return [
        CostRow(f"encode, {1 + shots} images", backbone, for_images, for_images),
        CostRow("decode", total - backbone, for_episode, for_episode),
        CostRow(cfg.model.name, total, for_images + for_episode, for_images + for_episode),
    ]


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _macs(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def _tokens(count: int, channels: int, batch: int = 1) -> Tokens:
    return Tokens(torch.empty(batch, count, channels), torch.ones(batch, count, dtype=torch.bool), [count] * batch)


def _neck(neck: CorrelationNeck, scene: _Scene) -> int:
    """As it runs: what depends on one image alone, then what depends on the episode."""
    height, width = scene.f_q.shape[2:]
    channels, layer4 = scene.f_q.shape[1], scene.support["layer4"].shape[1]
    pooled = _tokens(-(-scene.num_foreground // neck.pool**2), channels, scene.shots)
    shots = _FakeShots(_tokens(scene.shots * scene.num_foreground, layer4), pooled, scene)

    def run() -> None:
        neck.encode(scene.support, role="support")
        neck(neck.encode(scene.query, role="query"), shots)

    assert height * width == scene.image.shape[1]
    return _macs(run)


class _FakeShots:
    """What the neck asks of `Shots`, for a typical number of foreground cells; there is no mask on fake tensors."""

    def __init__(self, layer4: Tokens, pooled: Tokens, scene: _Scene) -> None:
        self.masks = torch.empty(1, scene.shots, *scene.f_q.shape[2:], dtype=torch.bool)
        self.counts = [[scene.num_foreground] * scene.shots]
        self._layer4, self._pooled = layer4, pooled

    def tokens(self, _: str) -> Tokens:
        return self._layer4

    def each(self, _: Callable[..., Tokens]) -> Tokens:
        return self._pooled


def _neck_dense(neck: CorrelationNeck, scene: _Scene) -> int:
    """Masks applied to full matrices instead of leaving columns out, and nothing shared by the shots."""
    maps = scene.f_q.expand(scene.shots, -1, -1, -1)
    channels, size = maps.shape[1], maps[0, 0].numel()
    layer4 = scene.query["layer4"].shape[1]

    def run() -> None:
        neck.embed(scene.support)
        neck.embed(scene.query)
        parts = [maps]
        if neck.cross_attention is not None:
            pooled = pool(maps, neck.pool)
            tokens = torch.empty(scene.shots, -(-size // neck.pool**2), channels)
            neck.cross_attention(to_tokens(pooled), tokens)
            parts.append(maps)
        if neck.use_prior:
            full = _tokens(size, layer4, scene.shots)
            query = torch.empty(scene.shots, *maps.shape[2:], layer4)
            parts.append(prior_map(query, full, [[size]] * scene.shots))
        neck.ffn(neck.merge(torch.cat(parts, 1)))
        neck.refine(maps)

    return _macs(run)


def _query_prediction(qp: QueryPrediction, scene: _Scene) -> tuple[int, int, int]:
    """Once for all rounds, once a prediction, and dense."""
    mean = torch.empty(1, scene.f_q.shape[1])

    def dense() -> None:
        qp.second(F.relu(qp.first(torch.cat((mean[:, :, None, None].expand_as(scene.f_q), scene.f_q), 1))))

    return _macs(lambda: qp.prepare(scene.f_q)), _macs(lambda: qp(mean, torch.empty_like(scene.f_q))), _macs(dense)


def _modulation(sm: SupportModulation, scene: _Scene) -> tuple[int, int]:
    """Once for all rounds, and once a round."""
    channels, size, inside = scene.f_q.shape[1], scene.image.shape[1], scene.num_foreground
    support = _tokens(scene.shots * inside, channels)
    background = _tokens(size - inside, channels)
    once = _macs(lambda: sm.prepare(to_tokens(scene.f_q)))
    layer = sm.prepare(to_tokens(scene.f_q))[1]
    return once, _macs(lambda: sm(support, _tokens(inside, 3), _tokens(inside, channels), background, layer))


def _modulation_dense(sm: SupportModulation, scene: _Scene) -> int:
    """Convolutions on whole maps, all ordered pairs of the similarity matrices."""
    f_q, inside = to_tokens(scene.f_q), scene.num_foreground

    def run() -> None:
        if sm.pixel is not None:
            image, features = sm.pixel.image(scene.image), sm.pixel.features(f_q)
            sm.pixel.mlp(torch.cat((image[:, :inside], features[:, :inside]), 2))
        if sm.structure is not None:
            for maps in (scene.image, f_q):
                tokens = maps[:, :inside]
                tokens @ tokens.transpose(1, 2)
            sm.structure.mlp(torch.empty(1, 2 * sm.structure.bins))
        context = sm.context(f_q[:, inside:], torch.empty(1, inside, f_q.shape[2]))
        sm.modulate(torch.empty(1, scene.shots * inside, f_q.shape[2]), context)

    return _macs(run)


def _cleansing(ic: InformationCleansing, scene: _Scene) -> tuple[int, int]:
    """Once for all rounds, and once a round."""
    f_q = to_tokens(scene.f_q)
    support = torch.empty(1, scene.shots * scene.num_foreground, f_q.shape[2])
    keys = Keys(torch.empty_like(f_q), torch.empty_like(f_q))
    rise = torch.empty(1, f_q.shape[1])
    return _macs(lambda: ic.prepare(f_q)), _macs(lambda: ic(support, support, keys, rise))


def format_cost(rows: list[CostRow]) -> str:
    """The rows as a plain text table: parameters in millions, GMACs."""

    def number(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
        return "" if value is None else f"{value / scale:.{digits}f}"

    head = ("", "parameters M", "paper M", "GMACs", "GMACs dense", "paper GMACs")
    table = [
        (
            row.part,
            number(row.parameters, 1e6, 2),
            number(row.paper_parameters),
            number(row.macs, 1e9),
            number(row.dense_macs, 1e9),
            number(row.paper_gmacs),
        )
        for row in rows
    ]
    return aligned([head, *table])
