"""Time and memory of a training step, and of evaluated images and episodes, beside the bare backbone.

`fsseg bench step` prints it for several settings of one machine.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from fsseg.bench.common import Spread, forget_peak, in_turn, peak_bytes, seconds
from fsseg.bench.foreground import predict_share, shares
from fsseg.data.types import Batch, EpisodeSpec
from fsseg.engine import precision
from fsseg.engine.devices import choose_device
from fsseg.engine.optimiser import make_optimiser, set_rate
from fsseg.errors import UserError
from fsseg.model import FewShotModel, build_model
from fsseg.model.abcb import Abcb
from fsseg.model.base import Kept
from fsseg.model.baseline import Baseline
from fsseg.model.cost import OBJECT_SHARE
from fsseg.process.tables import aligned

if TYPE_CHECKING:
    from fsseg.config.schema import Config

log = logging.getLogger("fsseg")

FORMATS = ("run", "float32", "tf32", "bf16", "fp16")
"""What a step may compute in. `run` is what a run of the configuration does: `train.amp`, and without it torch's own
choice, on newer GPUs TF32 for convolutions alone. float32 and tf32 hold for convolutions and matrix products."""
LAYOUTS = ("usual", "channels_last")
"""How the weights lie in memory, and so the features. A run takes what `precision.prepare` says."""


@dataclass(frozen=True)
class Setting:
    """What is measured of one configuration.

    Attributes:
        batch_size: episodes of a step.
        number_format: one of `FORMATS`.
        layouts: of `LAYOUTS`; all are measured in turn.
        repeats: measurements of each side.
        share: foreground that every round predicts.
    """

    batch_size: int = 1
    number_format: str = "run"
    layouts: Sequence[str] = ("usual",)
    repeats: int = 5
    share: float = OBJECT_SHARE


@dataclass(frozen=True)
class StepRow:
    """One setting in one layout.

    Attributes:
        method, backbone, image_size, shot, batch_size, layout: the setting; sizes in pixels and episodes.
        number_format: what it is computed in: float32, TF32 convolutions, tf32, bf16 or fp16.
        accumulate, optimizer: see `TrainConfig`.
        backbone_seconds: the bare backbone on all images of the batch, without a graph; None if the method has none.
        step_seconds: a training step (forward, loss, backward, optimiser); None if the method does not train.
        encode_seconds: what an evaluation computes once for each image (`FewShotModel.encode`), on all of the batch.
        decode_seconds: what it computes for each episode from that (`FewShotModel.decode`), for all of the batch.
        step_gb, encode_gb, decode_gb: most memory meanwhile in 1e9 bytes: on a GPU what torch allocated, else of the
            process.
        step_tflop: floating point operations of a step by torch's counter, 1e12; None if the method does not train.
        matmul_tflops: rate of a large matrix product in the same format on the same machine, 1e12 a second.
        predicted_share: foreground share of the query that each round predicts; the cost of SM depends on it.
        fault: why there are no figures: out of memory.
    """

    method: str
    backbone: str
    image_size: int
    shot: int
    batch_size: int
    accumulate: int
    optimizer: str
    number_format: str
    layout: str
    backbone_seconds: Spread | None = None
    step_seconds: Spread | None = None
    encode_seconds: Spread | None = None
    decode_seconds: Spread | None = None
    step_gb: float | None = None
    encode_gb: float | None = None
    decode_gb: float | None = None
    step_tflop: float | None = None
    matmul_tflops: float | None = None
    predicted_share: tuple[float, ...] = ()
    fault: str | None = None

    @property
    def ratio(self) -> float | None:
        """Time of a training step divided by that of the bare backbone on the same images."""
        if self.step_seconds is None or self.backbone_seconds is None:
            return None
        return self.step_seconds.median / self.backbone_seconds.median

    @property
    def images(self) -> int:
        """Images of a batch, supports and queries."""
        return self.batch_size * (1 + self.shot)

    @property
    def images_per_second(self) -> float | None:
        """Images that training steps take a second."""
        return None if self.step_seconds is None else self.images / self.step_seconds.median

    @property
    def matmul_share(self) -> float | None:
        """Rate of the quickest step divided by the best rate of a large matrix product."""
        if self.step_seconds is None or self.step_tflop is None or self.matmul_tflops is None:
            return None
        return self.step_tflop / self.step_seconds.least / self.matmul_tflops


def bench_step(cfg: Config, setting: Setting) -> list[StepRow]:
    """Measure a method at `cfg`'s backbone, image size, shots, optimiser and device; one row a layout.

    Images are random, weights as `cfg.backbone` says. All sides of all layouts are timed in turn. The step runs with
    lr 0: its work is the same, and the share of predicted foreground stays as it is.

    Raises:
        UserError: see `check_setting`.
    """
    check_setting(cfg, setting)
    device = choose_device(cfg.device)
    number_format = _format_on(device, setting.number_format, cfg.train.amp)
    model = build_model(cfg)
    try:
        with number_format.flags():
            sides = _sides(cfg, setting, model, device, number_format)
            measured = in_turn({f"{s.layout} {k}": f for s in sides for k, f in s.timed().items()}, setting.repeats)
            rate = matmul_rate(device, number_format) / 1e12
        return [side.row(measured, rate) for side in sides]
    except torch.cuda.OutOfMemoryError:
        log.warning("out of memory: %s", _head(cfg, setting.batch_size, number_format.name))
        fault = "out of memory"
    torch.cuda.empty_cache()  # here, where the traceback no longer holds the tensors
    return [StepRow(*_head(cfg, setting.batch_size, number_format.name), layout, fault=fault)
            for layout in setting.layouts]  # fmt: skip


def check_setting(cfg: Config, setting: Setting) -> None:
    """What can be refused before anything is measured.

    Raises:
        UserError: a device that is not there, a number format that it has not, or parts of a batch that are not equal.
    """
    device = choose_device(cfg.device)
    if setting.number_format != "run":
        _format_on(device, setting.number_format, cfg.train.amp)
    if setting.batch_size % (count := cfg.train.accumulate):
        raise UserError(
            f"train.accumulate={count} does not divide a batch of {setting.batch_size}",
            f"take a batch that is a multiple of {count}, or another train.accumulate",
        )


def _head(cfg: Config, batch_size: int, number_format: str) -> tuple[str, str, int, int, int, int, str, str]:
    return (cfg.model.name, cfg.backbone.name, cfg.dataset.image_size, cfg.shot, batch_size, cfg.train.accumulate,
            cfg.train.optimizer, number_format)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ number formats


@dataclass(frozen=True)
class NumberFormat:
    """A number format on a device.

    Attributes:
        name: as in `StepRow.number_format`.
        device: where.
        tf32: for (convolutions, matrix products); None leaves torch's choice.
    """

    name: str
    device: torch.device
    tf32: bool | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors in a matrix product of this format."""
        return precision.DTYPES.get(self.name, torch.float32)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Mixed precision, or nothing."""
        return precision.autocast(self.device, self.name if self.name in precision.DTYPES else "off")

    @contextlib.contextmanager
    def flags(self) -> Iterator[None]:
        """torch's switches for TF32 as the format wants them; they are put back."""
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        if self.tf32 is not None:
            torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = self.tf32
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]


