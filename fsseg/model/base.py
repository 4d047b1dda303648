"""The interface of every method: `FewShotModel`, which turns a `Batch` into a `Prediction` and a loss.

The engine trains and evaluates through this interface only; each method has its own file
(`fsseg.model.method_class` finds it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsseg.data.source import IGNORE_INDEX
from fsseg.data.types import Batch, Tasks
from fsseg.data.visits import Role as Role  # for all that import it from here
from fsseg.errors import UserError
from fsseg.model.blocks.exact import wide

if TYPE_CHECKING:
    from fsseg.config.schema import Config


Kept = dict[str, Tensor]
"""What a method keeps of N images, by name: tensors (N, ...) that depend on nothing but the image each is of."""


@dataclass
class Prediction:
    """What a model predicts for the queries of a batch; channel 0 is background, channel 1 foreground.

    Attributes:
        rounds: logits P_1..P_T at feature size, (B, 2, h, w) each; the last is the answer.
        hats: logits that are no answer and stand in the loss only: P_hat_1..P_hat_{T-1} after support modulation (ABCB,
            equation of information cleansing), those of PFENet's sides, or those of BAM's meta learner; (B, 2, ...) of
            any size; often empty.
        size: (H, W) of the images.
        support_foreground: (B, C) mean support foreground feature that the last round used (Figure 5 of the paper).
        query_features: (B, C, h, w) features f_q that the last round used (Figure 5 of the paper).
        patches: what the cells of the logits are, see `Backbone.patches`.
    """

    rounds: list[Tensor]
    size: tuple[int, int]
    hats: list[Tensor] = field(default_factory=list)
    support_foreground: Tensor | None = None
    query_features: Tensor | None = None
    patches: bool = False

    @property
    def logits(self) -> Tensor:
        """The answer at image size, (B, 2, H, W)."""
        return self.logits_of_round(len(self.rounds))

    def mean_of(self, count: int) -> Prediction:
        """The mean over each `count` neighbouring samples of the batch: (B * count, ...) -> (B, ...)."""

        def mean(x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, count)).mean(1)

        support, query = (None if x is None else mean(x) for x in (self.support_foreground, self.query_features))
        rounds, hats = [mean(p) for p in self.rounds], [mean(p) for p in self.hats]
        return Prediction(rounds, self.size, hats, support, query, self.patches)

    def logits_of_round(self, t: int) -> Tensor:
        """P_t at image size, (B, 2, H, W); t counts from 1, as in the paper."""
        if not 1 <= t <= len(self.rounds):
            raise IndexError(f"round {t} of {len(self.rounds)}")
        return upsample(self.rounds[t - 1], self.size, self.patches)


def upsample(logits: Tensor, size: tuple[int, int], patches: bool = False) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W); cell i lies at pixel stride * i, so corners are aligned; not so those of `patches`.

    They are aligned in images of stride * m pixels too (HSNet's 400), whose last cell lies stride - 1 pixels off the
    edge: the published codes scale so.
    """
    return F.interpolate(wide(logits), size, mode="bilinear", align_corners=not patches)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over the pixels that are not 255; 0, with a gradient of 0, if all of them are.

    Args:
        logits: (B, 2, H, W)
        target: (B, H, W) long in {0, 1, 255}
    """
    total = F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (target != IGNORE_INDEX).sum().clamp_min(1)


def training_target(batch: Batch, ignore_in_loss: bool = True) -> Tensor:
    """Training target of the queries of a batch, (B, H, W) uint8 in {0, 1, 255}; 255 is left out of the loss.

    Padding is 255 always.

    Args:
        ignore_in_loss: leave annotated pixels of 255 out; False trains them as background.
    """
    target = batch.query_mask
    return target if ignore_in_loss else target.masked_fill((target == IGNORE_INDEX) & batch.query_picture, 0)


class FewShotModel(nn.Module):
    """Base of every method.

    Attributes:
        trainable: False for a training-free method; `loss` is then never called.
        loss_weight: lambda, the weight of the P_hat losses.
    """

    trainable: bool = True
    loss_weight: float = 0.0

    @classmethod
    def from_config(cls, cfg: Config) -> FewShotModel:
        """Build the method, its backbone included, as `cfg` says."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Prediction:
        """Segment the queries of the batch; images (B, 3, H, W) and (B, K, 3, H, W), support masks (B, K, H, W)."""
        supports = self.encode(batch.support_images.flatten(0, 1), batch.support_pictures.flatten(0, 1), "support")
        return self.decode([supports], self.encode(batch.query_image, batch.query_picture, "query"), batch)

    def encode(self, images: Tensor, pictures: Tensor, role: Role = "both") -> Kept:
        """All that can be computed of single images: backbone, and what follows it and needs no other image.

        An evaluation does it once for each image, whatever the number of its episodes, and keeps the result.

        Args:
            images: (N, 3, H, W).
            pictures: (N, H, W) bool, pixels that are picture and not padding; on the host.
            role: of the images; what only the other role needs may be left out.
        """
        raise NotImplementedError

    def decode(self, supports: Sequence[Kept], query: Kept, tasks: Tasks) -> Prediction:
        """Segment the queries, given what was kept of the images.

        Args:
            supports: of the B * K support images, sample by sample: all as one, or of each on its own.
            query: of the B query images.
            tasks: the masks, on the host.

        Raises:
            UserError: a support mask that cannot be used.
        """
        raise NotImplementedError

    def start_from_base(self, learner: Mapping[str, Tensor]) -> None:
        """Take over what a base learner has learned (`backbone.base_training`): its backbone.

        Args:
            learner: state dict of a `fsseg.model.base_learner.BaseLearner` of the same backbone and fold. A method that
                needs its head too takes `head.` as well (`MethodConfig.TAKES_HEAD`).

        Raises:
            RuntimeError: it is of another backbone.
        """
        backbone = self.get_submodule("backbone")
        own = {name.removeprefix("backbone."): value for name, value in learner.items() if name.startswith("backbone.")}
        backbone.load_state_dict(own)

    def misfit(self, weights: Mapping[str, Tensor]) -> UserError | None:
        """Why the weights of a checkpoint do not fit, if that can be said better than by the names of tensors.

        Args:
            weights: state dict, of any method.

        Returns:
            What is wrong, to follow the name of the file, and what to do; None where there is nothing to say.
        """
        return None

    def loss(self, prediction: Prediction, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over t of CE(P_t) + lambda * sum over t of CE(P_hat_t) (ABCB, section "Loss").

        Args:
            prediction: what `forward` returned.
            target: (B, H, W) in {0, 1, 255}, from `training_target`; 255 counts nowhere.

        Returns:
            The loss, and its terms (detached) under the names `p_1`.. and `p_hat_1`...
        """
        target = target.long()
        terms: dict[str, Tensor] = {}
        total = target.new_zeros((), dtype=torch.float32)
        for name, weight, maps in (("p", 1.0, prediction.rounds), ("p_hat", self.loss_weight, prediction.hats)):
            for t, logits in enumerate(maps, start=1):
                term = cross_entropy(upsample(logits, prediction.size, prediction.patches), target)
                terms[f"{name}_{t}"] = term.detach()
                total = total + weight * term
        return total, terms
