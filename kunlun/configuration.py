"""Configuration files: find them, lay one over the other, remember where each value came from.

The order is ``configs/base.yaml``, then every ``--config`` in turn, then the rest of the command line; the last wins.
Mappings are merged, lists and values are replaced (``key+:`` appends to a list), and a new ``class_path`` drops the
``init_args`` of the old one. Nothing here imports torch, so a missing file or a misspelt section is refused at once.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PROJECT_ROOT = Path(__file__).resolve().parents[1]
CONFIG_ROOT = PROJECT_ROOT / "configs"
BASE = "base.yaml"
COMMAND_LINE = "command line"
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


class Text(str):
    """A value as typed on the command line: text where text is wanted, else read as YAML."""


class ConfigError(Exception):
    """The user's configuration is at fault; the message says where, which key, and what to do."""


class RunError(Exception):
    """A run cannot go on, for a reason outside the program; the message says what happened and what to do."""


def closest(word: str, candidates: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the candidate most like ``word``, or nothing."""
    names = list(candidates)
    found = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    found = found or [name for name in names if len(word) > 1 and name.startswith(word)]
    return f"; did you mean {found[0]!r}?" if found else ""


def shown(path: Path) -> str:
    """``path`` as the user would write it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


def find_config(name: str, root: Path = CONFIG_ROOT) -> Path:
    """The file called ``name``: as given, then under ``root``, each also with ``.yaml`` appended."""
    names = [name] if name.endswith((".yaml", ".yml", ".json")) else [name, f"{name}.yaml"]
    tried = [Path(n).expanduser() for n in names] + [root / n for n in names]
    for path in tried:
        if path.is_file():
            return path
    known = {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.yaml"))}
    stem = name.removesuffix(".yaml")
    near = difflib.get_close_matches(stem, known, n=2, cutoff=0.8)
    last = difflib.get_close_matches(Path(stem).name, {Path(k).name for k in known}, n=1, cutoff=0.6)
    near += [k for k in known if Path(k).name in last and k not in near]
    hint = f"did you mean {' or '.join(near[:3])}?" if near else f"there are: {', '.join(known) or 'none'}"
    raise ConfigError(f"config {name!r} not found; {hint}\n  tried {', '.join(shown(p) for p in dict.fromkeys(tried))}")


class _Loader(yaml.SafeLoader):
    """YAML with the numbers people write: ``1e-3`` is a float; dates stay text."""


class _Dumper(yaml.SafeDumper):
    """Quotes what either loader would take for something else than text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(
            r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
            r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
        ),
        list("-+0123456789."),
    )


def parse_value(text: str) -> Any:
    """A value of the command line, read as YAML; text that is no YAML stays text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML that `load_yaml` and jsonargparse read as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def load_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in ``path`` and the line of every key, by its dotted name."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown(path)}: not a text file ({error.reason})") from None
    except OSError as error:
        raise ConfigError(f"{shown(path)}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{shown(path)}:{mark.line + 1}" if mark else shown(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}, {}
    if not isinstance(values, dict):
        raise ConfigError(f"{shown(path)}: a mapping of sections is expected, not {type(values).__name__}")
    lines: dict[str, int] = {}
    _note_lines(node, "", lines, path)
    return values, lines


def _note_lines(node: yaml.Node | None, prefix: str, lines: dict[str, int], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in seen:
                raise ConfigError(f"{shown(path)}:{line}: {prefix}{key}: given twice in one mapping; keep one of them")
            seen.add(key)
            lines[prefix + key] = line
            _note_lines(value_node, f"{prefix}{key}.", lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[f"{prefix}{i}"] = item.start_mark.line + 1
            _note_lines(item, f"{prefix}{i}.", lines, path)


@dataclass
class ConfigTree:
    """The merged configuration, and for every key given by someone where it was given."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def add_file(self, path: Path) -> None:
        """Lay the file over what is there."""
        values, lines = load_yaml(path)
        self._merge(self.values, values, "", {key: f"{shown(path)}:{line}" for key, line in lines.items()})

    def lay(self, values: Mapping[str, Any]) -> None:
        """Lay plain values over what is there, as a file that holds them would."""
        self._merge(self.values, values, "", {})

    def set(self, key: str, value: Any, origin: str = COMMAND_LINE) -> str:
        """Set one dotted key; ``init_args`` may be left out of it. Returns the full key."""
        node, parts, full = self.values, key.split("."), []
        for i, part in enumerate(parts):
            if "class_path" in node and part not in CLASS_KEYS:
                full.append("init_args")
                node["init_args"] = node.get("init_args") or {}
                node = node["init_args"]
            full.append(part)
            if i < len(parts) - 1:
                if node.get(part) is None:
                    node[part] = {}
                node = node[part]
                if not isinstance(node, dict):
                    name = ".".join(full)
                    raise ConfigError(
                        f"{self.where(name)}: {name}: {node!r} has no {parts[i + 1]!r}; a mapping was expected"
                    )
        name = ".".join(full)
        nested: Any = value
        for part in reversed(full):
            nested = {part: nested}
        keys = {".".join(full[: i + 1]) for i in range(len(full))}
        self._merge(self.values, nested, "", {k: origin for k in keys if k == name or k not in self.origins})
        return name

    def crosses_list(self, key: str) -> bool:
        """Whether ``key`` goes into an item of a list, which `set` cannot."""
        node: Any = self.values
        for part in key.split("."):
            if isinstance(node, dict) and "class_path" in node and part not in CLASS_KEYS:
                node = node.get("init_args")
            node = node.get(part) if isinstance(node, dict) else None
            if isinstance(node, list):
                return True
        return False

    def where(self, key: str) -> str:
        """The file and line, or the command line, that gave ``key``: its own, or else of what holds it."""
        parts = key.split(".")
        for end in range(len(parts), 0, -1):
            prefix = ".".join(parts[:end])
            if prefix in self.origins:
                return self.origins[prefix]
        return COMMAND_LINE

    def copy(self) -> ConfigTree:
        return ConfigTree(copy.deepcopy(self.values), dict(self.origins))

    def dump(self) -> str:
        return dump_yaml(self.values)

    def _merge(self, old: dict[str, Any], new: Mapping[str, Any], prefix: str, origins: Mapping[str, str]) -> None:
        if "class_path" in old and "class_path" in new and old["class_path"] != new["class_path"]:
            old.clear()
            self._forget(prefix)
        for raw_key, value in new.items():
            key = str(raw_key).removesuffix("+")
            name = prefix + key
            before = old.get(key)
            # An empty section, as when all its lines are commented out, changes nothing.
            if value is None and isinstance(before, dict) and (not prefix or key == "init_args"):
                continue
            origin = origins.get(prefix + str(raw_key))
            if isinstance(before, dict) and isinstance(value, Mapping):
                self._merge(before, value, f"{name}.", origins)
            elif str(raw_key).endswith("+") and isinstance(before, list):
                old[key] = [*before, *(value if isinstance(value, list) else [value])]
            else:
                self._forget(f"{name}.")
                old[key] = copy.deepcopy(value)
                self.origins.update({k: o for k, o in origins.items() if k.startswith(f"{name}.")})
            if origin is not None:
                self.origins[name] = origin

    def _forget(self, prefix: str) -> None:
        for key in [k for k in self.origins if k.startswith(prefix)]:
            del self.origins[key]


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key → value, of nested mappings; an empty one is a value."""
    if isinstance(values, Mapping) and values:
        return {k: v for name, item in values.items() for k, v in flat(item, f"{prefix}.{name}".lstrip(".")).items()}
    return {prefix: values}


def load_configs(configs: Iterable[str], base: Path | None = CONFIG_ROOT / BASE) -> ConfigTree:
    """``base`` and then ``configs``, merged."""
    tree = ConfigTree()
    for path in ([base] if base else []) + [find_config(name) for name in configs]:
        if not path.is_file():
            raise ConfigError(f"{shown(path)} not found: the project's base configuration is missing")
        tree.add_file(path)
    return tree
