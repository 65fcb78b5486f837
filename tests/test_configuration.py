"""Configuration files: lookup, merging, and where each value came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from kunlun.command_line import SECTIONS
from kunlun.configuration import (
    CONFIG_ROOT,
    ConfigError,
    ConfigTree,
    closest,
    find_config,
    load_configs,
    load_yaml,
    parse_value,
)


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A small tree of configs: base, and two diffs over it."""
    (tmp_path / "ablations").mkdir()
    (tmp_path / "base.yaml").write_text(
        "data: {class_path: data.A, init_args: {path: here, batch_size: 4}}\n"
        "model:\n  class_path: m.Full\n  init_args:\n    width: 8\n    parts: {a: true, b: true}\n    layers: [1, 2]\n"
        "run: {name: base}\n"
    )
    (tmp_path / "ablations" / "no_a.yaml").write_text("# a diff\nmodel:\n  init_args:\n    parts: {a: false}\n")
    (tmp_path / "other.yaml").write_text("model: {class_path: m.Other, init_args: {depth: 3}}\n")
    return tmp_path


def tree_of(configs: Path, *names: str) -> ConfigTree:
    tree = ConfigTree()
    for name in ("base.yaml", *names):
        tree.add_file(configs / name)
    return tree


@pytest.mark.parametrize("name", ["ablations/no_a", "ablations/no_a.yaml"])
def test_a_config_is_found_under_the_root_with_or_without_its_ending(configs: Path, name: str) -> None:
    assert find_config(name, configs) == configs / "ablations/no_a.yaml"


def test_a_config_is_found_as_given_first(configs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    (own / "other.yaml").write_text("{}")
    monkeypatch.chdir(own)
    assert find_config("other.yaml", configs).resolve() == own / "other.yaml"
    assert find_config(str(configs / "other"), configs) == configs / "other.yaml"


@pytest.mark.parametrize(("name", "near"), [("ablations/no_aa", "ablations/no_a"), ("no_a", "ablations/no_a")])
def test_a_missing_config_names_what_was_tried_and_the_closest(configs: Path, name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {near}") as error:
        find_config(name, configs)
    assert f"{name}.yaml" in str(error.value)


def test_a_missing_config_without_a_close_one_lists_all(configs: Path) -> None:
    with pytest.raises(ConfigError, match="ablations/no_a, base, other"):
        find_config("zzzzzz", configs)


def test_a_diff_changes_only_what_it_names(configs: Path) -> None:
    model = tree_of(configs, "ablations/no_a.yaml").values["model"]
    assert model == {
        "class_path": "m.Full",
        "init_args": {"width": 8, "parts": {"a": False, "b": True}, "layers": [1, 2]},
    }


def test_a_new_class_drops_the_old_arguments(configs: Path) -> None:
    tree = tree_of(configs, "other.yaml")
    assert tree.values["model"] == {"class_path": "m.Other", "init_args": {"depth": 3}}
    assert not any(key.startswith("model.init_args.parts") for key in tree.origins)


def test_the_same_class_again_keeps_the_arguments(configs: Path) -> None:
    (configs / "same.yaml").write_text("model: {class_path: m.Full, init_args: {width: 9}}\n")
    assert tree_of(configs, "same.yaml").values["model"]["init_args"]["parts"] == {"a": True, "b": True}


def test_lists_are_replaced_or_appended_to(configs: Path) -> None:
    (configs / "lists.yaml").write_text("model: {init_args: {layers: [3]}}\n")
    (configs / "more.yaml").write_text("model: {init_args: {layers+: [4]}}\n")
    assert tree_of(configs, "lists.yaml", "more.yaml").values["model"]["init_args"]["layers"] == [3, 4]


@pytest.mark.parametrize("text", ["model:\n", "model:\n  init_args:\n", "", "# nothing\n"])
def test_an_empty_section_changes_nothing(configs: Path, text: str) -> None:
    (configs / "empty.yaml").write_text(text)
    assert tree_of(configs, "empty.yaml").values == tree_of(configs).values


def test_every_value_knows_its_file_and_line(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(configs)
    tree = tree_of(configs, "ablations/no_a.yaml")
    assert tree.where("model.init_args.parts.a") == "ablations/no_a.yaml:4"
    assert tree.where("model.init_args.parts.b") == "base.yaml:6"
    assert tree.where("model.init_args.width.deeper") == "base.yaml:5"
    tree.set("model.width", 3)
    assert tree.where("model.init_args.width") == "command line"
    assert tree.where("model.init_args.parts.b") == "base.yaml:6"


def test_set_finds_the_init_args(configs: Path) -> None:
    tree = tree_of(configs)
    assert tree.set("model.parts.b", False) == "model.init_args.parts.b"
    assert tree.set("data.init_args.path", "there") == "data.init_args.path"
    assert tree.values["model"]["init_args"]["parts"] == {"a": True, "b": False}
    assert tree.values["data"]["init_args"] == {"path": "there", "batch_size": 4}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-2.5E+3", -2500.0),
        ("7", 7),
        ("true", True),
        ("null", None),
        ("2017-04-22", "2017-04-22"),
        ("[1, 2]", [1, 2]),
        ("{a: 1}", {"a": 1}),
        ("a: b: c", "a: b: c"),
        (".5", 0.5),
        ("1.2.3", "1.2.3"),
        ("e3", "e3"),
    ],
)
def test_values_read_as_people_mean_them(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_what_is_dumped_reads_back(configs: Path, tmp_path: Path) -> None:
    tree = tree_of(configs)
    tree.values["run"].update(rate=1e-5, date="2017-04-22", number="1e-3", none=None, infinite=float("inf"))
    path = tmp_path / "dumped.yaml"
    path.write_text(tree.dump())
    assert load_yaml(path)[0] == tree.values


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\n", ":1: not valid YAML|:2: not valid YAML"),
        ("- a\n", "a mapping"),
        ("a: {b: 1, b: 2}\n", "a.b: given twice"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as error:
        load_yaml(path)
    assert "bad.yaml" in str(error.value)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_yaml(tmp_path / "bad.yaml")


def test_closest_suggests_or_is_silent() -> None:
    assert closest("componets", ["components", "width"]) == "; did you mean 'components'?"
    assert closest("off", ["offline", "online"]) == "; did you mean 'offline'?"
    assert closest("zzz", ["components", "width"]) == ""


def test_every_shipped_config_has_known_sections_only() -> None:
    for path in CONFIG_ROOT.rglob("*.yaml"):
        tree = load_configs([] if path.name == "base.yaml" else [str(path)])
        experiments = {"matrix", "scaling"} & set(tree.values)
        assert len(experiments) <= 1, path
        assert set(tree.values) - experiments <= set(SECTIONS), path
