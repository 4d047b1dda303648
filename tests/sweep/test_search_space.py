"""What a search may choose: spaces that cannot be are told before anything runs, the others give settings."""

from __future__ import annotations

import pytest

from fsseg.config.schema import ParameterConfig, SearchConfig
from fsseg.errors import UserError
from fsseg.sweep.search.run import check_metric
from fsseg.sweep.search.space import Parameter, Space, words

LR = ParameterConfig(low=0.001, high=0.1, log=True)


def space(**keys: ParameterConfig) -> Space:
    return Space.of(SearchConfig(space={key.replace("__", "."): value for key, value in keys.items()}))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"base_training__lr": LR}, "a base learner is trained on the images, too"),
        ({}, "search.space is empty"),
        ({"train__lr": ParameterConfig()}, "train.lr has neither choices nor a range"),
        ({"train__lr": ParameterConfig(low=0.1)}, "train.lr has neither choices nor a range"),
        ({"train__lr": ParameterConfig(low=0.1, high=0.01)}, "low=0.1 above high=0.01"),
        ({"train__lr": ParameterConfig(low=0.0, high=0.1, log=True)}, "low=0, which has no logarithm"),
        ({"train__lr": ParameterConfig(low=0.0, high=float("nan"))}, "an end that is no number"),
        ({"train__lr": ParameterConfig(low=0.0, high=1.0, step=0.0)}, "step=0"),
        ({"train__lr": ParameterConfig(low=0.1, high=1.0, step=0.1, log=True)}, "both log and step"),
        ({"model__iterations": ParameterConfig(low=1, high=2.5, whole=True)}, "no whole number"),
        ({"model__iterations": ParameterConfig(low=1, high=5, step=0.5, whole=True)}, "whole: true and step=0.5"),
        ({"train__optimizer": ParameterConfig(choices=[])}, "no choices"),
        ({"train__optimizer": ParameterConfig(choices=["sgd", "sgd"])}, "a choice twice"),
        ({"train__optimizer": ParameterConfig(choices=[["sgd"]])}, "no plain value"),
        ({"train__optimizer": ParameterConfig(choices=["sgd"], low=1)}, "both choices and a range"),
        ({"fold": ParameterConfig(choices=[0, 1])}, "search.space has fold"),
        ({"seed": ParameterConfig(low=0, high=9, whole=True)}, "search.space has seed"),
        ({"shot": ParameterConfig(choices=[1, 5])}, "scored by different rules"),
        ({"eval__base_episodes": ParameterConfig(low=1, high=9, whole=True)}, "scored by different rules"),
        ({"num_workers": ParameterConfig(choices=[0, 1])}, "changes no number"),
        ({"name": ParameterConfig(choices=["a"])}, "names cells"),
        ({"train__lr": ParameterConfig(low=0.1, high=1, when={"method": "abcb"})}, "which the space does not have"),
        ({"train__lr": ParameterConfig(low=0.1, high=1, when={"train.momentum": 1}),
          "train__momentum": ParameterConfig(low=0, high=1)}, "which is a range"),
        ({"train__lr": ParameterConfig(low=0.1, high=1, when={"train.optimizer": "rmsprop"}),
          "train__optimizer": ParameterConfig(choices=["sgd", "adamw"])}, "rmsprop}, which train.optimizer never is"),
        ({"a": ParameterConfig(choices=[1], when={"b": 1}), "b": ParameterConfig(choices=[1], when={"a": 1})},
         "one waits for the other"),
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_is_told(keys: dict[str, ParameterConfig], told: str) -> None:
    with pytest.raises(UserError) as caught:
        space(**keys)
    assert told in caught.value.what
    assert caught.value.fix or "\n  -> " in caught.value.what  # of several faults each has its own


@pytest.mark.parametrize("metric", ["miou", "novel/miou", "metrics.miou"])
def test_novel_classes_are_no_metric(metric: str) -> None:
    with pytest.raises(UserError, match="have seen them"):
        check_metric(metric)
    check_metric("base/miou")
    with pytest.raises(UserError, match="is not a choice"):
        check_metric("accuracy")


def test_numbers_are_tried_with_four_digits_and_stay_within_the_range() -> None:
    rate = Parameter("train.lr", low=0.00123456, high=0.0987654)
    assert rate.rounded(0.012345678) == 0.01235
    assert rate.rounded(0.0987654) == 0.0987654  # rounded up it would be out of the range
    assert rate.rounded(0.00123456) == 0.001235
    assert Parameter("x", low=0, high=1, step=0.05).rounded(0.30000000000000004) == 0.3
    assert Parameter("x", low=1, high=5, whole=True).rounded(3.0) == 3


def test_both_ends_and_every_choice_are_in_the_corners() -> None:
    one = space(
        train__lr=LR, train__optimizer=ParameterConfig(choices=["sgd", "adamw"]),
        train__weight_decay=ParameterConfig(low=0.0, high=0.01, when={"train.optimizer": "adamw"}),
    )  # fmt: skip
    corners = list(one.corners())
    assert corners[0] == {"train.lr": 0.001, "train.optimizer": "sgd"}
    assert {"train.lr": 0.1, "train.optimizer": "sgd"} in corners
    assert {"train.lr": 0.001, "train.optimizer": "adamw", "train.weight_decay": 0.01} in corners
    assert all("train.weight_decay" not in corner for corner in corners if corner["train.optimizer"] == "sgd")


def test_what_depends_on_another_key_comes_after_it() -> None:
    one = space(
        train__weight_decay=ParameterConfig(low=0.0, high=0.01, when={"train.optimizer": "adamw"}),
        train__optimizer=ParameterConfig(choices=["sgd", "adamw"]),
    )
    assert [p.key for p in one.parameters] == ["train.optimizer", "train.weight_decay"]


def test_a_grid_has_every_choice_once_and_nothing_that_does_not_apply() -> None:
    one = space(
        train__optimizer=ParameterConfig(choices=["sgd", "adamw"]),
        train__weight_decay=ParameterConfig(low=0.0, high=0.2, step=0.1, when={"train.optimizer": "adamw"}),
        model__iterations=ParameterConfig(low=1, high=2, whole=True),
    )
    decays = [{}, *({"train.weight_decay": decay} for decay in (0.0, 0.1, 0.2))]
    expected = [
        {"train.optimizer": "sgd" if not decay else "adamw", "model.iterations": rounds, **decay}
        for decay in decays for rounds in (1, 2)
    ]  # fmt: skip
    found = list(one.grid())
    assert len(found) == 8
    assert all(choice in found for choice in expected)
    with pytest.raises(UserError, match=r"search.sampler=grid: train.lr is a range without steps"):
        space(train__lr=LR).grid()


def test_settings_are_written_as_overrides() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    chosen = {"a": "x y", "b": 1e-05, "c": None, "d": True, "e": "null", "f": "it's", "g": 3, "h": "sgd", "i": "1e5"}
    found = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(words(chosen))}
    assert {key: str(value) if isinstance(value, str) or hasattr(value, "text") else value
            for key, value in found.items()} | {} == found  # fmt: skip
    plain = {key: getattr(value, "text", value) for key, value in found.items()}
    assert plain == chosen
