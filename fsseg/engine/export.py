"""`fsseg export`: the model of a run as ONNX, TorchScript or safetensors, for use without fsseg.

ONNX and TorchScript hold `Segmenter`, one function of an episode's tensors. torch.export records it within
`fsseg.model.blocks.tokens.for_any_mask`, and refuses what would hold for the recorded masks only. Every file is run
beside the model on masks it was not recorded with before it gets its name.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsseg import __version__
from fsseg.cell.key import flatten
from fsseg.cell.variant import PATHS_BY_CONTENT, is_neutral
from fsseg.config.entry import resolved
from fsseg.config.schema import Config
from fsseg.data.pixels import BLACK, MEAN, STD
from fsseg.data.source import IGNORE_INDEX
from fsseg.data.spec import EpisodeSpec
from fsseg.data.types import Batch
from fsseg.engine.restore import Restored, restore
from fsseg.errors import UserError
from fsseg.model import FewShotModel
from fsseg.model.blocks.tokens import for_any_mask
from fsseg.process.files import prepared
from fsseg.process.words import size

INPUTS = ("support_images", "support_masks", "query_image")
OUTPUT = "logits"
TOLERANCE = 1e-3
"""How far logits of an exported file may lie from the model's, as a share of the largest."""
ABOUT = "fsseg.json"
"""The entry of a TorchScript file that holds its description; the others have it as the metadata `fsseg`."""

Inputs = tuple[Tensor, Tensor, Tensor]
Run = Callable[[Inputs], Tensor]


class Segmenter(nn.Module):
    """A few-shot model as a function of the tensors of one episode: the same work for every mask.

    Args:
        model: in evaluation mode.
        black: the network knows padding as black (`protocol.fit=pfenet`); False: as the mean colour.
    """

    def __init__(self, model: FewShotModel, black: bool = False) -> None:
        super().__init__()
        self.model, self.black = model, black

    def forward(self, support_images: Tensor, support_masks: Tensor, query_image: Tensor) -> Tensor:
        """Segment a query.

        Args:
            support_images: (K, 3, S, S), normalised. A pixel is padding if all its values are 0, which no level of 8
                bits becomes.
            support_masks: (K, S, S) uint8: 1 object, 0 background, 255 neither, as on padding.
            query_image: (3, S, S), as the supports.

        Returns:
            Logits (2, S, S) of background and foreground.
        """
        with for_any_mask():
            return self.own(support_images, support_masks, query_image)

    def own(self, support_images: Tensor, support_masks: Tensor, query_image: Tensor) -> Tensor:
        """The same as the model computes it in an evaluation, with the tokens of these masks alone."""
        supports, of_supports = self._padded(support_images)
        query, of_query = self._padded(query_image[None])
        masks = support_masks.to(torch.int32)  # ONNX runtimes compare few other kinds
        side = (masks.shape[1], masks.shape[2])
        names = tuple(f"support {number}" for number in range(masks.shape[0]))
        batch = Batch(
            support_images=supports[None], support_masks=masks[None], support_pictures=of_supports[None],
            query_image=query, query_mask=masks[:1], query_picture=of_query,
            specs=[EpisodeSpec(0, -1, "query", names)], valid_sizes=[side], query_truths=[None],
        )  # fmt: skip
        return self.model(batch).logits[0]

    def _padded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images with the padding that the network knows, and where they are picture, (N, S, S) bool."""
        picture = (images != 0).any(1)
        if self.black:
            images = torch.where(picture[:, None], images, images.new_tensor(BLACK)[:, None, None])
        return images, picture


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: of its name.
        packages: what writing and checking it needs beside torch.
    """

    suffix: str
    packages: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime")),
    "torchscript": Format(".pt"),
    "safetensors": Format(".safetensors", ("safetensors",)),
}


def export(place: str | Path, kind: str, out: Path | None = None, line: Sequence[str] = ()) -> str:
    """Write the model of a run or a checkpoint to a file.

    Args:
        place: a run directory or a checkpoint.
        kind: one of `FORMATS`.
        out: the file; without it one in the current folder that is named after the run.
        line: as of `fsseg.engine.restore.restore`.

    Returns:
        What was written, in words.

    Raises:
        UserError: the method or backbone does not allow the format, a package or the run is not there, the file is, or
            it does not compute what the model does.
    """
    _check_packages(kind)
    restored = restore(place, line)
    cfg = restored.cfg
    path = out or Path(f"{cfg.model.name}_{cfg.backbone.name}_{cfg.dataset.name}_fold{cfg.fold}_{cfg.shot}shot"
                       f"{FORMATS[kind].suffix}")  # fmt: skip
    if path.exists():
        raise UserError(f"{path} is there already", "remove it, or name another file with --out")
    if kind != "safetensors" and (fault := unfit(cfg)) is not None:
        raise fault
    write = {"onnx": _write_onnx, "torchscript": _write_torchscript, "safetensors": _write_safetensors}[kind]
    with prepared(path) as new:
        told = write(restored, json.dumps(description(restored)), new)
        os.replace(new, path)
        return "\n".join((restored.about, f"{path}: {size(path.stat().st_size)}, {told}"))


def _check_packages(kind: str) -> None:
    """
    Raises:
        UserError: a format that is not known, or a package that it needs is not there.
    """
    if kind not in FORMATS:
        raise UserError(f"--to {kind} is no format", f"choose one of {', '.join(FORMATS)}")
    for name in FORMATS[kind].packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            what = f"--to {kind} needs the package {name}, which cannot be imported ({error})"
            raise UserError(what, "pip install 'fsseg[export]'") from None


