"""Check a merged configuration against the signatures of the classes it is for, with errors for the user.

jsonargparse checks everything once more when it parses, but it cannot know the file a value came from, and its messages
print whole types. What this file does not understand it leaves to jsonargparse.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import linecache
import pkgutil
import re
import sysconfig
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from kunlun.configuration import CLASS_KEYS, ConfigError, ConfigTree, Text, closest, parse_value

_MAPPINGS = (dict, typing.Mapping, Mapping)
_LISTS = (list, tuple, set, Sequence, Collection, typing.Iterable, typing.Sequence)
T = TypeVar("T")
_PHRASES: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class ConfigChecker:
    """Walks a tree along type hints; remembers which class each part of the tree is for, to place later errors."""

    def __init__(self, tree: ConfigTree) -> None:
        self.tree = tree
        self.parts: list[tuple[type, str]] = []
        self.texts: set[str] = set()

    def fail(self, key: str, problem: str) -> typing.NoReturn:
        raise ConfigError(f"{self.tree.where(key)}: {key}: {problem}")

    def component(
        self, key: str, value: Any, bases: tuple[type, ...], linked: Collection[str] = (), leading: int = 0
    ) -> None:
        """``{class_path, init_args}`` of a subclass of one of ``bases``; ``linked`` arguments, and so many ``leading``
        ones, are not the user's."""
        if not isinstance(value, Mapping) or not isinstance(value.get("class_path"), str):
            self.fail(key, "a class is expected: class_path: package.Class, with its arguments under init_args")
        for name in value:
            if name not in CLASS_KEYS:
                self.fail(f"{key}.{name}", f"unknown key{closest(name, CLASS_KEYS)} (known: {', '.join(CLASS_KEYS)})")
        cls = self._import(f"{key}.class_path", value["class_path"])
        if cls is None:
            return
        if isinstance(cls, type) and bases and not issubclass(cls, bases):
            wanted = " or ".join(base.__name__ for base in bases)
            self.fail(f"{key}.class_path", f"{value['class_path']} is no {wanted}")
        if leading:
            linked = [*linked, *list(inspect.signature(cls).parameters)[:leading]]
        arguments = value.get("init_args")
        if isinstance(arguments, Text):
            arguments = parse_value(arguments)
        if "dict_kwargs" not in value:
            self.arguments(f"{key}.init_args", {} if arguments is None else arguments, cls, linked)

    def arguments(self, key: str, values: Any, cls: Any, linked: Collection[str] = ()) -> None:
        """A mapping of the arguments of ``cls``."""
        parameters = {
            name: p
            for name, p in inspect.signature(cls).parameters.items()
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        known = [name for name in parameters if name not in linked]
        owner = getattr(cls, "__name__", str(cls))
        if not isinstance(values, Mapping):
            self.fail(key, f"expected a mapping with {_listed(known)}, got {_plain(values)}")
        self.parts.append((cls, key))
        hints = _hints(cls)
        is_open = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls).parameters.values())
        for name, value in values.items():
            if name in linked:
                self.fail(f"{key}.{name}", f"the {name} is filled in by the program; remove this key")
            if name not in parameters:
                if is_open:
                    continue
                self.fail(f"{key}.{name}", f"unknown key of {owner}{closest(name, known)} (known: {_listed(known)})")
            self.value(f"{key}.{name}", value, hints.get(name, Any))
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in values and name not in linked:
                short = f"{key}.{name}".replace(".init_args", "")
                where = self.tree.where(f"{key.removesuffix('.init_args')}.class_path")
                raise ConfigError(f"{where}: {key}.{name}: {owner} needs this value, as in: --{short} VALUE")

    def value(self, key: str, value: Any, hint: Any) -> None:
        """A single value; passes what it cannot judge."""
        options = _options(hint)
        if isinstance(value, Text):
            read = parse_value(value)
            if str in options and not any(_fits(read, o) for o in options if o is not str):
                self.texts.add(key)
                return
            value = read
        if Any in options or (value is None and type(None) in options):
            return
        classes = tuple(o for o in options if isinstance(o, type) and o not in _PHRASES and o is not type(None))
        origins = [typing.get_origin(o) or o for o in options]
        if isinstance(value, Mapping):
            self._mapping(key, value, options, classes)
        elif isinstance(value, list):
            for option, origin in zip(options, origins, strict=True):
                if origin in _LISTS:
                    inner = [a for a in typing.get_args(option) if a is not Ellipsis]
                    for i, item in enumerate(value):
                        pick = inner[i] if origin is tuple and len(inner) > 1 and i < len(inner) else None
                        self.value(f"{key}.{i}", item, pick or (inner[0] if inner else Any))
                    return
            self.fail(key, f"expected {_described(options)}, got a list")
        elif any(_fits(value, option) for option in options):
            return
        elif isinstance(value, str) and not all(_known(c) for c in classes):
            return  # the name of a class, perhaps
        elif all(_known(option) for option in options):
            words = [a for o in options if typing.get_origin(o) is Literal for a in typing.get_args(o)]
            members = [m for c in classes if issubclass(c, enum.Enum) for m in c.__members__]
            hint_text = closest(value, map(str, [*words, *members])) if isinstance(value, str) else ""
            if isinstance(value, float) and value.is_integer() and int in options:
                hint_text = f"; write {int(value)}"
            elif str in options and not isinstance(value, str):
                hint_text = "; put it in quotes"
            self.fail(key, f"expected {_described(options)}, got {_plain(value)}{hint_text}")

    def _mapping(self, key: str, value: Mapping[str, Any], options: list[Any], classes: tuple[type, ...]) -> None:
        if "class_path" in value:
            factories = [o for o in options if typing.get_origin(o) is Callable]
            if factories:  # a class that the program calls with arguments of its own first
                given, made = typing.get_args(factories[0])
                self.component(key, value, (made,), leading=len(given) if isinstance(given, list) else 0)
            elif classes:
                self.component(key, value, classes)
            return None
        for option in options:
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                return self.arguments(key, value, option)
            if (typing.get_origin(option) or option) in _MAPPINGS:
                inner = typing.get_args(option)
                for name, item in value.items():
                    self.value(f"{key}.{name}", item, inner[1] if len(inner) == 2 else Any)
                return None
        if classes:
            for name in value:
                if closest(name, CLASS_KEYS):
                    self.fail(f"{key}.{name}", f"unknown key{closest(name, CLASS_KEYS)}")
        elif all(_known(option) for option in options):
            self.fail(key, f"expected {_described(options)}, got a mapping with {_listed(list(value))}")
        return None

    def _import(self, key: str, path: str) -> Any:
        """The object at ``path``; None for a bare name, which jsonargparse may know."""
        module_name, _, name = path.rpartition(".")
        if not module_name:
            return None
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            missing = error.name or module_name
            if not (module_name + ".").startswith(missing + "."):
                raise  # the module is there, but something that it needs is not
            package = missing.rpartition(".")[0]
            near = closest(missing, [f"{package}.{m}".lstrip(".") for m in _modules(package)])
            self.fail(key, f"there is no module {missing!r}{near}")
        if not hasattr(module, name):
            names = [n for n in getattr(module, "__all__", dir(module)) if not n.startswith("_") and n[:1].isupper()]
            self.fail(key, f"{module_name} has no {name!r}{closest(name, names)}")
        return getattr(module, name)

    def settle(self, node: Any, prefix: str = "") -> Any:
        """The tree with each `Text` as what it turned out to be."""
        if isinstance(node, Text):
            return str(node) if prefix in self.texts else parse_value(node)
        if isinstance(node, dict):
            return {k: self.settle(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in node.items()}
        return node

    def blame(self, error: BaseException) -> str | None:
        """The key whose value made a constructor raise ``error``, as far as the traceback tells."""
        keys: list[str] = []
        trace = error.__traceback__
        while trace is not None:
            owner = trace.tb_frame.f_locals.get("self")
            found = [key for cls, key in self.parts if type(owner) is cls]
            if len(found) > 1:  # several of one class: those given these values
                found = [k for k in found if _given(self._at(k), owner)] or found
            keys = found or keys
            trace = trace.tb_next
        if not keys:
            return None
        return self.locate(keys[0], str(error))

    def locate(self, key: str, message: str) -> str:
        """The argument under ``key`` that ``message`` is about, else ``key``."""
        names = {name: message.find(name) for name in _argument_names(self.parts, key) if _mentions(message, name)}
        if names:
            return f"{key}.{min(names, key=names.__getitem__)}"
        for name, value in (self._at(key) or {}).items():
            if isinstance(value, str) and value and value in message:
                return f"{key}.{name}"
        return key

    def _at(self, key: str) -> Any:
        node: Any = self.tree.values
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node


def options_of(tree: ConfigTree, section: str, options_class: type[T]) -> T:
    """A section of ``tree`` as a dataclass; ConfigError names a wrong key, ValueError is the class's own."""
    values, checker = tree.values.get(section) or {}, ConfigChecker(tree)
    checker.arguments(section, values, options_class)
    return options_class(**checker.settle(values, section))


def read_options(command: str, given: Mapping[str, Text], options_class: type[T]) -> T:
    """The options of ``command`` as a dataclass, from the texts that were ``given``; ConfigError names a wrong one."""
    try:
        return options_of(ConfigTree({"options": dict(given)}), "options", options_class)
    except ConfigError as error:
        raise ConfigError(str(error).replace("command line: options.", f"{command}: --", 1)) from None
    except ValueError as error:
        raise ConfigError(f"{command}: {error}") from error


def is_users_fault(error: BaseException) -> bool:
    """Whether ``error`` was raised on purpose about a value, by the project or by the user's own package."""
    if isinstance(error, OSError) and error.filename is not None:
        return True
    if not isinstance(error, (ValueError, OSError)) or error.__traceback__ is None:
        return False
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename
    libraries = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    if file.startswith("<") or any(file.startswith(folder + "/") for folder in libraries):
        return False
    return re.search(r"\braise\b", linecache.getline(file, trace.tb_lineno)) is not None


def _options(hint: Any) -> list[Any]:
    """The members of a union, flattened."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _options(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return [o for a in typing.get_args(hint) for o in _options(a)]
    return [hint]


def _hints(cls: Any) -> dict[str, Any]:
    target = cls
    if isinstance(cls, type) and not dataclasses.is_dataclass(cls):
        target = cls.__init__  # type: ignore[misc]
    try:
        return typing.get_type_hints(target, include_extras=True)
    except Exception:  # a name that exists for type checkers only: jsonargparse has its own ways
        return {}


def _plain(value: Any) -> str:
    """As YAML writes it."""
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))


def _fits(value: Any, option: Any) -> bool:
    if typing.get_origin(option) is Literal:
        return any(value == a or str(value) == str(a) for a in typing.get_args(option))
    if option is type(None):
        return value is None
    if option in (int, float):
        number = int if option is int else (int, float)
        return isinstance(value, number) and not isinstance(value, bool)
    if option in (bool, str):
        return isinstance(value, option)
    if isinstance(option, type) and issubclass(option, enum.Enum):
        return value in option.__members__ or value in [m.value for m in option]
    return isinstance(option, type) and issubclass(option, Path) and isinstance(value, str)


def _known(option: Any) -> bool:
    """Whether `_fits` and the mapping and list rules say all there is to say about ``option``."""
    origin = typing.get_origin(option) or option
    if origin is Literal or origin in _MAPPINGS or origin in _LISTS or option in _PHRASES or option is type(None):
        return True
    return isinstance(option, type) and (dataclasses.is_dataclass(option) or issubclass(option, (enum.Enum, Path)))


def _described(options: Sequence[Any]) -> str:
    phrases = []
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is Literal:
            phrases.append(f"one of {', '.join(str(a) for a in typing.get_args(option))}")
        elif option in _PHRASES:
            phrases.append(_PHRASES[option])
        elif option is type(None):
            phrases.append("null")
        elif origin in _LISTS:
            phrases.append("a list")
        elif isinstance(option, type) and issubclass(option, enum.Enum):
            phrases.append(f"one of {', '.join(option.__members__)}")
        elif isinstance(option, type) and dataclasses.is_dataclass(option):
            phrases.append(f"a mapping with {_listed([f.name for f in dataclasses.fields(option)])}")
        else:
            phrases.append("a mapping" if origin in _MAPPINGS else getattr(option, "__name__", str(option)))
    return " or ".join(dict.fromkeys(phrases))


def _listed(names: Sequence[Any], most: int = 12) -> str:
    text = ", ".join(str(name) for name in names[:most])
    return f"{text}, …" if len(names) > most else text or "no keys"


def _modules(package: str) -> list[str]:
    """The modules inside ``package``; of the project's own packages for ''."""
    if not package:
        return ["kunlun", "data", "kernels", "lightning", "torch"]
    paths = getattr(importlib.import_module(package), "__path__", [])
    return [m.name for m in pkgutil.iter_modules(paths)]


def _argument_names(parts: Sequence[tuple[type, str]], key: str) -> list[str]:
    return [name for cls, k in parts if k == key for name in inspect.signature(cls).parameters]


def _mentions(message: str, name: str) -> bool:
    return re.search(rf"(?<![\w]){re.escape(name)}(?!\w)", message) is not None


def _given(values: Any, owner: object) -> bool:
    return isinstance(values, Mapping) and all(getattr(owner, n, v) == v for n, v in values.items())
