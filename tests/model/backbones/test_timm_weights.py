"""Weights that timm publishes: from its cache without a network, recorded by content, and what is told without them."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import composed, done
from safetensors.torch import save_file

from fsseg.cli.data import prepare
from fsseg.config.schema import TimmConfig
from fsseg.errors import UserError
from fsseg.model.backbones import Backbone, build_backbone, timm_weights
from fsseg.model.backbones.timm_weights import TimmWeights

timm = pytest.importorskip("timm")  # a part of the test extra
hub = pytest.importorskip("huggingface_hub")
VIT, CONV = "vit_tiny_patch16_224", "mobilenetv3_small_050"
Put = Callable[[str, str, dict[str, torch.Tensor] | bytes], Path]


def built(model: str, **more: Any) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(TimmConfig("timm", model=model, **more))


def state_of(model: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    state: dict[str, torch.Tensor] = timm.create_model(model).state_dict()
    return state


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """An empty cache of the hub, without a network; and a function that puts a file there as the hub does."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)

    def write(model: str, name: str, content: dict[str, torch.Tensor] | bytes) -> Path:
        repository = cache / f"models--{timm.get_pretrained_cfg(model).hf_hub_id.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0123abcd")
        file = repository / "snapshots" / "0123abcd" / name
        file.parent.mkdir(parents=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            save_file(content, file) if name.endswith(".safetensors") else torch.save(content, file)
        return file

    return write


@pytest.mark.parametrize(("model", "name"), [(VIT, "model.safetensors"), (CONV, "pytorch_model.bin")])
def test_weights_come_from_timms_cache_and_are_known_by_content(
    model: str, name: str, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, made, create = state_of(model), [], timm.create_model
    file = put(model, name, state)
    monkeypatch.setattr(timm, "create_model", lambda *a, **more: made.append(more) or create(*a, **more))
    backbone = built(model)
    assert len(made) == 1  # nothing is built twice
    assert all(torch.equal(value, state[key]) for key, value in backbone.network.state_dict().items())
    assert backbone.weights == {"file": str(file), "digest": hashlib.sha256(file.read_bytes()).hexdigest()[:16]}


def test_the_random_numbers_after_it_do_not_depend_on_where_the_weights_lay(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def next_number(**more: Any) -> float:
        built(CONV, **more)
        return float(torch.rand(()))

    state = state_of(CONV)
    torch.save(state, tmp_path / "given.pth")
    found = [next_number(pretrained=False), next_number(weights=str(tmp_path / "given.pth"))]
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url, timeout: None)  # the hub has it
    monkeypatch.setattr(hub, "hf_hub_download", lambda repository, name, revision: str(put(CONV, name, state)))
    found += [next_number(), next_number()]  # by download, then from the cache
    assert len(set(found)) == 1


def test_without_cache_and_network_it_says_so_after_one_look(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, look = [], hub.get_hf_file_metadata

    def counted(url: str, timeout: float) -> Any:
        asked.append((url.partition("timm/")[2], timeout))
        return look(url, timeout=timeout)

    monkeypatch.setattr(hub, "get_hf_file_metadata", counted)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *a, **k: pytest.fail("asks for minutes"))
    with pytest.raises(UserError) as caught:
        built(VIT)
    assert asked == [("vit_tiny_patch16_224.augreg_in21k_ft_in1k/resolve/main/model.safetensors", 10.0)]
    assert caught.value.what.startswith(
        f"the pretrained weights of {VIT} are not in timm's cache and cannot be fetched"
    )
    for part in ("fsseg prepare --weights", "HF_HOME", "backbone.weights=", "backbone.pretrained=false"):
        assert part in caught.value.fix
    assert "\n" not in caught.value.what + caught.value.fix


def test_nothing_is_downloaded_for_a_model_that_does_not_serve(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *a, **k: pytest.fail("went to the network"))
    with pytest.raises(UserError, match="cannot be built as a backbone"):
        built("swin_tiny_patch4_window7_224")


def test_a_server_that_does_not_answer_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that takes what comes and says nothing, as behind a firewall."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm_weights, "_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/model.safetensors"
        monkeypatch.setattr(hub, "hf_hub_url", lambda *a, **k: url)
        started = time.monotonic()
        with pytest.raises(UserError, match="are not in timm's cache and cannot be fetched"):
            TimmWeights("m", "timm/m", ("model.safetensors", "pytorch_model.bin")).fetch()
    assert time.monotonic() - started < 30  # hub's own download waits five times, with pauses up to 8 seconds


@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_a_damaged_file_in_the_cache_is_told_by_name(content: bytes, put: Put) -> None:
    file = put(VIT, "model.safetensors", content)
    with pytest.raises(UserError, match="cannot be loaded as the weights of") as caught:
        built(VIT)
    assert str(file) in caught.value.what
    assert "\n" not in caught.value.what + caught.value.fix


def test_which_file_is_meant() -> None:
    def of(**about: Any) -> TimmWeights:
        source = SimpleNamespace(**{"hf_hub_id": "", "hf_hub_filename": None, "url": "", "custom_load": False, **about})
        known: Any = SimpleNamespace(get_pretrained_cfg=lambda model: source, __version__="1")
        return TimmWeights.of(known, "m")

    assert of(hf_hub_id="timm/m", url="u").names == ("model.safetensors", "pytorch_model.bin")
    assert of(hf_hub_id="timm/m", hf_hub_filename="x.bin").names == ("x.safetensors", "x.bin")
    assert of(hf_hub_id="timm/m", hf_hub_filename="x.safetensors").names == ("x.safetensors",)
    assert of(hf_hub_id="timm/m", custom_load=True, url="u").custom is False  # of the file at its address alone
    assert of(custom_load=True, url="u").custom is True
    with pytest.raises(UserError, match="timm 1 has no weights of it"):
        of()


def test_a_file_that_is_not_on_the_hub_lies_in_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = TimmWeights("m", url="https://host/folder/m-0123.pth")
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, place, **_: Path(place).write_text(url))
    assert weights.cached() is None
    file = weights.fetch()
    assert file == weights.cached() == tmp_path / "hub" / "checkpoints" / "m-0123.pth"
    assert file.read_text() == weights.url
    assert weights.way == f"from {weights.url} to {file}"


def test_prepare_says_where_the_weights_lie(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    file = put("mobilenetv1_100", "model.safetensors", b"any")
    prepare(["dataset=pascal5i", "backbone=mobilenet", "fold=0,1"], weights=True)
    assert capsys.readouterr().out == f"mobilenetv1_100: {file}\n"


def test_the_result_names_file_and_digest(put: Put, tmp_path: Path) -> None:
    file = put(VIT, "model.safetensors", state_of(VIT))
    line = ("method=prototype", "backbone=timm", f"backbone.model={VIT}", "dataset.image_size=64")
    result = done(composed(tmp_path / "data", tmp_path / "out", *line))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    assert result.provenance["weights"] == {"file": str(file), "digest": digest}
