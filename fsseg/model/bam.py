"""`method=bam`: a prototype network, and a frozen base learner that tells it what not to segment.

Lang, Cheng, Tu, Han, "Learning What Not to Segment: A New Perspective on Few-Shot Segmentation", CVPR 2022. The meta
learner is made of PFENet's parts (`fsseg.model.blocks.prototypes`). Backbone and base learner come from a cell of their
own (`fsseg.model.base_learner`, `backbone.base_training`). What it is, and where it differs from what is published:
docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from fsseg.data.folds import base_classes
from fsseg.data.types import Tasks
from fsseg.errors import UserError
from fsseg.model.backbones import Backbone, build_backbone
from fsseg.model.base import FewShotModel, Kept, Prediction, Role, cross_entropy, upsample
from fsseg.model.base_learner import PyramidHead
from fsseg.model.blocks.dropout import EpisodeDropout
from fsseg.model.blocks.exact import exact, wide
from fsseg.model.blocks.prototypes import MaskClassifier, PrototypeNeck, ResidualPair, guided, pointwise
from fsseg.model.blocks.tokens import from_map, picture_cells, unless_full
from fsseg.process.words import count

if TYPE_CHECKING:
    from fsseg.config.schema import BamConfig, Config

DILATIONS = (6, 12, 18)
"""Of the 3x3 convolutions of ASPP."""
_HIDDEN = 2  # width between the two layers that weigh the shots


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling, without norms.

        a_0 = relu(1x1(mean of x)), the same at every cell
        a_1 = relu(1x1(x))
        a_2, a_3, a_4 = relu(3x3(x)), dilated by 6, 12, 18
        out = relu(1x1(cat(a_0, ..., a_4)))

    The last convolution has no bias, the others do. A dilation that exceeds the map leaves the middle tap alone.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.everywhere, self.here = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.around = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation) for dilation in DILATIONS
        )
        self.fuse = pointwise((2 + len(DILATIONS)) * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        mean = self.everywhere(x.mean((2, 3), keepdim=True)).expand_as(x)
        parts = [mean, self.here(x), *(layer(x) for layer in self.around)]
        fused: Tensor = self.fuse(F.relu(torch.cat(parts, 1)))
        return fused


def gram_matrix(features: Tensor, picture: Tensor) -> Tensor:
    """Cosines of all pairs of channels, over the cells that are picture; 0 with a channel that is 0 everywhere.

    Args:
        features: (N, C, h, w).
        picture: (N, h, w) bool, on the host.

    Returns:
        (N, C, C), float32 or wider.
    """
    valid = unless_full(picture)
    if valid is not None:
        features = features * valid.to(features.device, non_blocking=True)[:, None]
    with exact(features):  # differences of these matrices are small
        channels = F.normalize(wide(features).flatten(2), dim=2)
        return channels @ channels.transpose(1, 2)


def style_difference(query: Tensor, supports: Tensor) -> Tensor:
    """psi: Frobenius norm of the difference of two Gram matrices, over that of a matrix of ones; 0 to 2.

    Args:
        query: (B, C, C).
        supports: (B, K, C, C).

    Returns:
        (B, K).
    """
    return torch.linalg.vector_norm(query[:, None] - supports, dim=(2, 3)) / query.shape[1]


class ShotWeights(nn.Module):
    """What each of K shots counts: softmax(linear(relu(linear(psi)))), psi sorted from the shot nearest in style on.

    So the order of the shots does not matter.
    """

    def __init__(self, shots: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(shots, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, shots))

    def forward(self, psi: Tensor) -> Tensor:
        """(B, K) -> (B, K); each row sums to 1."""
        ordered, order = psi.sort(dim=1, stable=True)
        with exact(psi):  # differences of psi are small, too
            weights = self.layers(ordered).softmax(1)
        return torch.empty_like(weights).scatter(1, order, weights)


class Ensemble(nn.Module):
    """Corrects the meta learner's background by the base classes.

        b, f   = softmax(meta)
        b', f' = w (b, psi), w (f, psi)             one 1x1 convolution for both, which starts as (1, 0)
        answer = v (b', sum of base classes), f'    another one, which starts likewise

    At the start the answer is softmax(meta). Nothing keeps it within 0 and 1 after that: it is taken for logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.adjust, self.merge = nn.Conv2d(2, 1, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)
        with torch.no_grad():
            for layer in (self.adjust, self.merge):
                layer.weight.copy_(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))

    def forward(self, meta: Tensor, psi: Tensor, base: Tensor) -> Tensor:
        """Logits of the meta learner (B, 2, h, w), psi (B,), base probabilities (B, 1, h, w) -> logits (B, 2, h, w)."""
        with exact(meta):  # a few products of numbers within 0 and 1
            background, foreground = wide(meta).softmax(1).split(1, 1)
            difference = psi[:, None, None, None].expand_as(background)
            background = self.adjust(torch.cat((background, difference), 1))
            foreground = self.adjust(torch.cat((foreground, difference), 1))
            return torch.cat((self.merge(torch.cat((background, wide(base)), 1)), foreground), 1)


@dataclass(frozen=True)
class BamRun:
    """What of a run BAM depends on beside its own settings.

    Attributes:
        base_classes: their ids, in the order of the base learner's labels.
        shots: K.
        seed: of the run, for the dropout.
    """

    base_classes: tuple[int, ...]
    shots: int = 1
    seed: int = 0


