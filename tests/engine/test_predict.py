"""`fsseg.load` and `Predictor`: masks are those that an evaluation scores, probabilities the softmax of its logits."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
import yaml
from command_line import fsseg as command
from numpy.typing import NDArray
from PIL import Image
from runs import SMALL, cell_of, composed, done

import fsseg
from fsseg.cell.finished import Finished, open_finished
from fsseg.cell.key import file_digest
from fsseg.cell.record import RunDirectory
from fsseg.config.compose import compose
from fsseg.data.loader import evaluation_plan, evaluation_transform
from fsseg.data.registry import build_source
from fsseg.data.types import Episode, EpisodeSpec, collate
from fsseg.engine.predict import Answer, Predictor
from fsseg.engine.redraw import answer
from fsseg.errors import UserError
from fsseg.model import build_model

PROTOTYPE = ("method=prototype", "train.enabled=false")
SHAPES = "dataset.num_train=60", "dataset.num_val=60"
RUNS: dict[str, tuple[str, ...]] = {
    "trained": ("seed=5", "train.max_steps=1", "train.lr=1e-6", "model.iterations=2"),
    "two shots": (*PROTOTYPE, "shot=2"),
    "squash": (*PROTOTYPE, "protocol.fit=squash"),
    "pfenet": (*PROTOTYPE, "protocol.fit=pfenet", "model.threshold=background"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "shapes5i"


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """Finished runs of 6 episodes each."""
    found = {}
    for name, overrides in RUNS.items():
        c = composed(root, tmp_path_factory.mktemp("outputs"), *overrides)
        done(c)
        found[name] = open_finished(RunDirectory(cell_of(c).directory))
    return found


@pytest.fixture
def trained(runs: dict[str, Finished], tmp_path: Path) -> RunDirectory:
    """The trained run, to be spoilt."""
    return RunDirectory(Path(shutil.copytree(runs["trained"].cell.directory, tmp_path / "copied")))


def files(root: Path, name: str) -> tuple[Path, NDArray[np.uint8]]:
    """The image of a name and the class numbers of its pixels, read by Pillow alone."""
    (image,) = root.rglob(f"JPEGImages/{name}.jpg")
    return image, np.array(Image.open(image.parents[1] / "SegmentationClass" / f"{name}.png"))


def episodes(found: Finished) -> list[EpisodeSpec]:
    return evaluation_plan(build_source(found.cfg), found.cfg).episodes[0]


def supports(root: Path, spec: EpisodeSpec) -> list[tuple[Path, NDArray[np.uint8]]]:
    """Images with masks of 0, 1 and 255."""
    found = []
    for name in spec.support_ids:
        image, labels = files(root, name)
        found.append((image, np.where(labels == 255, 255, labels == spec.class_id + 1).astype(np.uint8)))
    return found


@pytest.mark.parametrize("name", RUNS)
def test_masks_are_those_that_were_scored(name: str, runs: dict[str, Finished], root: Path) -> None:
    found = runs[name]
    predictor, e = fsseg.load(found.cell.directory), np.load(found.cell.episodes_file)
    rows = {number: i for i, number in enumerate(e["number"].tolist())}
    pictures = {p.spec.number: p for p in answer(found, {(0, n) for n in rows}).pictures.values()}
    seen = 0
    for spec in episodes(found):
        image, labels = files(root, spec.query_id)
        mask = predictor.predict(image, supports(root, spec)).mask
        np.testing.assert_array_equal(mask, pictures[spec.number].prediction)
        both = (mask == 1) & (labels == spec.class_id + 1)
        assert int(both.sum()) == e["intersection"][rows[spec.number], -1]
        seen += int(mask.sum())
    assert seen > 1000


def test_the_probability_is_the_softmax_of_the_models_answer(runs: dict[str, Finished], root: Path) -> None:
    """By the other way into the model: whole episodes, as in training."""
    found = runs["trained"]
    spec = episodes(found)[0]
    predictor, transform = fsseg.load(found.cell.directory), evaluation_transform(found.cfg)
    ((support, mask),) = supports(root, spec)
    query, labels = (np.array(Image.open(path).convert("RGB")) for path in (files(root, spec.query_id)[0], support))
    given, wanted = transform(labels, mask, True), transform(query, np.zeros(query.shape[:2], np.uint8))
    episode = Episode(given.image[None], given.mask[None], given.picture[None], wanted.image, wanted.mask,
                      wanted.picture, spec, wanted.valid_size)  # fmt: skip
    with torch.inference_mode():
        logits = F.interpolate(predictor.model(collate([episode])).rounds[-1], (25, 25), mode="bilinear",
                               align_corners=True)  # fmt: skip
        height, width = wanted.valid_size
        own = F.interpolate(logits[..., :height, :width], query.shape[:2], mode="bilinear", align_corners=False)
    expected = own.softmax(1)[0, 1].numpy()
    got = predictor.predict(query, [(labels, mask)])
    assert got.probability.dtype == np.float32
    np.testing.assert_allclose(got.probability, expected, atol=1e-5)
    clear = np.abs(expected - 0.5) > 1e-5
    np.testing.assert_array_equal(got.mask[clear], (expected > 0.5)[clear])


@pytest.fixture(scope="module")
def predictor(runs: dict[str, Finished]) -> Predictor:
    return fsseg.load(runs["pfenet"].cell.directory)


@pytest.fixture
def two_classes(runs: dict[str, Finished], root: Path) -> tuple[list[Path], dict[str, list[tuple[Any, Any]]]]:
    """Three queries; two classes, the second of two shots, one of them an image of the first class, too."""
    specs = [s for s in episodes(runs["pfenet"]) if s.class_id != episodes(runs["pfenet"])[0].class_id]
    first, second = supports(root, episodes(runs["pfenet"])[0]), supports(root, specs[0])
    shared = (first[0][0], np.tri(*first[0][1].shape, dtype=bool))
    return [files(root, s.query_id)[0] for s in specs[:3]], {"cat": first, "dog": [*second, shared]}


def test_several_classes_are_each_alone_and_the_most_probable_one_wins(
    predictor: Predictor, two_classes: tuple[list[Path], dict[str, Any]]
) -> None:
    queries, given = two_classes
    for query in queries:
        got = predictor.predict(query, given)
        alone = [predictor.predict(query, given[name]).probability for name in ("cat", "dog")]
        assert got.classes == ("cat", "dog")
        for name, expected in zip(got.classes, alone):
            np.testing.assert_array_equal(got.probabilities[name], expected)
        cat, dog = alone
        by_hand = np.where((cat > 0.5) & (cat >= dog), 1, np.where(dog > 0.5, 2, 0))
        clear = (np.abs(cat - dog) > 1e-5) & (np.abs(cat - 0.5) > 1e-5) & (np.abs(dog - 0.5) > 1e-5)
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(got.mask[clear], by_hand[clear])
        np.testing.assert_array_equal(got.mask_of("dog"), got.mask == 2)
        np.testing.assert_array_equal(got.probability, np.maximum(cat, dog))


def test_an_image_goes_through_the_backbone_once(
    predictor: Predictor, two_classes: tuple[list[Path], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, given = two_classes
    passed: list[int] = []
    encode = predictor.model.encode
    monkeypatch.setattr(
        predictor.model, "encode", lambda images, *more: passed.append(len(images)) or encode(images, *more)
    )
    predictor._kept.clear()
    together = predictor.predict(queries, given, batch_size=2)
    assert passed == [1, 1, 2, 1]  # two different support images, then three queries
    one_by_one = [predictor.predict(query, given) for query in queries]
    assert passed[4:] == [1, 1, 1]  # the supports are known
    for a, b in zip(together, one_by_one):
        np.testing.assert_allclose(a.probability, b.probability, atol=1e-5)


def test_paths_pil_images_and_arrays_are_one(
    predictor: Predictor, two_classes: tuple[list[Path], dict[str, Any]], tmp_path: Path
) -> None:
    (query, *_), given = two_classes
    image, mask = given["cat"][0]
    Image.fromarray((mask == 1) * np.uint8(255)).save(tmp_path / "mask.png")
    mask = mask == 1
    ways: list[Any] = [
        (str(query), [(str(image), tmp_path / "mask.png")]),
        (Image.open(query), [(Image.open(image), Image.open(tmp_path / "mask.png"))]),
        (np.array(Image.open(query)), [(np.array(Image.open(image)), mask)]),
        (query, [[image, mask.astype(np.int64)]]),
    ]
    first, *others = [predictor.predict(*way) for way in ways]
    assert isinstance(first, Answer)
    assert first.mask.any()
    for other in others:
        np.testing.assert_array_equal(other.probability, first.probability)


def test_a_stream_reads_an_image_when_its_turn_comes(
    predictor: Predictor, two_classes: tuple[list[Path], dict[str, Any]]
) -> None:
    (query, *_), given = two_classes
    taken = []

    def queries() -> Iterator[Path]:
        for n in range(100):
            taken.append(n)
            yield query

    answers = predictor.stream(queries(), predictor.prepare(given["cat"]), batch_size=2)
    next(answers)
    assert taken == [0, 1]


def test_every_support_whose_object_is_smaller_than_a_cell_is_named(trained: RunDirectory) -> None:
    """A cell of 4 x 4 pixels at network size, 25, takes 32 x 32 of an image of 200 x 200, and 1067 of one of
    200 x 100, whose 100 become 12."""
    image, wide = np.full((200, 200, 3), 90, np.uint8), np.full((100, 200, 3), 90, np.uint8)
    mask, small = np.zeros((200, 200), np.uint8), np.zeros((100, 200), np.uint8)
    mask[70:102, 31:63] = small[:2, :2] = 255
    line = ["dataset=shapes5i", "dataset.image_size=25", "backbone=tiny", "device=cpu"]
    predictor = Predictor.from_config(compose([*PROTOTYPE, *line]).cfg)
    assert predictor.predict(image, [(image, mask)]).mask.shape == (200, 200)
    less = mask.copy()
    less[70, 31] = 0
    with pytest.raises(UserError) as error:
        predictor.prepare({"cat": [(image, mask), (image, less)], "dog": [(wide, small)]})
    assert str(error.value).splitlines() == [
        "2 faults:",
        "- the object in support image 2 of class cat (200 x 200) is smaller than a feature cell: "
        "1023 pixels, and a cell takes 1024",
        "  -> take an example that shows a larger object, or cut image and mask out around this one, or set a larger "
        "dataset.image_size than 25",
        "- the object in support image 1 of class dog (200 x 100) is smaller than a feature cell: "
        "4 pixels, and a cell takes 1067",
        "  -> take an example that shows a larger object, or cut image and mask out around this one, or set a larger "
        "dataset.image_size than 25",
    ]
    with pytest.raises(UserError, match="smaller than a feature cell") as error:
        fsseg.load(trained.directory).predict(image, [(image, less)])
    assert "image_size" not in error.value.fix


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"supports": None}, "supports are given as NoneType"),
        ({"supports": {"cat": None}}, "supports are given as NoneType"),
        ({"supports": "a.jpg"}, "supports are given as str"),
        ({"batch_size": -1}, "batch_size=-1 is no number of images"),
        ({"query": "."}, ". is a folder, where an image or mask is wanted"),
    ],
)
def test_calls_that_cannot_be_meant(given: dict[str, Any], told: str, predictor: Predictor) -> None:
    image, mask = np.full((50, 50, 3), 90, np.uint8), np.ones((50, 50), bool)
    with pytest.raises(UserError, match=re.escape(told)) as error:
        predictor.predict(**{"query": image, "supports": [(image, mask)], **given})
    assert error.value.fix


def test_an_object_that_its_method_refuses_is_named(trained: RunDirectory) -> None:
    text = trained.config_file.read_text()
    trained.config_file.write_text(text.replace("vanished_mask: best_cell", "vanished_mask: error"))
    state = torch.load(trained.checkpoint, weights_only=True)
    state["config"]["model"]["vanished_mask"] = "error"
    torch.save(state, trained.checkpoint)
    image, mask = np.full((200, 200, 3), 90, np.uint8), np.zeros((200, 200), np.uint8)
    mask[77:83] = 1  # more pixels than a cell takes, but less than half of each
    with pytest.raises(UserError, match="support image 1 of class object is smaller than one feature cell"):
        fsseg.load(trained.directory).predict(image, [(image, mask)])


# ------------------------------------------------------------------------------------------- what a checkpoint says


def test_a_checkpoint_alone_says_what_it_is(trained: RunDirectory, tmp_path: Path) -> None:
    alone = Path(shutil.move(trained.checkpoint, tmp_path / "alone.pt"))
    shutil.rmtree(trained.directory)
    predictor = fsseg.load(alone)
    assert predictor.about == "abcb on tiny, trained on shapes5i fold 0, step 1 of 1, 25 px"
    assert predictor.cfg.model.iterations == 2


def test_of_an_earlier_version_it_needs_its_run_directory(trained: RunDirectory, tmp_path: Path) -> None:
    state = torch.load(trained.checkpoint, weights_only=True)
    del state["config"]
    torch.save(state, trained.checkpoint)
    for place in (trained.checkpoint, trained.directory, tmp_path):
        assert fsseg.load(place).cfg.model.iterations == 2
    alone = shutil.move(trained.checkpoint, tmp_path / "alone.pt")
    with pytest.raises(
        UserError, match=r"alone.pt is a checkpoint of method=abcb, and says nothing of its other"
    ) as told:
        fsseg.load(alone)
    assert "run directory" in told.value.fix
    with pytest.raises(UserError, match="has no checkpoint, and method=abcb is nothing without training"):
        fsseg.load(trained.directory)


def test_a_folder_must_hold_one_run(trained: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is no run directory"):
        fsseg.load(tmp_path / "empty")
    shutil.copytree(trained.directory, tmp_path / "again")
    with pytest.raises(UserError, match=r"holds 2 runs, e\.g\. ") as told:
        fsseg.load(tmp_path)
    assert "name one run directory" in told.value.fix


def test_the_line_changes_what_belongs_to_the_machine_alone(trained: RunDirectory) -> None:
    made = Predictor.from_checkpoint(trained.checkpoint, "cpu", ["method=abcb", "num_workers=3"])
    assert made.cfg.num_workers == 3
    with pytest.raises(UserError, match=r"last.pt is of method=abcb, and the line says method=bam") as told:
        Predictor.from_checkpoint(trained.checkpoint, "cpu", ["method=bam"])
    assert "leave method= out" in told.value.fix
    with pytest.raises(UserError, match=r"model\.iterations=3"):
        Predictor.from_checkpoint(trained.checkpoint, "cpu", ["model.iterations=3"])


def test_a_stored_configuration_is_data(trained: RunDirectory) -> None:
    state = torch.load(trained.checkpoint, weights_only=True)
    for change, told in ((("name", "${oc.env:HOME}"), "interpolation"), (("seed", "many"), "seed")):
        broken = dict(state, config=dict(state["config"], **dict([change])))
        torch.save(broken, trained.checkpoint)
        with pytest.raises(UserError, match=told):
            fsseg.load(trained.checkpoint)


def test_a_method_that_must_be_trained_needs_a_checkpoint(trained: RunDirectory) -> None:
    line = [o for o in SMALL if not o.startswith(("model.", "variant"))]
    with pytest.raises(UserError, match="method=abcb is nothing without training"):
        Predictor.from_config(compose(line).cfg)
    with pytest.raises(UserError, match="method=pspnet segments the classes that it was trained on"):
        Predictor.from_config(compose(["method=pspnet", *line]).cfg)
    with pytest.raises(UserError, match="is a checkpoint of method=abcb backbone=tiny") as told:
        Predictor.from_config(compose(["method=baseline", f"checkpoint={trained.checkpoint}", *line]).cfg)
    assert told.value.fix
    with pytest.raises(UserError, match=r"nowhere\.pt: there is no such checkpoint"):
        fsseg.load("nowhere.pt")


def test_weights_that_are_not_here_are_named(tmp_path: Path) -> None:
    c = compose([*PROTOTYPE, "backbone=resnet18", "dataset.image_size=25"])
    weights = tmp_path / "weights.pth"
    c.cfg.backbone.weights = str(weights)
    with pytest.raises(UserError, match=str(weights)) as told:
        Predictor.from_config(c.cfg)
    assert told.value.fix


def test_a_run_from_before_a_setting_existed_predicts_as_it_did(
    trained: RunDirectory, runs: dict[str, Finished], root: Path
) -> None:
    """Neither its config.yaml nor its checkpoint holds the setting."""
    spec = episodes(runs["trained"])[0]
    query, examples = files(root, spec.query_id)[0], supports(root, spec)
    expected = fsseg.load(trained.directory).predict(query, examples).probability
    state = torch.load(trained.checkpoint, weights_only=True)
    stored = (state["config"], yaml.safe_load(trained.config_file.read_text()))
    for config in stored:
        del config["base_training"], config["check"], config["backbone"]["base_training"], config["protocol"]["fit"]
        del config["eval"]["amp"], config["train"]["lr_scale"]
    torch.save(state, trained.checkpoint)
    trained.config_file.write_text(yaml.safe_dump(stored[1]))
    for place in (trained.directory, trained.checkpoint):
        np.testing.assert_array_equal(fsseg.load(place).predict(query, examples).probability, expected)
    assert open_finished(trained).cfg.protocol.fit == "longer_side"


def test_the_advice_for_other_weights_works_in_each_place(root: Path, tmp_path: Path) -> None:
    """In Python, `fsseg predict` and `fsseg export`: the file of the run, which lies elsewhere now, is named."""
    weights, kept = tmp_path / "w.pth", tmp_path / "kept.pth"
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, kept)
    shutil.copy(kept, weights)
    c = composed(root, tmp_path / "out", *PROTOTYPE, "backbone=resnet18", f"backbone.weights={weights}",
                 "dataset.image_size=25", "protocol.num_episodes=1")  # fmt: skip
    done(c)
    run, (image, _) = (
        cell_of(c).directory,
        files(root, episodes(open_finished(RunDirectory(cell_of(c).directory)))[0].query_id),
    )
    torch.save({name: value + 1 for name, value in state.items()}, weights)
    with pytest.raises(UserError, match=rf"was scored with the weights {weights} \(SHA-256") as fault:
        fsseg.load(run)
    assert fault.value.fix == "name the file of the run: backbone.weights=FILE"
    word = f"backbone.weights={kept}"
    assert fsseg.load(run, overrides=[word]).digest == file_digest(kept)
    with pytest.raises(UserError, match=r"^train\.lr=1: only what belongs to this machine"):
        fsseg.load(run, overrides=["train.lr=1"])
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "m.png")
    Image.open(image).resize((64, 64)).save(tmp_path / "i.png")
    line = ("--support", f"{tmp_path}/i.png:{tmp_path}/m.png", str(tmp_path / "i.png"), "--out", str(tmp_path / "pred"))
    for words in (("predict", "--checkpoint", str(run), *line),
                  ("export", str(run), "--to", "safetensors", "--out", str(tmp_path / "m.safetensors"))):  # fmt: skip
        assert fault.value.fix in command(*words).stderr
        told = command(*words, word)
        assert told.returncode == 0, told.stderr


def test_a_training_free_run_keeps_its_random_weights_and_the_callers_random_numbers(runs: dict[str, Finished]) -> None:
    found = runs["two shots"]
    random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), torch.get_rng_state()
    made = fsseg.load(found.cell.directory)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    torch.manual_seed(found.cfg.seed)
    expected = build_model(found.cfg).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in made.model.state_dict().items())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "there are no supports"),
        ({}, "there are no supports"),
        ({"cat": [], "dog": [1]}, "a class has no support"),
        ([1], "support 1 of class object is no pair"),
        ([(np.zeros((4, 4)), np.ones((4, 4)))], "support image 1 of class object is an array of 4 x 4 of float64"),
        ([(None, np.ones((4, 4)))], "support image 1 of class object is given as NoneType"),
        ({str(n): [1] for n in range(255)}, "255 classes are more than the 254"),
    ],
)
def test_faulty_supports_are_told(given: Any, told: str, predictor: Predictor) -> None:
    with pytest.raises(UserError, match=told) as error:
        predictor.predict(np.zeros((9, 9, 3), np.uint8), given)
    assert error.value.fix
