"""Time and memory of a training step beside the bare backbone on the same images; `fsseg bench model` prints it."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fsseg.data.types import Batch, EpisodeSpec
from fsseg.engine.devices import choose_device, describe_device, peak_memory
from fsseg.errors import UserError
from fsseg.model import build_model
from fsseg.model.abcb import Abcb
from fsseg.model.baseline import Baseline
from fsseg.model.cost import OBJECT_SHARE
from fsseg.process.tables import aligned

if TYPE_CHECKING:
    from fsseg.config.schema import Config

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class BenchResult:
    """What one run of `bench_model` measured.

    Attributes:
        device: name of the GPU as torch knows it, or the number of CPU threads.
        batch_size, image_size, shot, amp: the setting.
        backbone_seconds: median time of the bare backbone on all images of the batch, without a graph.
        step_seconds: median time of a training step (forward, loss, backward, optimiser).
        quickest_step_seconds: the shortest of these times.
        peak_memory_gb: 1e9 bytes; on a GPU what torch allocated at most, on a CPU the largest resident size.
        step_tflop: floating point operations of a step by torch's counter, 1e12.
        matmul_tflops: rate of a large matrix product on the same machine, 1e12 a second.
        predicted_share: foreground share of the query that each round predicts; the cost of SM depends on it.
        number_format: of that matrix product and of the step's convolutions: float32, TF32, bf16 or fp16.
    """

    device: str
    batch_size: int
    image_size: int
    shot: int
    amp: str
    backbone_seconds: float
    step_seconds: float
    quickest_step_seconds: float
    peak_memory_gb: float
    step_tflop: float
    matmul_tflops: float
    predicted_share: tuple[float, ...]
    number_format: str = "float32"

    @property
    def ratio(self) -> float:
        """Time of a training step divided by that of the bare backbone on the same images."""
        return self.step_seconds / self.backbone_seconds

    @property
    def matmul_share(self) -> float:
        """Rate of the quickest step divided by the best rate of a large matrix product."""
        return self.step_tflop / self.quickest_step_seconds / self.matmul_tflops


def bench_model(cfg: Config, batch_size: int = 1, repeats: int = 5, share: float = OBJECT_SHARE) -> BenchResult:
    """Measure a method at `cfg`'s backbone, image size, shots, device and, on a GPU, mixed precision.

    Images are random, weights as `cfg.backbone` says.

    Backbone and step are timed in turn, so that other load on the machine slows both. The step runs with lr 0: its work
    is the same, and the share of predicted foreground stays at `share`.

    Raises:
        UserError: a method that does not train, or a device that is not there.
    """
    model = build_model(cfg)
    if not model.trainable or not isinstance(model, Baseline):
        raise UserError(f"method={cfg.model.name} has no training step to time", "choose method=abcb or baseline")
    device = choose_device(cfg.device)
    amp = cfg.train.amp if device.type == "cuda" else "off"
    model.to(device)
    batch = _batch(batch_size, cfg.shot, cfg.dataset.image_size, share).to(device)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)
    cast, number_format = _autocast(device, amp), _number_format(device, amp)
    images = torch.cat((batch.support_images.flatten(0, 1), batch.query_image))

    def backbone() -> None:
        with torch.no_grad(), cast():
            model.backbone(images)

    def step() -> None:
        with cast():
            prediction = model(batch)
        loss, _ = model.loss(prediction, batch.query_mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    with cast():
        shares = _predict_share(model, batch, share)
    backbone()  # warm-up; the step's is the counted one
    with FlopCounterMode(display=False) as counter:
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = [(_seconds(backbone, device), _seconds(step, device)) for _ in range(repeats)]
    peak = peak_memory(device)
    return BenchResult(
        device=describe_device(device),
        batch_size=batch_size,
        image_size=cfg.dataset.image_size,
        shot=cfg.shot,
        amp=amp,
        backbone_seconds=statistics.median(one for one, _ in times),
        step_seconds=statistics.median(other for _, other in times),
        quickest_step_seconds=min(other for _, other in times),
        peak_memory_gb=peak / 1e9,
        step_tflop=counter.get_total_flops() / 1e12,
        matmul_tflops=_matmul_rate(device, number_format) / 1e12,
        predicted_share=shares,
        number_format=number_format,
    )


def _batch(size: int, shots: int, side: int, share: float) -> Batch:
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

    phi_p's last bias is shifted for round 1. The layers through which SM and IC change S_QP become zero, so that random
    weights do not move the share of later rounds. These layers are still computed.
    """
    layers = []
    if isinstance(model, Abcb) and model.sm is not None:
        layers.append(model.sm.modulate.value)
    if isinstance(model, Abcb) and model.ic is not None:
        layers.append(model.ic.linear)
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()
    first = model(batch).rounds[0]
    margin = (first[:, 1] - first[:, 0]).flatten().float()
    bias = model.qp.second.bias
    assert isinstance(bias, Tensor)
    bias[0] += margin.sort(descending=True).values[round(share * margin.numel())]
    return tuple((p[:, 1] > p[:, 0]).float().mean().item() for p in model(batch).rounds)


def _autocast(device: torch.device, amp: str) -> Callable[[], contextlib.AbstractContextManager]:
    if amp == "off":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=_DTYPES[amp])


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _number_format(device: torch.device, amp: str) -> str:
    """What the step's convolutions compute in: without autocast cuDNN takes TF32 where the GPU has it."""
    if amp != "off":
        return amp
    if device.type == "cpu" or not torch.backends.cudnn.allow_tf32:
        return "float32"
    return "TF32" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"


def _matmul_rate(device: torch.device, number_format: str) -> float:
    """Floating point operations a second of a square matrix product in the number format of the convolutions.

    By default torch uses TF32 for convolutions of float32 but not for matrix products. Measured that way, the product
    would be slower than the convolutions and no upper bound for the step.
    """
    side = 1024 if device.type == "cpu" else 8192
    a = torch.randn(side, side, device=device, dtype=_DTYPES.get(number_format, torch.float32))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if number_format == "TF32" else "highest")
    try:
        a @ a
        return 2 * side**3 / min(_seconds(lambda: a @ a, device) for _ in range(20))
    finally:
        torch.set_float32_matmul_precision(before)


def format_step(result: BenchResult) -> str:
    """The measurement in a few lines of text."""
    images = result.batch_size * (1 + result.shot)
    work = (
        f"TFLOP a step, {100 * result.matmul_share:.0f} % of the machine's matrix product rate in "
        f"{result.number_format}, as its convolutions ({result.matmul_tflops:.2f} TFLOP/s)"
    )
    rows = [
        ("backbone alone", f"{result.backbone_seconds:.3f}", f"s on the {images} images"),
        ("training step", f"{result.step_seconds:.3f}", f"s = {result.ratio:.2f} x the backbone"),
        ("peak memory", f"{result.peak_memory_gb:.2f}", "GB"),
        ("work", f"{result.step_tflop:.3f}", work),
    ]
    head = f"{result.device}; batch {result.batch_size}, {result.image_size} px, {result.shot} shot, amp {result.amp}"
    shares = ", ".join(f"{100 * s:.0f} %" for s in result.predicted_share)
    return f"{head}\n{aligned(rows, left=(0, 2))}\npredicted foreground by round: {shares}"