def _format_on(device: torch.device, asked: str, amp: str) -> NumberFormat:
    """
    Raises:
        UserError: the device has no such format.
    """
    if asked == "run":
        asked = precision.usable(amp, device)
        if asked == "off":
            return NumberFormat(_own_float32(device), device)
    if device.type == "cpu" and asked in ("tf32", "fp16"):
        raise UserError(f"--formats {asked}: only a GPU computes in it", "take float32 or bf16, or device=cuda")
    return NumberFormat(asked, device, {"float32": False, "tf32": True}.get(asked))


def _own_float32(device: torch.device) -> str:
    """What torch makes of float32 by itself: cuDNN takes TF32 where the GPU has it, matrix products do not."""
    if device.type == "cpu" or not torch.backends.cudnn.allow_tf32:
        return "float32"
    return "TF32 convolutions" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"


def matmul_rate(device: torch.device, number_format: NumberFormat) -> float:
    """Floating point operations a second of a square matrix product, in the format of the step's convolutions.

    Measured in float32 beside convolutions in TF32, the product would be slower than they and no upper bound.
    """
    side = 1024 if device.type == "cpu" else 8192
    a = torch.randn(side, side, device=device, dtype=number_format.dtype)
    before = torch.get_float32_matmul_precision()
    if number_format.name == "TF32 convolutions":
        torch.set_float32_matmul_precision("high")
    try:
        a @ a
        times = [seconds(lambda: a @ a, device)]
        while len(times) < 20 and sum(times) < 2:  # without instructions for a format one takes seconds
            times.append(seconds(lambda: a @ a, device))
        return 2 * side**3 / min(times)
    finally:
        torch.set_float32_matmul_precision(before)


