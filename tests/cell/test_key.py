"""Who a cell is: its directory, and what of its settings counts."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsseg.cell import key as keys
from fsseg.cell import variant, weights
from fsseg.cell.key import CellKey, fingerprint, flatten, identity, variant_of
from fsseg.cell.variant import labels
from fsseg.config.compose import compose, composer
from fsseg.config.history import completed
from fsseg.config.schema import DatasetConfig

KEY = CellKey("runs", "pascal5i", "abcb", "resnet50", 1, 2, 0, "default")


def test_directory_is_the_key_without_time_stamps() -> None:
    assert str(KEY.path) == "runs/pascal5i/abcb/resnet50/1shot/default/fold2/seed0"


def test_variant_leaves_grid_and_neutral_keys_out_and_ignores_order() -> None:
    grid = ["dataset=pascal5i", "fold=2", "shot=5", "seed=1", "backbone=resnet50", "method=abcb", "name=x"]
    neutral = ["dataset.root=/data", "num_workers=4", "log_level=debug", "logger.figures=2", "hydra/launcher=slurm"]
    assert variant_of(grid + neutral) == "default"
    assert variant_of(["train.lr=0.004", "model.iterations=5"]) == "model.iterations-5+train.lr-0.004"
    assert (
        variant_of(["model.iterations=5", "train.lr=0.1", *grid, "train.lr=0.004"])
        == "model.iterations-5+train.lr-0.004"
    )


def test_variant_names_a_path_by_digest_and_keeps_two_apart() -> None:
    one, two = variant_of(["checkpoint=a/last.pt"]), variant_of(["checkpoint=b/last.pt"])
    assert one != two
    assert re.fullmatch(r"checkpoint-[0-9a-f]{8}", one)


@given(
    st.lists(st.tuples(st.from_regex(r"[a-z]{1,8}\.[a-z_]{1,20}", fullmatch=True), st.text(max_size=200)), max_size=12)
)
def test_variant_is_one_safe_name_whatever_the_values(pairs: list[tuple[str, str]]) -> None:
    name = variant_of([f"{k}={v}" for k, v in pairs])
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+\-]*", name)
    assert len(name) <= 96


def test_variants_that_look_alike_after_cleaning_stay_apart() -> None:
    assert variant_of(["protocol.seeds=[0,1]"]) != variant_of(["protocol.seeds=[0_1]"])


LONG = ["dataset.num_train=60", "dataset.num_val=60", "dataset.image_size=25", "model.channels=16", "train.max_steps=8",
        "train.batch_size=2", "protocol.num_episodes=6"]  # fmt: skip


def test_a_long_name_begins_with_whole_settings_of_model_and_training() -> None:
    digest = hashlib.sha256("+".join(sorted(o.replace("=", "-") for o in [*LONG, "train.lr=0.001"])).encode())
    for line in ([*LONG, "train.lr=0.001"], ["train.lr=1e-3", *LONG]):
        assert variant_of(line) == (
            f"train.batch_size-2+train.max_steps-8+model.channels-16+train.lr-0.001+more-{digest.hexdigest()[:8]}"
        )


def test_a_long_value_becomes_a_digest_by_itself() -> None:
    path = "/data/lists/some_long_name_of_a_file_of_training_images/of_a_folder/train.txt"
    digest = hashlib.sha256(f"dataset.train_list-{path}".encode()).hexdigest()[:8]
    line = [f"dataset.train_list={path}", "train.lr=0.004", "model.iterations=5"]
    assert variant_of(line) == f"model.iterations-5+train.lr-0.004+dataset.train_list-{digest}"


@given(
    st.lists(st.tuples(st.from_regex(r"[a-z]{1,8}\.[a-z_]{1,20}", fullmatch=True), st.text(max_size=200)), max_size=12)
)
def test_no_name_that_is_not_too_long_has_changed(pairs: list[tuple[str, str]]) -> None:
    """The rule of all versions, written anew; of values that a sweep hands on as they are."""
    last = {k: v for k, v in pairs if not k.startswith("hydra") and not re.search("(?i)true|false|[0-9]", v)}
    last = {k: v for k, v in last.items() if not variant.is_neutral(k)}
    full = "+".join(f"{k}-{v}" for k, v in sorted(last.items())) or "default"
    safe = re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9._+\-]", "_", full)).strip("_.")
    if safe == full and len(full) <= 96:
        assert variant_of([f"{k}={v}" for k, v in last.items()]) == full
    elif len(safe) <= 86:
        digest = hashlib.sha256(full.encode()).hexdigest()[:8]
        assert variant_of([f"{k}={v}" for k, v in last.items()]) == f"{safe.rstrip('_.+-')}-{digest}"


VALUES = ["false", "TRUE", "True", "1e-3", "1_000", "+5", "007", "0x1", ".5", "5.", "1E5", "-0.0", "abc", "1.10",
          "1e+5", "0b1", "1.0", "1_0.2_5", "e5", "null", "3e2",
          "-1", "0", "00.5", "1e-7", "12345678901234567890"]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_a_value_has_one_spelling_that_of_a_sweep(value: str) -> None:
    """Hydra itself is the reference."""
    with composer() as c:
        swept = c.swept([f"train.lr={value}"])
    assert variant_of([f"train.lr={value}"]) == variant_of(swept)


def test_labels_are_the_parts_that_differ() -> None:
    assert labels(dict.fromkeys(["a.b-1+lr-0.1", "a.b-1+lr-1e+5", "default"])) == (
        {"a.b-1+lr-0.1": "lr-0.1", "a.b-1+lr-1e+5": "lr-1e+5", "default": ""}, "a.b-1",
    )  # fmt: skip
    assert labels({"a.b-1": None}) == ({"a.b-1": "a.b-1"}, "")
    assert labels({"a.b-1": None}, rows=2) == ({"a.b-1": ""}, "a.b-1")  # methods tell the rows apart
    assert labels({"default": None}, rows=2) == ({"default": ""}, "")
    assert labels(dict.fromkeys(["a-1", "b-2"])) == ({"a-1": "a-1", "b-2": "b-2"}, "")
    assert labels(dict.fromkeys(["a-1", "a-1+b-2"])) == ({"a-1": "", "a-1+b-2": "b-2"}, "a-1")
    assert labels(dict.fromkeys(["a-1", "a-1+b-2", "default"]))[0] == {
        "a-1": "a-1",
        "a-1+b-2": "a-1+b-2",
        "default": "",
    }


def test_labels_of_shortened_names_come_from_the_overrides() -> None:
    lines = [[*LONG, "dataset.ambient=0.25", f"protocol.min_pixels={n}"] for n in (100, 200)]
    names = [variant_of(line) for line in lines]
    assert all("min_pixels" not in name for name in names)
    found, shared = labels(dict(zip(names, lines)))
    assert list(found.values()) == ["protocol.min_pixels-100", "protocol.min_pixels-200"]
    assert shared == "+".join(sorted(o.replace("=", "-") for o in lines[0][:-1]))


def test_fingerprint_ignores_what_cannot_change_the_numbers() -> None:
    base = {"train": {"lr": 0.1, "checkpoint_minutes": 5}, "dataset": {"root": "/a"}, "num_workers": 2, "name": "x"}
    same = {"train": {"lr": 0.1, "checkpoint_minutes": 9}, "dataset": {"root": "/b"}, "num_workers": 0, "name": "y"}
    other = {**base, "train": {"lr": 0.2, "checkpoint_minutes": 5}}
    assert fingerprint(identity(base)) == fingerprint(identity(same))
    assert fingerprint(identity(base)) != fingerprint(identity(other))


def test_fingerprint_sees_the_content_of_a_checkpoint_not_its_path(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    prints = [fingerprint(identity({"checkpoint": str(tmp_path / n)})) for n in "abc"]
    assert prints[0] == prints[1] != prints[2]


def test_a_list_file_counts_by_content(tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text("2007_000032\n")
    a, b = (identity({"dataset": {"train_list": str(tmp_path / n)}}) for n in ("one.txt", "two.txt"))
    assert a == b
    assert identity({"dataset": {"train_list": "part_train"}})["dataset.train_list"] == "part_train"


NAMED_LISTS = {"pascal5i", "shapes5i"}


@pytest.mark.parametrize("name", sorted(DatasetConfig.choices()))
def test_the_schema_says_whether_a_list_without_a_folder_is_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("a\n")
    digest = hashlib.sha256(b"a\n").hexdigest()[:16]
    stored = {"dataset": {"name": name, "val_list": "mine"}}
    assert identity(stored)["dataset.val_list"] == ("mine" if name in NAMED_LISTS else f"content {digest}")
    schema = DatasetConfig.named(name)
    monkeypatch.setattr(schema, "LISTS_ARE_FILES", not schema.LISTS_ARE_FILES)
    assert identity(stored)["dataset.val_list"] == (f"content {digest}" if name in NAMED_LISTS else "mine")


def test_the_pool_and_the_list_that_it_sets_are_one_setting(tmp_path: Path, monkeypatch) -> None:
    def mark(*line: str) -> str:
        return fingerprint(identity(compose(["dataset=pascal5i", *line]).resolved))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "list.txt").write_text("2007_000032\n")
    (tmp_path / "moved.txt").write_text("2007_000032\n")
    by_pool = mark("protocol.train_pool=my/list.txt")
    for line in ("dataset.train_list=my/list.txt", "protocol.train_pool=./moved.txt",
                 'dataset.train_list="~/moved.txt"', f"protocol.train_pool={tmp_path}/moved.txt"):  # fmt: skip
        assert mark(line) == by_pool
    (tmp_path / "my" / "list.txt").write_text("2007_000039\n")
    others = {mark(), mark("protocol.train_pool=my/list.txt"), mark("protocol.train_pool=merged_5953")}
    assert len(others | {by_pool}) == 4
    assert mark("protocol.train_pool=train_aug_10582") == mark("dataset.train_list=null") == mark()
    assert mark("dataset.train_list=moved.txt") != by_pool  # a name, whatever lies in the current folder


def test_flatten_joins_keys_with_dots() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": [1]}) == {"a.b": 1, "a.c.d": 2, "e": [1]}


@given(st.builds(
    CellKey, *[st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,30}", fullmatch=True)] * 4,
    *[st.integers(1, 50), st.integers(0, 9), st.integers(0, 10**6)],
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,90}", fullmatch=True),
))  # fmt: skip
def test_the_key_is_read_back_from_its_path(key: CellKey) -> None:
    assert CellKey.from_path(Path("/somewhere/outputs") / key.path) == key
    assert CellKey.from_path(Path(key.path)) == key
    assert CellKey.from_path(Path("/somewhere") / key.path / "figures") is None


def test_weights_count_by_content_unless_they_are_the_standard_ones(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("mine.pth", "same.pth", "other.pth")}
    for name, content in (("mine.pth", b"1"), ("same.pth", b"1"), ("other.pth", b"2")):
        files[name].write_bytes(content)

    def found(weights: Path | None, pretrained: bool = True) -> dict[str, object]:
        own = None if weights is None else str(weights)
        return identity({"backbone": {"name": "resnet50", "pretrained": pretrained, "weights": own}})

    key = "backbone.weights (content)"
    assert found(files["mine.pth"])[key] == hashlib.sha256(b"1").hexdigest()[:16]
    assert found(files["mine.pth"]) == found(files["same.pth"]) != found(files["other.pth"])
    assert key not in found(None)
    assert found(files["mine.pth"], pretrained=False) == found(None, pretrained=False)  # not read then


def test_the_standard_weights_are_known_by_the_digest_in_torchvisions_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    assert len(weights.FILES) == 3
    for name in weights.FILES:
        url, digest = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url, weights.digest(name)
        assert weights.url(name) == url
        assert url.endswith(f"{name}-{digest}.pth")
        monkeypatch.setattr(keys, "file_digest", lambda path, digest=digest: f"{digest}00000000")
        given_them = {"backbone": {"name": name, "pretrained": True, "weights": "a/copy.pth"}}
        assert "backbone.weights (content)" not in identity(given_them)


def test_weights_of_the_standard_name_count_by_content_however_the_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resnet50-0676ba61.pth").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.pth").symlink_to("resnet50-0676ba61.pth")
    for path in ("resnet50-0676ba61.pth", "./resnet50-0676ba61.pth", str(tmp_path / "link.pth")):
        found = identity({"backbone": {"name": "resnet50", "pretrained": True, "weights": path}})
        assert found["backbone.weights (content)"] == hashlib.sha256(b"mine").hexdigest()[:16]
        assert "backbone.weights" not in found


def test_settings_that_are_gone_still_count_with_the_value_they_had() -> None:
    """Fingerprints of runs made before must stay: this one was computed before the two settings went."""
    flat = {"dataset.hue_shift": 0.0, "train.warmup_steps": 0, "train.lr": 0.1}
    text = json.dumps(flat, sort_keys=True, separators=(",", ":"))
    assert fingerprint(identity({"train": {"lr": 0.1}})) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_runs_of_all_versions_of_a_cell_are_one_row() -> None:
    """The names were given by version 0.1.0 before it: as the line wrote its values, and cut in the middle."""
    key = CellKey("runs", "shapes5i", "abcb", "tiny", 1, 0, 0, "train.lr-1e-3")
    assert keys.named_now(key, ["fold=0", "train.lr=1e-3"]).variant == "train.lr-0.001"
    named = replace(key, variant="mine")
    assert keys.named_now(named, ["variant=mine", "train.lr=1e-3"]) == named
    same = replace(key, variant="train.lr-0.004")
    assert keys.named_now(same, ["train.lr=0.004"]) == same
    long = ["backbone.pretrained=false", "model.iterations=2", "train.momentum=0.8", "train.lr=0.003",
            "train.weight_decay=0.0002", "train.poly_power=0.8"]  # fmt: skip
    full = "+".join(sorted(o.replace("=", "-") for o in long))
    cut = f"{full[:86].rstrip('_.+-')}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"
    assert keys.named_now(replace(key, variant=cut), long).variant == variant_of(long)
    assert variant.may_be_earlier(cut)
    assert all(map(variant.may_be_earlier, ("train.lr-1e-3", "a.b-false+c.d-3", "x.y-2.")))
    assert not any(map(variant.may_be_earlier, ("train.lr-0.004", "model.iterations-5+train.lr-0.001", "mine")))


def test_settings_that_came_later_leave_the_cells_of_earlier_versions_where_they_were() -> None:
    """A protocol of today with the rules that every run had is no other identity than one that knew none of them."""
    now = {"dataset": {"name": "coco20i", "coco_masks": "union", "train_list": None, "val_list": None},
           "protocol": {"min_pixels": 9, "list_rule": "pixels", "fit": "longer_side", "undrawn": "left_out",
                        "query_class": "listed", "train_query": "image", "unlike": ["words"]},
           "train": {"lr": 0.1, "lr_scale": 1.0}, "eval": {"every_epochs": 0}}  # fmt: skip
    then = {"dataset": {"name": "coco20i"}, "protocol": {"min_pixels": 9}, "train": {"lr": 0.1}}
    assert identity(now) == identity(then)
    for node, key, value in (("dataset", "coco_masks", "painted"), ("protocol", "fit", "squash"),
                             ("train", "lr_scale", 10.0), ("eval", "every_epochs", 1)):  # fmt: skip
        changed = {**now, node: {**now[node], key: value}}
        assert identity(changed)[f"{node}.{key}"] == value


def test_a_pool_counts_by_the_list_it_sets_and_the_standard_one_by_the_name_it_had() -> None:
    def pascal(pool: str | None) -> dict[str, object]:
        return identity({"dataset": {"name": "pascal5i", "train_list": pool}, "protocol": {"train_pool": pool}})

    assert pascal("train_aug_10582") == pascal(None)
    assert pascal("merged_5953") == pascal(None) | {"dataset.train_list": "merged_5953"}


def test_a_protocol_recorded_before_its_rules_were_named_is_the_same_as_today() -> None:
    then = {"name": "standard", "min_pixels": 2048}
    now = then | {"train_pool": "train_aug_10582", "list_rule": "pixels", "fit": "longer_side", "undrawn": "left_out",
                  "query_class": "listed", "train_query": "image", "image_size": None, "unlike": []}  # fmt: skip
    assert completed(then) == completed(now)
    assert completed(now | {"train_pool": "merged_5953"}) != completed(then)
    assert completed(now | {"fit": "squash"}) != completed(then)