def unfit(cfg: Config) -> UserError | None:
    """Why a method cannot be one function of images and masks, if it cannot."""
    instead = "export its weights with --to safetensors, and build the model with fsseg"
    if cfg.model.name == "hsnet" and cfg.shot > 1 and cfg.protocol.fit != "squash":
        what = f"method=hsnet with shot={cfg.shot} votes within the picture, which protocol.fit={cfg.protocol.fit} pads"
        return UserError(f"{what}: its size would be fixed in the file", f"{instead}; or export a run of shot=1")
    return None


def description(restored: Restored) -> dict[str, Any]:
    """What a file is and how it is fed: all that its user needs to know. No path of this machine."""
    cfg, side = restored.cfg, restored.cfg.dataset.image_size
    left_out = {"checkpoint", "backbone.weights", "dataset.root", *PATHS_BY_CONTENT}
    settings = {k: v for k, v in flatten(resolved(cfg)).items() if not is_neutral(k) and k not in left_out}
    shapes = dict(zip(INPUTS, ([cfg.shot, 3, side, side], [cfg.shot, side, side], [3, side, side])))
    return {
        "fsseg": __version__, "model": restored.about, "weights": restored.digest, "shot": cfg.shot, "image_size": side,
        "fit": cfg.protocol.fit, "mean": list(MEAN), "std": list(STD), "inputs": shapes,
        "outputs": {OUTPUT: [2, side, side]}, "padding": {"image": 0, "mask": IGNORE_INDEX}, "settings": settings,
    }  # fmt: skip


def record(restored: Restored) -> tuple[Segmenter, torch.export.ExportedProgram]:
    """The function, and the same as a graph in which no mask decides what is computed.

    Raises:
        UserError: the backbone cannot be recorded.
    """
    cfg = restored.cfg
    segmenter = Segmenter(restored.model, black=cfg.protocol.fit == "pfenet").eval()
    example = next(episodes(cfg.shot, cfg.dataset.image_size))
    try:
        with torch.no_grad(), _quiet():
            segmenter(*example)  # fills what is made once and kept, with real values
            return segmenter, torch.export.export(segmenter, example)
    except Exception as error:  # torch raises many types, and networks of timm fail in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"method={cfg.model.name} backbone={cfg.backbone.name} cannot be recorded as one function ({reason[:200]})",
            "export its weights with --to safetensors, and build the model with fsseg",
        ) from error


def episodes(shots: int, side: int) -> Iterator[Inputs]:
    """Made-up episodes whose objects are half of the image, a small part, all of it, and one beside padding."""
    generator = torch.Generator().manual_seed(0)
    edge, small = 3 * side // 4, max(5, side // 6)
    for rows, columns, padded in ((side // 2, side, 0), (small, small, 0), (side, side, 0), (edge, side // 3, 1)):
        supports = torch.randn(shots, 3, side, side, generator=generator)
        query = torch.randn(3, side, side, generator=generator)
        masks = torch.zeros(shots, side, side, dtype=torch.uint8)
        masks[:, :rows, :columns] = 1
        if padded:
            supports[:, :, edge:], masks[:, edge:], query[:, :, edge:] = 0, IGNORE_INDEX, 0
        yield supports, masks, query


def _checked(segmenter: Segmenter, example: Inputs, run: Run) -> str:
    """Compare what a file computes with the model, on all `episodes`; in words.

    Raises:
        UserError: it is not the same.
    """
    shares = []
    for inputs in episodes(example[0].shape[0], example[2].shape[1]):
        with torch.no_grad():
            expected = segmenter.own(*inputs)
        shares.append(float((run(inputs) - expected).abs().max() / expected.abs().max().clamp_min(1e-6)))
    worst = max(shares)
    if not all(share <= TOLERANCE for share in shares):  # NaN neither
        raise UserError(
            f"the file computes something else than the model: logits differ by {worst:.1e} of the largest one",
            "export its weights with --to safetensors, and report this with the versions of torch, onnx and onnxscript",
        )
    return f"checked on 4 episodes: logits differ by at most {worst:.1e} of the largest one"


def _write_onnx(restored: Restored, about: str, path: Path) -> str:
    import onnxruntime

    segmenter, program = record(restored)
    with torch.no_grad(), _quiet():
        # onnxscript's optimiser drops an output of ABCB's Split that is in use; a runtime optimises by itself.
        made = torch.onnx.export(
            program, dynamo=True, input_names=list(INPUTS), output_names=[OUTPUT], optimize=False, verbose=False
        )
    assert made is not None
    graphs: list[Any] = [made.model.graph, *made.model.functions.values()]
    for graph in graphs:
        for node in graph.all_nodes():
            node.metadata_props.clear()  # stack traces, with paths of this machine
    made.model.metadata_props["fsseg"] = about
    made.save(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {n: x.numpy() for n, x in zip(INPUTS, inputs)})[0])

    return f"opset {made.model.opset_imports['']}, {_checked(segmenter, _example(program), run)}"


def _write_torchscript(restored: Restored, about: str, path: Path) -> str:
    segmenter, program = record(restored)
    with torch.no_grad(), _quiet():
        made = torch.jit.trace(program.module(), _example(program), check_trace=False)  # what is traced has no branches
        torch.jit.save(made, str(path), _extra_files={ABOUT: about})
        loaded = torch.jit.load(str(path))

    def run(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            return loaded(*inputs)

    return _checked(segmenter, _example(program), run)


def _write_safetensors(restored: Restored, about: str, path: Path) -> str:
    from safetensors.torch import save_file

    state = {name: value.contiguous() for name, value in restored.model.state_dict().items()}
    save_file(state, path, {"fsseg": about})
    return f"{len(state)} tensors"


def _example(program: torch.export.ExportedProgram) -> Inputs:
    assert program.example_inputs is not None
    args: Any = program.example_inputs[0]
    return args


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and onnx say of their own insides and of each other."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
