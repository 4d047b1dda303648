"""The settings of a training step: parts of a batch, optimiser, rate factors, number formats, compilation."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import cell_of, composed, done, fork_ranks, run_and_print
from torch import nn

from fsseg.config.schema import TrainConfig
from fsseg.data.loader import training_loader, training_plan
from fsseg.data.registry import checked_source
from fsseg.engine import checkpoint, optimiser, precision
from fsseg.engine.distributed import share
from fsseg.errors import UserError
from fsseg.model import build_model
from fsseg.process.ranks import Ranks
from fsseg.run import run

CPU = torch.device("cpu")
# Corners of 255 by rotation differ from image to image, so the mean over parts of a batch is not the batch's mean.
TURNED = ("dataset.rotate_degrees=40", "eval.enabled=false", "train.max_steps=4")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


def trained(c: Any) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Curves of a run's losses and their terms, and its weights."""
    cell = cell_of(c)
    curves = {name: values for name, (_, values) in cell.curves().items() if name.startswith("train/")}
    return curves, torch.load(cell.checkpoint, weights_only=True)["model"]


def assert_same(one: Any, other: Any) -> None:
    (curves, weights), (other_curves, other_weights) = trained(one), trained(other)
    assert curves.keys() == other_curves.keys()
    for name, values in curves.items():
        assert other_curves[name] == pytest.approx(values, rel=1e-4), name
    for name, tensor in weights.items():
        assert torch.allclose(other_weights[name], tensor, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("clip", ["null", "0.05"])
def test_four_parts_of_four_train_as_a_batch_of_sixteen(clip: str, root: Path, tmp_path: Path) -> None:
    line = (*TURNED, "train.batch_size=16", f"train.clip_grad_norm={clip}")
    whole, parts = composed(root, tmp_path, *line, "name=whole"), composed(
        root, tmp_path, *line, "train.accumulate=4", "name=parts"
    )  # fmt: skip
    done(whole)
    done(parts)
    assert cell_of(parts).fingerprint == cell_of(whole).fingerprint
    curves, _ = trained(whole)
    assert curves.keys() == {"train/loss", *(f"train/{n}" for n in ("p_1", "p_2", "p_3", "p_hat_1", "p_hat_2"))}
    assert max(abs(a - b) for a, b in pairwise(curves["train/loss"])) > 1e-3
    assert_same(whole, parts)


def test_parts_of_a_batch_draw_the_dropout_of_the_batch(root: Path, tmp_path: Path) -> None:
    line = ("method=pfenet", *TURNED, "train.batch_size=4", "train.max_steps=3")
    whole, parts = (composed(root, tmp_path, *line, f"train.accumulate={n}", f"name=in{n}") for n in (1, 4))
    done(whole)
    done(parts)
    assert_same(whole, parts)


@pytest.mark.process
def test_parts_of_two_processes_train_as_one_batch(root: Path, tmp_path: Path) -> None:
    line = (*TURNED, "train.batch_size=7")
    whole = composed(root, tmp_path / "one", *line)
    done(whole)
    shared = composed(root, tmp_path / "two", *line, "train.accumulate=3")  # of 3 and of 4 episodes
    for status, text in fork_ranks(run_and_print, shared, folder=tmp_path / "logs"):
        assert status == 0, text
    assert_same(whole, shared)


def test_more_parts_than_a_process_has_episodes_are_refused() -> None:
    assert [len(share(7, Ranks(rank, 2), 3)) for rank in (0, 1)] == [3, 4]
    with pytest.raises(UserError, match=r"train\.accumulate=4 cannot split the 3 episodes of a process") as caught:
        share(7, Ranks(1, 2), 4)
    assert "3 or less" in caught.value.fix


def test_a_batch_falls_into_its_parts_in_order(root: Path, tmp_path: Path) -> None:
    cfg = composed(root, tmp_path, "train.batch_size=7").cfg
    source = checked_source(cfg)
    batch = next(iter(training_loader(source, cfg, 0, 1, training_plan(source, cfg))))
    parts = batch.split(3)
    assert [len(part) for part in parts] == [2, 2, 3]
    assert [spec for part in parts for spec in part.specs] == batch.specs
    assert torch.equal(torch.cat([part.query_mask for part in parts]), batch.query_mask)
    assert parts[1].support_images.data_ptr() == batch.support_images[2].data_ptr()


class Small(nn.Module):
    """A model with the module names that the factors speak of; each weight is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("layer3", "layer4", "layer40")})
        self.neck = nn.Linear(1, 1, bias=False)

    def step(self, made: torch.optim.Optimizer, rate: float) -> dict[str, float]:
        """How far each weight went in a step with a gradient of 1."""
        before = {name: p.item() for name, p in self.named_parameters()}
        for p in self.parameters():
            p.grad = torch.ones_like(p)
        optimiser.set_rate(made, rate)
        made.step()
        return {name.removesuffix(".weight"): before[name] - p.item() for name, p in self.named_parameters()}


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(epochs=1, batch_size=1, **{"lr": 0.5, "weight_decay": 0.0, **changes})


def test_the_longest_name_gives_a_weight_its_factor() -> None:
    model = Small()
    factors = {"backbone": 0.5, "backbone.layer4": 0.0, "backbone.layer3": 0.1}
    made = optimiser.make_optimiser(model, settings(lr_factors=factors), CPU)
    assert model.step(made, 0.2) == pytest.approx(
        {"backbone.layer3": 0.02, "backbone.layer4": 0.0, "backbone.layer40": 0.1, "neck": 0.2}, abs=1e-6
    )
    # momentum 0.9 adds nine tenths of the first gradient; the schedule's rate is another one by now
    assert model.step(made, 0.1)["neck"] == pytest.approx(0.19, abs=1e-6)


def test_without_factors_there_is_the_one_group_of_earlier_checkpoints() -> None:
    model = Small()
    made = optimiser.make_optimiser(model, settings(), CPU)
    before = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.0)
    assert made.state_dict() == before.state_dict()


def test_a_module_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"train\.lr_factors: the model has no module backbone\.layer") as caught:
        optimiser.parameter_groups(Small(), {"neck": 1, "backbone.layer": 1})
    assert "backbone, neck" in caught.value.fix


def test_a_factor_of_what_does_not_train_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = Small()
    model.backbone["layer3"].requires_grad_(False)
    factors = {"backbone": 0.1, "backbone.layer3": 0.5, "backbone.layer4": 0.5, "backbone.layer40": 0.5}
    optimiser.parameter_groups(model, factors)  # all of the backbone that trains has a longer name
    assert caplog.messages == ["train.lr_factors: nothing of backbone.layer3 trains, so its factor changes nothing"]


def test_adamw_goes_by_its_betas_and_decays_apart_from_the_gradient() -> None:
    """Kingma and Ba's first step is lr * sign(g); the decay takes lr * weight_decay of the weight beside it."""
    model = Small()
    nn.init.constant_(model.neck.weight, 2.0)
    made = optimiser.make_optimiser(model, settings(optimizer="adamw", betas=[0.5, 0.75], weight_decay=0.1), CPU)
    assert model.step(made, 0.01)["neck"] == pytest.approx(0.01 + 0.01 * 0.1 * 2.0, rel=1e-4)
    # Second gradient 3: m = (0.5 * 0.5 + 0.5 * 3) / 0.75, v = (0.75 * 0.25 + 0.25 * 9) / 0.4375.
    weight = model.neck.weight.item()
    model.neck.weight.grad = torch.full((1, 1), 3.0)
    optimiser.set_rate(made, 0.01)
    made.step()
    moved = 0.01 * (1.75 / 0.75) / (2.4375 / 0.4375) ** 0.5 + 0.01 * 0.1 * weight
    assert weight - model.neck.weight.item() == pytest.approx(moved, rel=1e-4)


def test_a_resumed_adamw_run_with_factors_goes_on_exactly(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    line = ("train.optimizer=adamw", "+train.lr_factors={backbone.layer4:0.1,neck:2}", "eval.enabled=false",
            "train.max_steps=4")  # fmt: skip
    whole, cut = (composed(root, tmp_path, *line, f"name={name}") for name in ("whole", "cut"))
    done(whole)
    save = checkpoint.save

    def stopping(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
        save(path, state, previous)
        if state["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stopping)
    often = composed(root, tmp_path, *line, "name=cut", "train.checkpoint_minutes=0")
    with pytest.raises(KeyboardInterrupt):
        run(often.config, often.task_overrides)
    monkeypatch.setattr(checkpoint, "save", save)
    done(cut)
    states = [torch.load(cell_of(c).checkpoint, weights_only=True) for c in (whole, cut)]
    for name, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][name]), name
    kept, resumed = (state["optimiser"]["state"] for state in states)
    assert all(torch.equal(value, resumed[i][name]) for i, one in kept.items() for name, value in one.items())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_room_for_a_checkpoint_counts_what_the_optimiser_keeps(name: str, root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, f"train.optimizer={name}", "eval.enabled=false", "train.max_steps=1")
    done(c)
    expected = checkpoint.size_of(build_model(c.cfg), name)
    written = cell_of(c).checkpoint.stat().st_size
    assert expected <= written <= expected * 1.1 + 100_000  # names, generators, padding


def test_a_first_step_that_is_skipped_leaves_no_trace() -> None:
    """fp16 begins with a scale that overflows; a fused SGD of torch alone goes on from uninitialised memory then."""
    for seed in range(5):
        torch.manual_seed(seed)
        model, plain = (nn.Linear(50, 50) for _ in range(2))
        plain.load_state_dict(model.state_dict())
        made = optimiser.make_optimiser(model, settings(), torch.device("cuda"))  # which decides for a fused one
        assert made.param_groups[0]["fused"]
        other = torch.optim.SGD(plain.parameters(), lr=0.5, momentum=0.9, weight_decay=0.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        junk = [torch.full((50, 50), torch.nan) for _ in range(50)]
        del junk
        for step, factor in enumerate((4.0, 1.0, 1.0)):
            made.zero_grad()
            scaler.scale(model(torch.ones(1, 50)).sum() * factor).backward()
            scaler.step(made)
            scaler.update(1.0)
            if step > 0:
                other.zero_grad()
                plain(torch.ones(1, 50)).sum().backward()
                other.step()
            assert torch.allclose(model.weight, plain.weight), step


def test_a_fused_step_takes_a_weight_whose_first_gradient_comes_late() -> None:
    model = Small()
    made = optimiser.make_optimiser(model, settings(), torch.device("cuda"))
    model.neck.weight.grad = torch.ones(1, 1)
    made.step()
    state = made.state_dict()
    assert model.step(made, 0.5)["backbone.layer3"] == pytest.approx(0.5)
    del state["state"][0]  # as in a checkpoint of a run that was not fused
    again = optimiser.make_optimiser(model, settings(), torch.device("cuda"))
    assert optimiser.restore(again, state)
    # half of the momentum: 1 anew; 0.9 + 1 after one gradient; 0.9 * 1.9 + 1 after two
    assert model.step(again, 0.5) == pytest.approx(
        {"backbone.layer3": 0.5, "backbone.layer4": 0.95, "backbone.layer40": 0.95, "neck": 1.355}
    )


def test_a_state_in_another_memory_layout_takes_that_of_the_weights() -> None:
    """A run of an earlier version, or on a CPU, goes on on a GPU, whose kernels want one layout for all."""
    plain = nn.Conv2d(4, 4, 3)
    moved = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first, second = (optimiser.make_optimiser(model, settings(), CPU) for model in (plain, moved))
    plain.weight.grad = torch.rand_like(plain.weight)
    first.step()
    assert optimiser.restore(second, first.state_dict())
    buffer = second.state[moved.weight]["momentum_buffer"]
    assert torch.equal(buffer, plain.weight.grad)
    assert buffer.stride() == moved.weight.stride()


def test_other_settings_of_the_optimiser_are_told_but_not_another_device() -> None:
    state = optimiser.make_optimiser(Small(), settings(), CPU).state_dict()
    state["param_groups"][0]["fused"] = True
    made = optimiser.make_optimiser(Small(), settings(), CPU)
    assert optimiser.restore(made, state)
    assert made.param_groups[0]["fused"] is None
    assert not optimiser.restore(optimiser.make_optimiser(Small(), settings(momentum=0.5), CPU), state)


@pytest.mark.parametrize(
    ("amp", "device", "instructions", "expected"),
    [
        ("off", "cpu", True, "off"),
        ("bf16", "cpu", True, "bf16"),
        ("bf16", "cpu", False, "off"),
        ("fp16", "cpu", True, "off"),
        ("bf16", "cuda", False, "bf16"),
        ("fp16", "cuda", False, "fp16"),
    ],
)
def test_a_number_format_that_the_device_lacks_is_float32_with_a_warning(
    amp: str, device: str, instructions: bool, expected: str, monkeypatch: Any, caplog: Any
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: instructions, raising=False)
    assert precision.usable(amp, torch.device(device), "eval.amp") == expected
    assert (f"eval.amp={amp} needs a GPU" in caplog.text) is (expected != amp)


def test_bf16_on_a_cpu_computes_in_bf16_and_trains_much_the_same(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """torch does bf16 on every CPU, if slowly: here it is taken for one with the instructions."""
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: True)
    layer = nn.Conv2d(3, 4, 3)
    precision.prepare(layer, CPU, "bf16")
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    precision.prepare(layer, CPU, "off")
    assert layer.weight.is_contiguous()
    with precision.autocast(CPU, "bf16"):
        assert layer(torch.ones(1, 3, 5, 5)).dtype == torch.bfloat16
    with precision.autocast(CPU, "off"):
        assert layer(torch.ones(1, 3, 5, 5)).dtype == torch.float32
    full, half = (composed(root, tmp_path, *TURNED, f"train.amp={amp}", f"name={amp}") for amp in ("off", "bf16"))
    done(full)
    done(half)
    losses = [trained(c)[0]["train/loss"] for c in (full, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert losses[1] != losses[0]
    assert all(tensor.dtype != torch.bfloat16 for tensor in trained(half)[1].values())


def test_compiled_parts_serve_the_steps_alone_and_leave_no_name_in_the_checkpoint(
    root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """A backend that computes as torch does without it, and counts: the rest is torch's."""
    made: list[Any] = []
    used: list[bool] = []

    def counting(graph: Any, _: Any) -> Any:
        made.append(graph)

        def forward(*inputs: Any) -> Any:
            used.append(torch.is_grad_enabled())
            return graph.forward(*inputs)

        return forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    line = ("train.max_steps=3", "train.batch_size=10", "eval.every_epochs=1", "eval.base_episodes=3",
            "protocol.num_episodes=3", "train.accumulate=2")  # fmt: skip
    plain, switched = (composed(root, tmp_path, *line, f"train.compile={on}", f"name={on}") for on in ("false", "true"))
    scores = done(plain).metrics
    assert used == []
    assert done(switched).metrics == scores
    assert len(made) == 2  # a trial, and the backbone for the one shape of supports and queries
    assert len(used) > 1
    assert len(used) % (3 * 2) == 1  # equally often in each part of each step; no evaluation
    (curves, weights), (others, others_weights) = trained(plain), trained(switched)
    assert others == curves
    assert list(others_weights) == list(weights)
    assert all(torch.equal(tensor, others_weights[name]) for name, tensor in weights.items())


@pytest.mark.slow
def test_the_compiled_backbone_trains_along_the_same_curve(root: Path, tmp_path: Path) -> None:
    """Also where a run goes on without it: relative 1e-3 over ten steps."""
    line = ("eval.enabled=false", "train.max_steps=10", "train.batch_size=4")
    plain, switched = (composed(root, tmp_path, *line, f"train.compile={on}", f"name={on}") for on in ("false", "true"))
    done(plain)
    done(switched)
    losses = [trained(c)[0]["train/loss"] for c in (plain, switched)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert max(abs(a - b) for a, b in pairwise(losses[0])) > 1e-2


def test_a_machine_that_cannot_compile_is_told_before_the_first_step(
    root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(torch, "compile", refuse)
    c = composed(root, tmp_path, "train.compile=true")
    with pytest.raises(UserError, match=r"train\.compile=true: torch.compile does not work here \(no compiler found"):
        run(c.config, c.task_overrides)
