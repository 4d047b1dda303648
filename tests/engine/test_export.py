"""`fsseg export`: what a file computes is what the model computes, for masks that it was not recorded with."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import model_samples as samples
import numpy as np
import onnxruntime
import pytest
import torch
from command_line import fsseg
from PIL import Image
from runs import cell_of, composed, done
from safetensors import safe_open
from torch import Tensor, nn

from fsseg.config.schema import ProtocolConfig
from fsseg.data.pixels import BLACK
from fsseg.data.types import Batch
from fsseg.engine import export as exporting
from fsseg.engine.export import Segmenter, description, record, unfit
from fsseg.engine.predict import Predictor
from fsseg.engine.restore import Restored
from fsseg.errors import UserError
from fsseg.model import FewShotModel, build_model

SIDE = 33
REPO = Path(__file__).resolve().parents[2]
METHODS = {
    "abcb": samples.abcb(iterations=3), "abcb, wide bins": samples.abcb(iterations=2, histogram_width=2),
    "baseline": samples.baseline(), "baseline, logits": samples.baseline(shot_fusion="logits"),
    "pfenet": samples.pfenet(), "bam": samples.bam(), "hsnet": samples.hsnet(),
    "prototype, otsu": samples.prototype(threshold="otsu"), "prototype": samples.prototype(threshold="background"),
    "dino": samples.dino(), "dino, otsu": samples.dino(background_prototypes=0),
}  # fmt: skip


def restored(method: str, shots: int = 1, fit: str = "longer_side") -> Restored:
    """A model with random weights, whose answers are half foreground."""
    torch.manual_seed(3)
    cfg = samples.cell(METHODS[method], shot=shots)
    cfg.dataset.image_size, cfg.protocol = SIDE, ProtocolConfig(fit=fit)
    model = build_model(cfg).eval()
    if hasattr(model, "qp"):  # or ABCB would take no token of the query
        with torch.no_grad():
            logits = expected(model, *next(episodes(shots))[1:])
            model.qp.second.bias[1] -= (logits[1] - logits[0]).median()
    return Restored(cfg, model, "a model", "random")


def episodes(shots: int) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Small, large, whole, tiny and padded objects: name, support images, masks, query."""
    generator = torch.Generator().manual_seed(1)
    for name in ("small", "large", "full", "one pixel", "padded"):
        supports = torch.randn(shots, 3, SIDE, SIDE, generator=generator)
        query = torch.randn(3, SIDE, SIDE, generator=generator)
        masks = torch.zeros(shots, SIDE, SIDE, dtype=torch.uint8)
        if name == "small":
            masks[:, 8:14, 10:18] = 1
        elif name == "large":
            masks[:, 2:30, 3:27], masks[0, 10:15] = 1, 255
        elif name == "full":
            masks[:] = 1
        elif name == "one pixel":
            masks[:, 6, 7] = 1  # between the cells, which lie at every fourth pixel
        else:
            masks[:, 4:15, 10:30], masks[:, 22:], supports[:, :, 22:], query[:, :, 18:] = 1, 255, 0, 0
        yield name, supports, masks, query


def expected(model: FewShotModel, supports: Tensor, masks: Tensor, query: Tensor, black: bool = False) -> Tensor:
    """The model's answer as an evaluation gets it, told where the pictures are; padding was 0 before."""
    pictures, picture = torch.ones(len(masks), SIDE, SIDE, dtype=torch.bool), torch.ones(SIDE, SIDE, dtype=torch.bool)
    if not supports[0, :, -1].any():
        pictures[:, 22:], picture[:, 18:] = False, False
    if black:
        dark = torch.tensor(BLACK)[:, None, None]
        supports, query = torch.where(pictures[:, None], supports, dark), torch.where(picture, query, dark)
    batch = Batch(
        support_images=supports[None], support_masks=masks[None], support_pictures=pictures[None],
        query_image=query[None], query_mask=masks[:1], query_picture=picture[None],
        specs=[samples.spec(0, len(masks), -1)], valid_sizes=[(SIDE, int(picture[0].sum()))], query_truths=[None],
    )  # fmt: skip
    with torch.no_grad():
        return model(batch).logits[0]


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_the_function_answers_as_the_model_whatever_is_marked(method: str, shots: int) -> None:
    made = restored(method, shots)
    segmenter, foreground = Segmenter(made.model).eval(), []
    for name, supports, masks, query in episodes(shots):
        if method == "hsnet" and shots > 1 and name == "padded":
            continue  # its export is refused
        answer = expected(made.model, supports, masks, query)
        foreground.append((answer[1] > answer[0]).double().mean().item())
        with torch.no_grad():
            found = segmenter(supports, masks, query)
        torch.testing.assert_close(found, answer, rtol=1e-5, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
    if method.startswith(("abcb", "baseline", "prototype", "dino")):
        assert max(foreground) > 0.05
        assert min(foreground) < 0.95


def test_padding_is_black_for_a_network_that_knows_it_so() -> None:
    made = restored("pfenet", fit="pfenet")
    *_, (_, supports, masks, query) = episodes(1)
    with torch.no_grad():
        found = Segmenter(made.model, black=True)(supports, masks, query)
        other = Segmenter(made.model)(supports, masks, query)
    answer = expected(made.model, supports, masks, query, black=True)
    torch.testing.assert_close(found, answer, rtol=1e-5, atol=1e-5)
    assert (other - answer).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["pfenet", "bam", "dino"])  # abcb and prototype as files, below; hsnet: slow