class Bam(FewShotModel):
    """Backbone, base learner's head (both frozen), meta learner, ensemble.

    An episode of a base class, in training and in base-class validation, leaves that class out of what the base learner
    finds. K shots: prototypes, priors and psi are means weighted by `ShotWeights`.
    """

    def __init__(self, backbone: Backbone, cfg: BamConfig, of_run: BamRun) -> None:
        super().__init__()
        self.backbone, self.of_run = backbone, of_run
        self.place = {class_id: place for place, class_id in enumerate(of_run.base_classes)}
        self.head = PyramidHead(backbone.channels["layer4"], len(of_run.base_classes) + 1).requires_grad_(False)
        backbone.check_layer4()
        self.neck = PrototypeNeck(backbone.channels, cfg.channels, cfg.dropout)
        self.merge, self.aspp = pointwise(2 * cfg.channels + 1, cfg.channels), Aspp(cfg.channels)
        self.refine, self.classify = ResidualPair(cfg.channels), MaskClassifier(cfg.channels)
        self.shot_weights = ShotWeights(of_run.shots) if of_run.shots > 1 else None
        self.ensemble = Ensemble()
        self.train()

    @classmethod
    def from_config(cls, cfg: Config) -> Bam:
        of_run = BamRun(base_classes(cfg.dataset, cfg.fold), cfg.shot, cfg.seed)
        return cls(build_backbone(cfg.backbone), cfg.model, of_run)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> Bam:
        super().train(mode)
        self.head.eval()  # its norms keep their statistics, and it drops nothing
        return self

    def start_from_base(self, learner: Mapping[str, Tensor]) -> None:
        """Take over a base learner whole: backbone and head."""
        super().start_from_base(learner)
        own = {name.removeprefix("head."): value for name, value in learner.items() if name.startswith("head.")}
        self.head.load_state_dict(own)

    def misfit(self, weights: Mapping[str, Tensor]) -> UserError | None:
        if "ensemble.merge.weight" not in weights:  # of another method
            return None
        first = weights.get("shot_weights.layers.0.weight")
        trained, shots = 1 if first is None else first.shape[1], self.of_run.shots
        if trained == shots:
            return None
        return UserError(
            f"was trained with {count(trained, 'shot')}, and shot={shots} weighs its shots by a layer of its own",
            f"set shot={trained}, or train with shot={shots}",
        )

    def encode(self, images: Tensor, pictures: Tensor, role: Role = "both") -> Kept:
        """See `PrototypeNeck.encode`; also `gram` (N, C2, C2) of layer2, and for queries `base` (N, h, w, base
        classes), the probability of each base class."""
        with record_function("fsseg: backbone"):
            features = self.backbone(images, "layer3" if role == "support" else "layer4")
        with record_function("fsseg: neck"):
            picture = picture_cells(pictures, (features["layer3"].shape[2], features["layer3"].shape[3]))
            kept = self.neck.encode(features, picture, role)
            kept["gram"] = gram_matrix(features["layer2"], picture)
        if role != "support":
            with record_function("fsseg: base learner"):
                kept["base"] = from_map(wide(self.head(features["layer4"])).softmax(1)[:, 1:])
        return kept

    def decode(self, supports: Sequence[Kept], query: Kept, tasks: Tasks) -> Prediction:
        """The answer, and in `hats` that of the meta learner alone."""
        drop = EpisodeDropout(tasks.specs, self.of_run.seed) if self.training else None
        with record_function("fsseg: neck"):
            guidance = self.neck(query, supports, tasks, self.backbone.layer4, drop)
            grams = torch.cat([kept["gram"] for kept in supports]).unflatten(0, (len(tasks), -1))
            psi = style_difference(query["gram"], grams)
            weights = torch.ones_like(psi) if self.shot_weights is None else self.shot_weights(psi)
        with record_function("fsseg: meta learner"):
            prototype = (weights[..., None] * guidance.prototypes).sum(1)
            prior = (weights[..., None, None] * guidance.priors).sum(1, keepdim=True)
            merged = self.merge(guided(guidance.query, prototype, prior))
            meta = self.classify(self.refine(self.aspp(merged)), drop)
        with record_function("fsseg: ensemble"):
            base = (query["base"] * self._counted(tasks, query["base"])).sum(3)[:, None]
            return Prediction([self.ensemble(meta, (weights * psi).sum(1), base)], tasks.size, [meta])

    def _counted(self, tasks: Tasks, like: Tensor) -> Tensor:
        """0 for the base class that an episode is of, else 1: (B, 1, 1, base classes), of the device and type of
        `like`."""
        counted = torch.ones(len(tasks), 1, 1, len(self.place))
        for b, spec in enumerate(tasks.specs):
            if spec.class_id in self.place:
                counted[b, ..., self.place[spec.class_id]] = 0
        return counted.to(like.device, like.dtype, non_blocking=True)

    def loss(self, prediction: Prediction, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """CE of the answer + CE of the meta learner.

        Args:
            prediction: what `forward` returned.
            target: (B, H, W) in {0, 1, 255}, from `training_target`; 255 counts nowhere.

        Returns:
            The loss, and its terms (detached) under the names `answer` and `meta`.
        """
        target = target.long()
        answer = cross_entropy(prediction.logits, target)
        meta = cross_entropy(upsample(prediction.hats[0], prediction.size), target)
        return answer + meta, {"answer": answer.detach(), "meta": meta.detach()}
