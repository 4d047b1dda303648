"""Every file under conf/ composes, schemas refuse what they should, and `faults` reports everything at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fsseg.config import schema as config
from fsseg.config.checks import faults, validate
from fsseg.config.entry import explain, launch, typed
from fsseg.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"
OPTIONS = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name not in ("hydra", "schema")
]
FITTING = {
    # for evaluation alone
    **{f"dataset={name}": ["method=prototype"] for name in ("isic", "deepglobe", "chest_xray", "suim")},
    "backbone=convnext_tiny": ["protocol.image_size=80"],
    "backbone=dinov2_s": ["protocol.image_size=84"],
    "backbone=dinov2_b": ["protocol.image_size=84"],
    "backbone=dinov3_b": ["protocol.image_size=80"],
    "backbone=timm": ["backbone.model=mobilenetv1_100"],
}
"""What a choice does not work without: sides for patches, a model."""


def composed(*overrides: str) -> DictConfig:
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def whats(*overrides: str) -> list[str]:
    return [fault.what for fault in faults(typed(composed(*overrides)))]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_file_composes_and_is_free_of_faults(option: str) -> None:
    cfg = composed(option, *FITTING.get(option, []))
    assert not OmegaConf.missing_keys(cfg)
    OmegaConf.resolve(cfg)
    assert faults(typed(cfg)) == []


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_file_begins_with_the_command_that_uses_it(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line != "# @package _global_"]
    assert lines[0].startswith("# python train.py ")
    assert f"{path.parent.name}={path.stem}" in lines[0]


@pytest.mark.parametrize("overrides", [(), ("dataset=pascal5i",), ("dataset=coco20i", "method=baseline")])
@pytest.mark.parametrize("protocol", ["standard", "hsnet", "pfenet", "bam", "hdmnet"])
def test_protocols_resolve_for_every_dataset(overrides: tuple[str, ...], protocol: str) -> None:
    cfg = typed(composed(*overrides, f"protocol={protocol}"))
    assert cfg.protocol.name == protocol
    assert cfg.protocol.num_episodes > 0
    assert isinstance(cfg.protocol.query_order, str)


def test_published_episode_counts() -> None:
    def counts(dataset: str, protocol: str) -> tuple[int, int]:
        cfg = typed(composed(f"dataset={dataset}", f"protocol={protocol}"))
        return cfg.protocol.num_episodes, len(cfg.protocol.seeds)

    # the table of evaluation protocols: HSNet 1000 x 1, PFENet 5000/20000 x 1, BAM 1000 x 5, HDMNet 1000/10000 x 10
    assert counts("pascal5i", "standard") == counts("coco20i", "standard") == (1000, 5)
    assert counts("pascal5i", "hsnet") == (1000, 1)
    assert (counts("pascal5i", "pfenet"), counts("coco20i", "pfenet")) == ((5000, 1), (20000, 1))
    assert counts("coco20i", "bam") == (1000, 5)
    assert (counts("pascal5i", "hdmnet"), counts("coco20i", "hdmnet")) == ((1000, 10), (10000, 10))


@pytest.mark.parametrize(
    ("protocol", "novel", "smallest", "pascal", "coco", "repeat", "scored", "ignore"),
    [
        # the table of rules that differ between published codes; coco20i and pascal5i differ in the query order alone
        ("standard", "drop", 2048, "cycle", "class_uniform", False, "original", True),
        ("hsnet", "background", 2048, "list_cycle", "class_uniform", True, "network", False),
        ("pfenet", "background", 2048, "first_n", "first_n", False, "original", True),
        ("bam", "drop", 2048, "first_n", "first_n", False, "original", True),
        ("hdmnet", "drop", 2048, "first_n", "first_n", False, "original", True),
    ],
)
def test_each_protocol_has_the_rules_of_its_code(
    protocol: str, novel: str, smallest: int, pascal: str, coco: str, repeat: bool, scored: str, ignore: bool
) -> None:
    for dataset, order in (("pascal5i", pascal), ("coco20i", coco)):
        rules = typed(composed(f"dataset={dataset}", f"protocol={protocol}")).protocol
        assert (rules.novel_in_training, rules.min_pixels, rules.query_order) == (novel, smallest, order)
        assert (rules.repeat_support, rules.scoring_size, rules.ignore_in_loss) == (repeat, scored, ignore)
        assert rules.episodes_file is None


def test_the_small_data_set_has_rules_of_its_size() -> None:
    rules = typed(composed("dataset=shapes5i", "protocol=standard")).protocol
    assert (rules.min_pixels, rules.num_episodes, rules.seeds, rules.query_order) == (150, 300, [0, 1, 2], "cycle")


def test_the_published_recipes_are_the_data_sets_own() -> None:
    pascal, coco = typed(composed("dataset=pascal5i")), typed(composed("dataset=coco20i"))
    assert (pascal.dataset.image_size, pascal.train.epochs, pascal.train.batch_size, pascal.train.lr) == (
        473,
        250,
        16,
        0.002,
    )
    assert (coco.dataset.image_size, coco.train.epochs, coco.train.batch_size, coco.train.lr) == (641, 70, 8, 0.005)
    assert (pascal.train.momentum, pascal.train.weight_decay, pascal.train.poly_power) == (0.9, 1e-4, 0.9)
    assert typed(composed("dataset=pascal5i", "train.lr=0.1")).train.lr == 0.1


@pytest.mark.parametrize(
    ("arguments", "rate"),
    [
        (["method=baseline"], 0.06),
        (["method=prototype"], 0.06),
        (["ablation=baseline"], 0.06),
        (["model.iterations=1"], 0.06),
        (["ablation=sm"], 0.02),
        ([], 0.02),
        (["method=baseline", "train.lr=0.02"], 0.02),
    ],
)
def test_generated_data_has_a_rate_for_models_of_one_round_and_one_for_the_others(
    arguments: list[str], rate: float
) -> None:
    assert typed(composed(*arguments)).train.lr == rate


def test_the_backbone_follows_the_data_set_unless_named() -> None:
    assert composed().backbone.name == "tiny"
    assert composed("dataset=pascal5i").backbone.name == composed("dataset=coco20i").backbone.name == "resnet50"
    assert composed("dataset=pascal5i", "backbone=resnet101").backbone.name == "resnet101"
    assert composed("backbone=tiny", "dataset=coco20i").backbone.name == "tiny"


@pytest.mark.parametrize(
    ("override", "named", "advice"),
    [
        ("train.lrr=1", "train.lrr", "train.lr"),
        ("lr=1", "lr", "train.lr"),
        ("model.iteration=2", "model.iteration", "model.iterations"),
        ("dataset.fit=squash", "dataset.fit", "did you mean protocol.fit?"),
        ("dataset.scoring_size=network", "dataset.scoring_size", "did you mean protocol.scoring_size?"),
        ("dataset.year=2014", "dataset.year", "does not belong"),
        ("train.lr=abc", "train.lr", "right type"),
        ("fold=two", "fold", "right type"),
        ("dataset=pasca", "dataset=pasca", "isic, pascal5i, shapes5i, suim"),
        ("nonsense=1", "nonsense", "--cfg job"),
    ],
)
def test_composition_refuses_a_bad_override_and_says_what_to_do(override: str, named: str, advice: str) -> None:
    with pytest.raises(HydraException) as caught:
        composed(override)
    error = explain(caught.value)
    assert named in error.what
    assert advice in str(error)
    assert "\n" not in error.what + error.fix


def test_a_file_that_does_not_go_with_the_data_set_is_named() -> None:
    with pytest.raises(HydraException) as caught:
        composed("experiment=background_bias", "dataset=pascal5i")
    assert explain(caught.value).what.startswith(
        "experiment=background_bias sets dataset.ambient, which does not belong"
    )


def test_a_key_forced_in_with_plus_is_a_fault() -> None:
    assert [w.split(":")[0] for w in whats("+train.lrr=1", "+x=2")] == ["train.lrr", "x"]


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        validate(typed(composed("fold=7", "train.lr=-1", "dataset.image_size=98", f"checkpoint={tmp_path}/no.pt")))
    for part in ("fold=7", "train.lr=-1", "dataset.image_size=98", "no.pt"):
        assert part in caught.value.what


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["train.lr=nan"], "train.lr"),
        (["train.max_steps=0"], "train.max_steps"),
        (["shot=0"], "shot"),
        (["dataset.background_shift=1.5"], "dataset.background_shift"),
        (["dataset.scale_range=[1.2,0.8]"], "dataset.scale_range"),
        (["protocol.seeds=[1,1]"], "protocol.seeds"),
        (["protocol.query_order=random"], "protocol.query_order"),
        (["model.heads=3"], "model.heads"),
        (["model.modulation=false"], "model.cleansing"),
        (["model.pixel_evolution=false", "model.structure_evolution=false"], "E_p"),
        (["train.enabled=false"], "train.enabled"),
        (["name=a/b"], "name"),
        (["variant=../x"], "variant"),
        (["variant=default"], "variant"),
        (["model.histogram_bins=1"], "model.histogram_bins"),
        (["dataset.num_folds=3"], "dataset.num_folds"),
        (["backbone.trainable_layers=9"], "backbone.trainable_layers"),
        (["train.momentum=2"], "train.momentum"),
        (["method=prototype", "model.layer=foo"], "model.layer"),
        (["protocol.novel_in_training=ignore", "protocol.ignore_in_loss=false"], "ignore_in_loss"),
        (["train.lr=???"], "train.lr"),
        (["log_level=loud"], "log_level"),
        (["dataset=coco20i", "dataset.year=2015"], "dataset.year"),
        (["dataset=pascal5i", "dataset.image_size=470"], "465 or 473"),
        (["dataset=pascal5i", "dataset.image_size=402"], "401 or 409"),
    ],
)
def test_a_semantic_fault_names_its_key(overrides: list[str], named: str) -> None:
    found = faults(typed(composed(*overrides)))
    assert len(found) >= 1
    assert any(named in str(fault) for fault in found)
    assert all(fault.fix for fault in found)


@pytest.mark.parametrize("side", ["400", "401", "633", "4096"])
def test_a_side_may_be_a_multiple_of_the_stride_or_one_more(side: str) -> None:
    assert not faults(typed(composed("dataset=pascal5i", f"dataset.image_size={side}", "train.batch_size=1")))


def test_whether_a_method_trains_is_known_of_its_settings_and_is_no_key_of_them() -> None:
    from fsseg.model import method_class

    for name in config.MethodConfig.choices():
        settings = composed(f"method={name}").model
        assert "TRAINS" not in settings
        assert method_class(name).trainable == OmegaConf.get_type(settings).TRAINS, name
    assert not method_class("prototype").trainable
    with pytest.raises(HydraException, match="TRAINS"):
        composed("model.TRAINS=false")
    assert whats("+model.TRAINS=false") == ["model.TRAINS: there is no such configuration key"]


def test_a_second_training_free_method_needs_no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    assert whats("method=baseline", "train.enabled=false") == ["train.enabled=false has nothing to evaluate"]
    assert whats("method=prototype", "train.enabled=false") == []
    monkeypatch.setattr(config.BaselineConfig, "TRAINS", False)
    assert whats("method=baseline", "train.enabled=false") == []


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_launchers_compose(launcher: str) -> None:
    assert not OmegaConf.missing_keys(composed(f"hydra/launcher={launcher}"))


@pytest.mark.parametrize("override", ["name=${nokey}", "train.epochs=${train.lr}"])
def test_an_interpolation_that_fails_ends_in_two_lines(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # `launch` sets it: later tests must not inherit that

    def compose_it() -> None:
        OmegaConf.to_container(composed(override), resolve=True)

    with pytest.raises(SystemExit) as caught:
        launch(compose_it)
    lines = str(caught.value).strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: ")


def test_every_field_is_documented_where_it_is_declared() -> None:
    import ast

    tree = ast.parse(Path(config.__file__).read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len(classes) >= 10
    for node in classes:
        assert ast.get_docstring(node), node.name
        for field, after in zip(node.body, [*node.body[1:], None]):
            if isinstance(field, ast.AnnAssign):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                sub_config = ast.unparse(field.annotation).endswith("Config")
                assert documented or sub_config, f"{node.name}.{ast.unparse(field.target)} has no documentation"