# --------------------------------------------------------------------------------------------------------------- sides


@dataclass
class _Side:
    """A model in one layout: what is timed of it, and the row made of that."""

    head: tuple[str, str, int, int, int, int, str, str]
    layout: str
    model: FewShotModel
    parts: list[Batch]
    number_format: NumberFormat
    optimiser: torch.optim.Optimizer | None
    shares: tuple[float, ...] = ()
    tflop: float | None = None
    kept: list[tuple[Kept, Kept]] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)

    def backbone(self) -> None:
        network = self.model.backbone
        assert isinstance(network, torch.nn.Module)
        with torch.no_grad(), self.number_format.autocast():
            for part in self.parts:
                network(torch.cat((part.support_images.flatten(0, 1), part.query_image)))

    def encode(self) -> None:
        self.model.eval()
        self.kept = []
        with torch.inference_mode(), self.number_format.autocast():
            for part in self.parts:
                supports = part.support_images.flatten(0, 1), part.support_pictures.flatten(0, 1)
                queries = part.query_image, part.query_picture
                self.kept.append((self.model.encode(*supports), self.model.encode(*queries)))

    def decode(self) -> None:
        with torch.inference_mode(), self.number_format.autocast():
            for part, (support, query) in zip(self.parts, self.kept, strict=True):
                self.model.decode([support], query, part)

    def step(self) -> None:
        assert self.optimiser is not None
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        for part in self.parts:
            with self.number_format.autocast():
                loss, _ = self.model.loss(self.model(part), part.query_mask.to(self.number_format.device))
            (loss / len(self.parts)).backward()
        self.optimiser.step()

    def timed(self) -> dict[str, Callable[[], float]]:
        """The sides that the method has, by name; each call takes the time, and notes the memory."""
        runs: dict[str, Callable[[], None]] = {"encode": self.encode, "decode": self.decode}
        if hasattr(self.model, "backbone"):
            runs["backbone"] = self.backbone
        if self.optimiser is not None:
            runs["step"] = self.step
        return {name: partial(self._timed, name, run) for name, run in runs.items()}

    def _timed(self, name: str, run: Callable[[], None]) -> float:
        device = self.number_format.device
        forget_peak(device)
        taken = seconds(run, device)
        self.peaks[name] = peak_bytes(device)
        if name == "decode":
            self.kept = []  # it is no part of a step
        return taken

    def row(self, measured: dict[str, list[float]], rate: float) -> StepRow:
        found = {k: Spread.of(measured[f"{self.layout} {k}"]) for k in self.timed()}
        gb = {k: v / 1e9 for k, v in self.peaks.items()}
        return StepRow(
            *self.head, self.layout, found.get("backbone"), found.get("step"), found["encode"], found["decode"],
            gb.get("step"), gb["encode"], gb["decode"], self.tflop, rate, self.shares,
        )  # fmt: skip