def test_what_is_recorded_with_one_mask_holds_for_others(method: str) -> None:
    made = restored(method)
    _, program = record(made)
    graph = program.module()
    for name, supports, masks, query in episodes(1):
        answer = expected(made.model, supports, masks, query)
        with torch.no_grad():
            found = graph(supports, masks, query)
        torch.testing.assert_close(found, answer, rtol=1e-5, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def check_onnx(path: Path, model: FewShotModel) -> None:
    """The file in onnxruntime beside the model in torch: within a thousandth of the largest logit."""
    runtime = session(path)
    for name, supports, masks, query in episodes(1):
        answer = expected(model, supports, masks, query)
        given = {"support_images": supports, "support_masks": masks, "query_image": query}
        (found,) = runtime.run(["logits"], {key: value.numpy() for key, value in given.items()})
        assert np.abs(found - answer.numpy()).max() < 1e-3 * answer.abs().max().item(), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["baseline", "pfenet", "bam", "hsnet", "prototype", "dino", "dino, otsu"])
def test_onnx_of_the_other_methods(method: str, tmp_path: Path) -> None:
    made = restored(method)
    exporting._write_onnx(made, "{}", tmp_path / "model.onnx")
    check_onnx(tmp_path / "model.onnx", made.model)


def test_onnx_of_a_threshold_that_the_query_decides(tmp_path: Path) -> None:
    made = restored("prototype, otsu")
    exporting._write_onnx(made, "{}", tmp_path / "model.onnx")
    check_onnx(tmp_path / "model.onnx", made.model)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ABCB in two rounds, at the size of the samples, whose first answers are half foreground."""
    c = composed(tmp_path_factory.mktemp("data") / "shapes5i", tmp_path_factory.mktemp("outputs"), "model.iterations=2",
                 f"dataset.image_size={SIDE}", "train.max_steps=1", "train.lr=1e-6", "seed=5",
                 "eval.enabled=false")  # fmt: skip
    done(c)
    return cell_of(c).directory


@pytest.fixture(scope="module")
def onnx_file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    told = fsseg("export", str(run), "--to", "onnx", "--out", str(path))
    assert told.returncode == 0, told.stderr
    assert re.search(r"model\.onnx: .*opset \d+, checked on 4 episodes: logits differ by at most \d", told.stdout)
    return path


def test_onnx_of_a_run_computes_what_the_run_does(run: Path, onnx_file: Path) -> None:
    check_onnx(onnx_file, Predictor.from_checkpoint(run, "cpu").model)
    about = json.loads(session(onnx_file).get_modelmeta().custom_metadata_map["fsseg"])
    assert about["inputs"] == {
        "support_images": [1, 3, 33, 33],
        "support_masks": [1, 33, 33],
        "query_image": [3, 33, 33],
    }
    assert (about["fit"], about["settings"]["model.iterations"]) == ("longer_side", 2)
    content = onnx_file.read_bytes()
    assert str(REPO).encode() not in content
    assert str(run.parents[5]).encode() not in content


def test_the_code_of_the_page_segments_as_fsseg_predict_does(run: Path, onnx_file: Path, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    generator = np.random.default_rng(0)
    for name, (height, width) in {"cat.jpg": (50, 40), "query.jpg": (37, 60)}.items():
        small = generator.integers(0, 255, (5, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(tmp_path / name, quality=95)
    mask = np.zeros((50, 40), np.uint8)
    mask[10:30, 5:30] = 255
    Image.fromarray(mask).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").symlink_to(onnx_file)
    page = (REPO / "docs" / "export.md").read_text()
    scope: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, scope)
    answer = Predictor.from_checkpoint(run, "cpu").predict("query.jpg", [("cat.jpg", "cat.png")])
    assert 0.005 < answer.mask.mean() < 0.995
    assert (np.array(Image.open("answer.png")) == 255 * answer.mask).mean() > 0.99
    off = np.abs(scope["probability"] - answer.probability).max()
    assert off < 0.1 * np.ptp(answer.probability)


def test_torchscript_of_a_run_says_what_it_is_and_replaces_nothing(tmp_path: Path) -> None:
    """Of a training-free one, which has no checkpoint."""
    c = composed(tmp_path / "data" / "shapes5i", tmp_path / "outputs", "method=prototype", "train.enabled=false",
                 f"dataset.image_size={SIDE}", "shot=2", "protocol.num_episodes=1")  # fmt: skip
    done(c)
    folder = tmp_path / "here"
    folder.mkdir()
    told = fsseg("export", str(cell_of(c).directory), "--to", "torchscript", cwd=folder)
    assert told.returncode == 0, told.stderr
    (file,) = folder.iterdir()
    assert file.name == "prototype_tiny_shapes5i_fold0_2shot.pt"
    extra = {"fsseg.json": ""}
    loaded = torch.jit.load(str(file), _extra_files=extra)
    assert json.loads(extra["fsseg.json"])["inputs"]["support_masks"] == [2, SIDE, SIDE]
    model = Predictor.from_checkpoint(cell_of(c).directory, "cpu").model
    for _, supports, masks, query in episodes(2):
        with torch.no_grad():
            found = loaded(supports, masks, query)
        torch.testing.assert_close(found, expected(model, supports, masks, query), rtol=1e-5, atol=2e-5)
    again = fsseg("export", str(cell_of(c).directory), "--to", "torchscript", cwd=folder)
    assert again.returncode == 1
    assert again.stderr.startswith(f"error: {file.name} is there already\n  -> remove it")


def test_safetensors_hold_the_weights_of_the_checkpoint(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    assert (
        fsseg("export", str(run / "checkpoints" / "last.pt"), "--to", "safetensors", "--out", str(path)).returncode == 0
    )
    trained = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["model"]
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(trained)
        assert all(torch.equal(file.get_tensor(name), value) for name, value in trained.items())
        settings = json.loads(file.metadata()["fsseg"])["settings"]
    assert (settings["model.name"], settings["model.channels"], settings["backbone.name"]) == ("abcb", 16, "tiny")
    assert not [key for key, value in settings.items() if isinstance(value, str) and "/" in value]


def test_votes_of_several_shots_are_refused_where_images_are_padded() -> None:
    assert unfit(restored("hsnet", 1).cfg) is None
    assert unfit(restored("hsnet", 2, "squash").cfg) is None
    fault = unfit(restored("hsnet", 2).cfg)
    assert fault is not None
    assert "method=hsnet with shot=2" in fault.what
    assert "--to safetensors" in fault.fix


class Looks(nn.Module):
    """A method that looks at a value of the mask, as no recorded one may."""

    def forward(self, batch: Batch) -> SimpleNamespace:
        scale = 2.0 if bool((batch.support_masks == 1).float().mean() > 0.4) else 1.0
        return SimpleNamespace(logits=scale * batch.query_image[:, :2])


def test_what_would_hold_for_the_recorded_mask_only_is_refused() -> None:
    with pytest.raises(UserError, match="method=abcb backbone=tiny cannot be recorded as one function") as caught:
        record(replace(restored("abcb"), model=Looks()))  # type: ignore[arg-type]
    assert "--to safetensors" in caught.value.fix


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_a_file_that_computes_something_else_is_refused(wrong: float) -> None:
    segmenter = Segmenter(restored("prototype").model)
    example = next(exporting.episodes(1, SIDE))

    def run(inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        with torch.no_grad():
            return wrong * segmenter.own(*inputs)

    with pytest.raises(UserError, match="computes something else than the model"):
        exporting._checked(segmenter, example, run)


def test_formats_and_packages_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fsseg("export", str(tmp_path), "--to", "tflite").stderr == (
        "error: --to tflite is no format\n  -> choose one of onnx, torchscript, safetensors\n"
    )
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    told = fsseg("export", str(tmp_path), "--to", "onnx")
    assert "needs the package onnxscript" in told.stderr
    assert "pip install 'fsseg[export]'" in told.stderr


def test_the_description_names_no_place_of_this_machine() -> None:
    made = restored("prototype")
    cfg = composed(Path("/secret/data"), Path("/secret/out"), "method=prototype", "train.enabled=false",
                   "backbone=resnet50", "backbone.weights=/secret/weights.pth").cfg  # fmt: skip
    assert "secret" not in json.dumps(description(replace(made, cfg=cfg)))
