from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hllm.config import (
    DOTTED,
    PRESETS,
    SECTIONS,
    Config,
    load_config,
    make_config,
    parse_assignments,
    without_effect,
)
from hllm.errors import ConfigError
from hllm.models.config import UsersConfig


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_survives_json(preset: str) -> None:
    config = load_config(preset)
    assert config.preset == preset
    assert make_config(json.loads(json.dumps(config.model_dump()))) == config


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 7\nseed: 3\n")
    config = load_config("demo", file, {"seed": 5})
    assert (config.training.epochs, config.training.seed, config.users.d_model) == (
        7,
        5,
        PRESETS["demo"]["d_model"],
    )


def test_file_names_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset: sasrec\n")
    assert load_config("demo", file).items.item_llm is None


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("learning_rate=1e-3", 1e-3),
        ("learning_rate=.5", 0.5),
        ("epochs=20", 20),
        ("id_embedding=true", True),
        ("patience=null", None),
        ("item_llm=", None),
        ("text_fields=[title, genres]", ["title", "genres"]),
        ("item_llm=random", "random"),
        ("item_llm=HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("prompt=a=b: c", "a=b: c"),
        ("prompt=Summarise: ", "Summarise: "),
        ("prompt='Item: '", "Item: "),
        ("item_llm=2024-01-01", "2024-01-01"),
        ("item_llm=[", "["),
        ("max_len=all", "all"),
        (" epochs =20", 20),
    ],
)
def test_assignments(pair: str, value: object) -> None:
    parsed = parse_assignments([pair])
    assert list(parsed.values()) == [value]
    assert type(next(iter(parsed.values()))) is type(value)