def _sides(
    cfg: Config, setting: Setting, model: FewShotModel, device: torch.device, number_format: NumberFormat
) -> list[_Side]:
    """One side a layout, with the same weights and images."""
    count = cfg.train.accumulate
    part = random_batch(setting.batch_size // count, cfg.shot, cfg.dataset.image_size, setting.share).to(device)
    model.to(device)
    shares = _predict_share(model, part, setting.share) if isinstance(model, Baseline) else ()
    sides = []
    for layout in setting.layouts:
        own = copy.deepcopy(model)
        if layout == "channels_last":
            own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = make_optimiser(own, cfg.train, device) if own.trainable else None
        if optimiser is not None:
            set_rate(optimiser, 0.0)
        head = _head(cfg, setting.batch_size, number_format.name)
        sides.append(_Side(head, layout, own, [part] * count, number_format, optimiser, shares))
    if sides[0].optimiser is not None:
        with FlopCounterMode(display=False) as counter:
            sides[0].step()
        for side in sides:
            side.tflop = counter.get_total_flops() / 1e12
    return sides


def random_batch(size: int, shots: int, side: int, share: float) -> Batch:
    """Random images, each with a square object of the given share in its middle."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(side, side, dtype=torch.uint8)
    length = max(1, round(side * share**0.5))
    start = (side - length) // 2
    mask[start : start + length, start : start + length] = 1
    return Batch(
        support_images=torch.randn(size, shots, 3, side, side, generator=generator),
        support_masks=mask.expand(size, shots, -1, -1).contiguous(),
        support_pictures=torch.ones(size, shots, side, side, dtype=torch.bool),
        query_image=torch.randn(size, 3, side, side, generator=generator),
        query_mask=mask.expand(size, -1, -1).contiguous(),
        query_picture=torch.ones(size, side, side, dtype=torch.bool),
        specs=[EpisodeSpec(b, 0, "random", ("random",) * shots) for b in range(size)],
        valid_sizes=[(side, side)] * size,
        query_truths=[None] * size,
    )


@torch.no_grad()
def _predict_share(model: Baseline, batch: Batch, share: float) -> tuple[float, ...]:
    """Make every round predict `share` of the batch as foreground; returns the shares reached.

    The layers through which SM and IC change S_QP become zero, so that random weights do not move the share of later
    rounds. These layers are still computed.
    """
    layers = []
    if isinstance(model, Abcb) and model.sm is not None:
        layers.append(model.sm.modulate.value)
    if isinstance(model, Abcb) and model.ic is not None:
        layers.append(model.ic.linear)
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()
    predict_share(model, share, lambda: model(batch))
    return shares(model(batch))


# --------------------------------------------------------------------------------------------------------------- table


def format_steps(rows: Sequence[StepRow]) -> str:
    """The rows as a table in plain text."""
    title = ("method", "backbone", "px", "shot", "batch", "format", "layout", "backbone ms", "step ms", "ratio",
             "images/s", "step GB", "rate", "ms an image", "ms an episode", "GB")  # fmt: skip
    lines = [title, *(_line(row) for row in rows)]
    notes = [
        "backbone: alone, without a graph, on the images of the batch; step: a training step; ratio: step / backbone; "
        "rate: of the quickest step, as a share of a large matrix product's in the same format",
        "evaluation, in batches as large: ms an image, once for each different one, and ms an episode from what was "
        "kept of them; all ms: median (quartiles)",
    ]
    rates: dict[str, float] = {}
    for row in rows:
        rates[row.number_format] = max(rates.get(row.number_format, 0.0), row.matmul_tflops or 0.0)
    notes.append("matrix product: " + ", ".join(f"{name} {rate:.2f} TFLOP/s" for name, rate in rates.items()))
    shares = dict.fromkeys(", ".join(f"{s:.0%}" for s in row.predicted_share) for row in rows if row.predicted_share)
    notes += [f"predicted foreground by round: {share}" for share in shares]
    return "\n".join([aligned(lines, left=(0, 1, 5, 6)), *notes])


def _line(row: StepRow) -> tuple[str, ...]:
    batch = str(row.batch_size) if row.accumulate == 1 else f"{row.batch_size} in {row.accumulate}"
    head = (row.method, row.backbone, str(row.image_size), str(row.shot), batch, row.number_format, row.layout)
    if row.fault is not None:
        return (*head, row.fault)
    figures = (
        _milliseconds(row.backbone_seconds), _milliseconds(row.step_seconds),
        _or_none(row.ratio, ".2f"), _or_none(row.images_per_second, ".1f"), _or_none(row.step_gb, ".2f"),
        _or_none(row.matmul_share, ".0%"), _milliseconds(row.encode_seconds, row.images),
        _milliseconds(row.decode_seconds, row.batch_size),
        _or_none(max(row.encode_gb or 0.0, row.decode_gb or 0.0), ".2f"),
    )  # fmt: skip
    return (*head, *figures)


def _milliseconds(found: Spread | None, parts: int = 1) -> str:
    return "-" if found is None else str(found.times(1e3 / parts))


def _or_none(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
