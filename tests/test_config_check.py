"""The checks of a configuration against signatures, on small classes of their own."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from kunlun.config_check import ConfigChecker, is_users_fault
from kunlun.configuration import ConfigError, ConfigTree, Text


class Colour(enum.Enum):
    red = "r"
    blue = "b"


@dataclass(frozen=True)
class Inner:
    depth: int = 1

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, not {self.depth}")


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float = 0.1
    count: int | None = None
    inner: Inner | None = None
    named: dict[str, Inner] = field(default_factory=dict)
    listed: tuple[Inner, ...] = ()
    sizes: list[int] = field(default_factory=list)
    mode: Literal["fast", "slow", 3] = "fast"
    colour: Colour = Colour.red
    devices: list[int] | str | int = "auto"
    anything: Any = None
    flag: bool = False


class Open:
    def __init__(self, width: int, **more: Any) -> None:
        self.width, self.more = width, more


def check(values: dict[str, Any], cls: type = Outer) -> ConfigChecker:
    checker = ConfigChecker(ConfigTree({"x": values}, {"x": "file.yaml:1"}))
    checker.arguments("x", values, cls)
    return checker


@pytest.mark.parametrize(
    "values",
    [
        {"rate": 1},
        {"rate": 1e-3},
        {"count": None},
        {"count": 3},
        {"inner": {"depth": 2}},
        {"inner": None},
        {"named": {"a": {"depth": 2}, "b": {}}},
        {"listed": [{"depth": 2}]},
        {"sizes": [1, 2]},
        {"mode": "slow"},
        {"mode": 3},
        {"colour": "blue"},
        {"devices": [0, 1]},
        {"devices": 2},
        {"anything": {"what": "ever"}},
        {"flag": True},
    ],
)
def test_good_values_pass(values: dict[str, Any]) -> None:
    check({"name": "n", **values})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, r"x\.name: Outer needs this value, as in: --x\.name VALUE"),
        ({"name": 3}, r"x\.name: expected text, got 3; put it in quotes"),
        ({"name": "n", "rat": 1}, r"x\.rat: unknown key of Outer; did you mean 'rate'"),
        ({"name": "n", "rate": True}, "expected a number, got true"),
        ({"name": "n", "count": 1.5}, "expected a whole number or null, got 1.5"),
        ({"name": "n", "count": 2.0}, "write 2"),
        ({"name": "n", "inner": {"deep": 2}}, r"x\.inner\.deep: unknown key of Inner; did you mean 'depth'"),
        ({"name": "n", "inner": 3}, "a mapping with depth"),
        ({"name": "n", "named": {"a": {"deep": 2}}}, r"x\.named\.a\.deep"),
        ({"name": "n", "named": [1]}, "a mapping, got a list"),
        ({"name": "n", "listed": [{"deep": 2}]}, r"x\.listed\.0\.deep"),
        ({"name": "n", "sizes": [1, "two"]}, r"x\.sizes\.1: expected a whole number, got 'two'"),
        ({"name": "n", "sizes": {"a": 1}}, "expected a list, got a mapping with a"),
        ({"name": "n", "mode": "slwo"}, "one of fast, slow, 3, got 'slwo'; did you mean 'slow'"),
        ({"name": "n", "colour": "blu"}, "one of red, blue, got 'blu'; did you mean 'blue'"),
        ({"name": "n", "flag": 1}, "true or false, got 1"),
    ],
)
def test_bad_values_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        check(values)
    assert str(error.value).startswith("file.yaml:1: ")


def test_a_class_with_open_arguments_takes_any_name() -> None:
    check({"width": 3, "other": 4}, Open)
    with pytest.raises(ConfigError, match="a whole number"):
        check({"width": "x", "other": 4}, Open)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        *(("name", "7", "7"), ("name", "true", "true"), ("rate", "1e-3", 1e-3), ("count", "null", None)),
        *(("devices", "2", 2), ("devices", "auto", "auto"), ("mode", "3", 3), ("flag", "true", True)),
    ],
)
def test_text_of_the_command_line_becomes_what_the_type_wants(key: str, text: str, value: object) -> None:
    values = {"name": "n", key: Text(text)}
    settled = check(values).settle({"x": values})["x"][key]
    assert settled == value
    assert type(settled) is type(value)


def test_the_value_that_a_constructor_refuses_is_found() -> None:
    checker = check({"name": "n", "named": {"a": {"depth": 2}, "b": {"depth": 0}}})
    with pytest.raises(ValueError, match="depth") as refusal:
        Inner(depth=0)
    assert checker.blame(refusal.value) == "x.named.b.depth"
    assert is_users_fault(refusal.value)


def test_an_error_from_a_library_is_not_the_users_fault() -> None:
    with pytest.raises(ValueError, match="invalid literal") as error:
        int("x")
    assert not is_users_fault(error.value)


def test_a_missing_file_is_the_users_fault(tmp_path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        (tmp_path / "nowhere").open()
    assert is_users_fault(error.value)