def test_scientific_notation_reaches_the_configuration() -> None:
    assert (
        load_config("demo", overrides=parse_assignments(["learning_rate=5e-4"])).training.learning_rate
        == 5e-4
    )


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("epoch=3", r"unknown setting 'epoch' \(did you mean 'epochs'\?\); valid: preset, "),
        ("epochs", r"--set 'epochs' is not key=value"),
    ],
)
def test_bad_assignments(pair: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_assignments([pair])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "hlm-lite"}, r"unknown preset 'hlm-lite' \(did you mean 'hllm-lite'\?\); valid: "),
        ({"preset": ["demo"]}, r"unknown preset \['demo'\]"),
        ({"lr": 0.1}, r"unknown setting 'lr'.*; valid: .*learning_rate"),
        ({"dropout": 1.5}, r"setting dropout=1.5: .*less than 1"),
        ({"dropout": float("nan")}, r"setting dropout=nan"),
        ({"pooling": "max"}, r"unknown pooling 'max'; valid: mean, last, cls"),
        ({"epochs": "many"}, r"setting epochs='many': .*integer"),
        ({"epochs": True}, "setting epochs=True: must be a number"),
        ({"learning_rate": False}, "setting learning_rate=False: must be a number"),
        ({"max_len": True}, "setting max_len=True: must be a number"),
        ({"valid_metric": "auc"}, r"setting valid_metric='auc': must be hr, recall, ndcg or mrr at a number"),
        ({"d_model": 100, "n_heads": 3}, r"d_model=100 is not a multiple of n_heads=3"),
        ({"max_len": 0}, r"max_len=0: must be a number of events from 1, or 'all'"),
        ({"max_len": 10**20}, r"max_len=1000.*: must be a number of events from 1, or 'all'"),
        ({"seed": -1}, r"setting seed=-1: .*greater than or equal to 0"),
        ({"seed": 10**23}, r"setting seed=1000.*: .*less than"),
        ({"item_llm": None, "id_embedding": False}, r"leaves items without any vector"),
    ],
)
def test_bad_values(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("hllm-lite", overrides=values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config file .*run.yaml not found"),
        (b"- a\n- b\n", r"must hold 'key: value' lines, not list"),
        (b"", r"must hold 'key: value' lines, not NoneType"),
        (b"a: [1\n", r"is not readable YAML"),
        (b"title: Mis\xe9rables\n", r"is not readable YAML"),
        (b"d_modle: 3\n", r"unknown setting 'd_modle' \(did you mean 'd_model'\?\)"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("demo", file)
    assert "\n" not in str(caught.value)


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().epochs = 3  # type: ignore[misc]


def test_no_short_name_is_ambiguous() -> None:
    names = [name for section in SECTIONS.values() for name in section.model_fields]
    assert len(names) == len(set(names)) == len(DOTTED) - 1


@pytest.mark.parametrize("content", ["n_layers: 3", "users: {n_layers: 3}", "users.n_layers: 3"])
def test_three_ways_to_name_a_setting(tmp_path: Path, content: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    assert load_config("demo", file).users.n_layers == 3
    assert load_config("demo", file, parse_assignments(["users.n_layers=4"])).users.n_layers == 4
    assert load_config("demo", file, parse_assignments(["n_layers=5"])).users.n_layers == 5


def test_a_section_and_a_setting_of_one_name() -> None:
    for values in ({"scorer": "dot"}, {"scorer.scorer": "dot"}, {"scorer": {"scorer": "dot"}}):
        assert load_config("demo", overrides=values).scorer.scorer == "dot"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "users.n_layer",
            r"unknown setting 'users.n_layer' \(did you mean 'users.n_layers'\?\); valid: users\.",
        ),
        ("items.n_layers", r"unknown setting 'items.n_layers' \(did you mean 'users.n_layers'\?\)"),
        ("user.n_layers", r"did you mean 'users.n_layers'"),
        ("user", r"unknown setting 'user' \(did you mean 'users'\?\)"),
        ("users", r"users=3: users is a section of settings; set one of them, for example users\."),
    ],
)
def test_unknown_dotted_names(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("demo", overrides=parse_assignments([f"{key}=3"]))


def test_one_setting_under_two_names() -> None:
    with pytest.raises(ConfigError, match=r"users\.n_layers is given twice: 3 and 4"):
        load_config("demo", overrides={"n_layers": 3, "users": {"n_layers": 4}})
    assert load_config("demo", overrides={"n_layers": 3, "users.n_layers": 3}).users.n_layers == 3


@pytest.mark.parametrize("pairs", [["epochs=1", "epochs=2"], ["epochs=1", " training.epochs =2"]])
def test_an_assignment_does_not_replace_another(pairs: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--set gives epochs twice: 1 and 2; leave one out"):
        parse_assignments(pairs)
    assert parse_assignments([pairs[0], pairs[0]]) == {"epochs": 1}


def test_an_assignment_does_not_lose_to_another_option() -> None:
    with pytest.raises(ConfigError, match="capture is given twice: True by --set, False by another option"):
        parse_assignments(["capture=true"], {"capture": False})
    assert parse_assignments(["epochs=1"], {"capture": False}) == {"capture": False, "epochs": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs: 1\nseed: 0\nepochs: 2\n", "'epochs' is given twice: '1' in line 1 and '2' in line 3"),
        (
            "users: {dropout: 0.1}\nusers: {n_layers: 3}\n",
            "'users' is given twice: a list or section in line 1",
        ),
        (
            "users:\n  n_layers: 3\n  'n_layers': 4\n",
            "'n_layers' is given twice: '3' in line 2 and '4' in line 3",
        ),
    ],
)
def test_a_key_stands_once_in_a_file(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=f"config file .*run.yaml is not readable YAML: {message}"):
        load_config("demo", file)


def test_a_merged_key_may_be_replaced(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("users: {<<: {n_layers: 3, dropout: 0.5}, n_layers: 4}\n")
    users = load_config("demo", file).users
    assert (users.n_layers, users.dropout) == (4, 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config(item_llm=None, id_embedding=False), "leaves items without any vector"),
        (lambda: Config(users={"n_layers": 0}), "n_layers=0"),
        (lambda: UsersConfig(d_model=30), "not a multiple of n_heads=4"),
        (lambda: UsersConfig(layers=3), "unknown setting 'layers'"),
        (lambda: UsersConfig.model_validate(3), "UsersConfig is made of named settings, not of 3"),
        (lambda: make_config(3), "made of named settings, not of 3"),  # type: ignore[arg-type]
        (lambda: Config().model_copy(update={"batch_tokens": -5}), "batch_tokens=-5"),
        (lambda: Config().model_copy(update={"training.seed": -1}), "seed=-1"),
        (lambda: Config().users.model_copy(update={"n_heads": 3}), "n_heads=3"),
        (lambda: Config().model_copy(update={"no": 1}), "unknown setting 'no'"),
        (lambda: load_config("rechub", overrides={"user_model": "gated"}), "needs a d_model"),
        (lambda: load_config("sasrec-paper", overrides={"max_len": "all"}), "one vector per position"),
    ],
)
def test_checks_stand_in_the_types(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_copy_changes_what_it_is_told_to() -> None:
    config = load_config("demo", overrides={"precision": "bf16"})
    copy = config.model_copy(update={"seed": 3, "users": {"n_layers": 1}})
    assert (copy.training.seed, copy.users.n_layers, copy.users.d_model) == (3, 1, 128)
    assert copy.runtime == config.runtime


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("n_layers", "1" + "0" * 20, id="n_layers"),
        pytest.param("d_model", "9999999999", id="d_model"),
        pytest.param("n_heads", "1e30", id="float"),
        pytest.param("epochs", "1e400", id="infinite"),
        pytest.param("batch_tokens", "9" * 5000, id="5000-digits"),
    ],
)
def test_case_e22_settings_without_bounds(key: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("demo", overrides=parse_assignments([f"{key}={value}"]))
    assert len(str(caught.value)) < 300


def test_case_e22_a_number_too_long_to_print() -> None:
    for key in ("n_layers", "max_len", "seed", "dropout"):
        with pytest.raises(ConfigError, match=f"{key}=a number of 16610 bits"):
            load_config("demo", overrides={key: 10**5000})


def test_case_e22_a_file_nested_too_deep(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epochs: " + "[" * 2_000)
    with pytest.raises(ConfigError, match="is not readable YAML"):
        load_config("demo", file)
    assert parse_assignments(["epochs=" + "[" * 2_000])["epochs"].startswith("[[")
    file.write_text("epochs: " + "[" * 10**7)
    with pytest.raises(ConfigError, match="has 10,000,008 bytes, settings at most 262,144"):
        load_config("demo", file)


FLOATS = [
    name
    for section in SECTIONS.values()
    for name, field in section.model_fields.items()
    if field.annotation in (float, float | None)
]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("key", FLOATS)
def test_case_e24_values_that_are_not_finite(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"setting {key}={value}"):
        load_config("hllm-lite", overrides={key: value})


# preset, the others it stands beside, the setting without effect, the reason
WITHOUT_EFFECT = [
    ("sasrec", {}, {"pooling": "last"}, "item_llm is null, so there is no text to pool"),
    ("sasrec", {}, {"pooling": "mean"}, "item_llm is null"),
    ("sasrec", {}, {"items.prompt": "Film: "}, "item_llm is null"),
    ("sasrec", {}, {"text_fields": ["title"]}, "item_llm is null"),
    ("sasrec", {}, {"whiten": "none"}, "item_llm is null"),
    ("sasrec", {}, {"adapter_hidden": 16}, "item_llm is null, so there is no text to adapt"),
    ("demo", {"whiten": "center"}, {"whiten_rank": 16}, "a rank needs whiten=whiten"),
    ("demo", {"item_llm": "0123456789abcdef"}, {"pooling": "last"}, "is the key of a store"),
    ("rechub", {}, {"mask_prob": 0.2}, "masks no inputs"),
    ("rechub", {}, {"max_distance": 16}, "over max_len"),
    ("rechub", {}, {"ffn_hidden": 16}, "4 times d_model"),
    ("rechub", {"time_embedding": "none"}, {"time_bucket_fn": "log"}, "no time buckets"),
    ("hstu", {}, {"ffn_hidden": 64}, "no feed-forward layer"),
    ("hstu", {}, {"time_embedding": "previous"}, "reads no such times"),
    ("demo", {}, {"time_bias": False}, "user_model=gated has no time bias"),
    ("sasrec-paper", {}, {"mask_prob": 0.2}, "masks no inputs"),
    ("sasrec-paper", {}, {"max_distance": 16}, "a vector for each position"),
    ("demo", {}, {"time_embedding": "previous"}, "reads no such times"),
    ("demo", {}, {"num_time_buckets": 16}, "reads no such times"),
    ("demo", {"scorer": "dot"}, {"learn_temperature": True}, "fixed temperature"),
    ("demo", {}, {"n_negatives": 16}, "loss=cross_entropy competes with every item"),
    ("demo", {}, {"logq": False}, "loss=cross_entropy competes with every item"),
    ("demo", {}, {"negatives_by": "uniform"}, "loss=cross_entropy competes with every item"),
    ("rechub", {}, {"mask_history": True}, "loss=nce competes with every item"),
    ("demo", {"loss": "in_batch"}, {"negatives_by": "uniform"}, "draws none"),
    ("demo", {"loss": "sampled"}, {"hard_share": 0.25}, "only negatives_by=hard"),
    ("demo", {"loss": "in_batch"}, {"hard_share": 0.25}, "only negatives_by=hard"),
    ("demo", {"loss": "sampled", "negatives_by": "hard"}, {"mask_history": True}, "always leaves"),
    ("demo", {"loss": "sampled"}, {"label_smoothing": 0.1}, "spreads over every item"),
    ("demo", {"id_embedding": False}, {"id_updates": "lazy"}, "no ID rows"),
]  # fmt: skip


@pytest.mark.parametrize(("preset", "beside", "given", "reason"), WITHOUT_EFFECT)
def test_a_setting_without_effect(
    tmp_path: Path, preset: str, beside: dict[str, Any], given: dict[str, Any], reason: str
) -> None:
    """Refused where the user gave it, dropped where a preset or an earlier run did."""
    plain = load_config(preset, overrides=beside)
    (name,) = given
    with pytest.raises(ConfigError, match=f"setting {name.split('.')[-1]}=.* has no effect: .*{reason}"):
        load_config(preset, overrides={**beside, **given})
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(given))
    with pytest.raises(ConfigError, match="has no effect"):
        load_config(preset, file, beside)
    dropped = make_config({"preset": preset, **PRESETS[preset], **beside, **given})
    assert dropped == plain and set(without_effect(dropped)) == set(without_effect(plain))


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("demo", {"loss": "sampled", "label_smoothing": 0}),
        ("rechub", {"mask_prob": 0.0}),
        ("demo", {"scorer": "dot", "learn_temperature": False}),
    ],
)
def test_what_is_off_may_be_called_off(preset: str, settings: dict[str, Any]) -> None:
    *_, name = settings
    config = load_config(preset, overrides=settings)
    assert DOTTED[name] in without_effect(config)
    assert config == load_config(preset, overrides={k: v for k, v in settings.items() if k != name})


def test_how_it_is_run_is_no_part_of_what_it_is() -> None:
    config = load_config("demo", overrides={"precision": "fp32", "runtime.capture": False})
    assert (config.runtime.precision, config.runtime.capture) == ("fp32", False)
    assert config.model_dump() == load_config("demo").model_dump()
