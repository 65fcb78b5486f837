"""Ways to damage a raw file, and what a preparation should say of the result, judged line by line in plain Python."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from data import criteo, taobao, taobao_x1, userbehavior
from data.raw import Layout

Value = str | None
Rule = Callable[[Value, dict[str, Value]], bool]

BAD_VALUES = f"{'9' * 18} {'9' * 19} {'9' * 40} 1e400 1e31 1e30 -5 1.5 +1 0x1F nan inf １ 1_000 1e3 --1 - .".split(" ")
BAD_VALUES += [" 1", "1 ", "1\0", "TRUE", "é", "\u2028", "12\u0085", "NULL", "null", "007"]


@dataclass(frozen=True)
class RawFile:
    """One file of a data set: its layout, and by column what its values must be."""

    dataset: str
    name: str
    module: Any
    layout: Layout
    rules: dict[str, list[Rule]]
    label: str | None = None
    time: str | None = None
    key: str | None = None  # may come once

    @property
    def checked(self) -> list[str]:
        return list(self.rules)


@dataclass(frozen=True)
class Line:
    """A line: ``number`` as an editor counts; ``faults``: the columns that are wrong, None: it cannot be parted."""

    number: int
    text: str
    values: dict[str, Value]
    faults: list[str] | None


@dataclass(frozen=True)
class Judgement:
    """``unusable``: the file has nothing to skip to, being empty or of another header."""

    lines: list[Line]
    unusable: bool = False

    @property
    def unparted(self) -> list[Line]:
        return [line for line in self.lines if line.faults is None]

    @property
    def wrong(self) -> list[Line]:
        return [line for line in self.lines if line.faults]

    @property
    def good(self) -> list[Line]:
        return [line for line in self.lines if line.faults == []]


def whole(value: Value, _: dict[str, Value]) -> bool:
    return value is not None and re.fullmatch("-?[0-9]{1,18}", value) is not None


def count(value: Value, row: dict[str, Value]) -> bool:
    return whole(value, row) and not str(value).startswith("-")


def decimal(value: Value, _: dict[str, Value]) -> bool:
    form = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
    return value is not None and re.fullmatch(form, value) is not None and abs(float(value)) <= 1e30


def optional(rule: Rule) -> Rule:
    return lambda value, row: value is None or rule(value, row)


def among(*values: str) -> Rule:
    return lambda value, _: value in values


def codes(value: Value, _: dict[str, Value]) -> bool:
    return value is None or all(code in ("1", "2", "3", "4") for code in value.split("^"))


def as_many(value: Value, row: dict[str, Value]) -> bool:
    """A list of TaobaoAd_x1: whole numbers or nothing, as many as there are codes."""
    if row["btag_his"] is None or value is None:
        return value is None and (row["btag_his"] is None or "^" not in row["btag_his"])
    items = value.split("^")
    return len(items) == len(row["btag_his"].split("^")) and all(re.fullmatch("[0-9]*", item) for item in items)


def rules(**columns: Rule | tuple[str, ...]) -> dict[str, list[Rule]]:
    return {name: [rule] for name, rule in columns.items()}


def _files() -> list[RawFile]:
    bit, layouts = among("0", "1"), taobao.LAYOUTS
    sample = rules(user=count, adgroup_id=count, time_stamp=whole, nonclk=bit, clk=bit)
    sample["clk"].append(lambda value, row: value != row["nonclk"] or value is None)
    ads = rules(adgroup_id=count, price=optional(decimal)) | {n: [optional(count)] for n in taobao.AD}
    profiles = rules(userid=count) | {n: [optional(count)] for n in taobao.PROFILE}
    event = among("pv", "cart", "fav", "buy")
    log = rules(user=count, time_stamp=whole, btag=event, cate=optional(count), brand=optional(count))
    integers = {n: [optional(whole)] for n in criteo.INTEGERS}
    lists = rules(btag_his=codes, cate_his=as_many, brand_his=as_many)
    x1 = (
        {n: [optional(count)] for n in taobao_x1.SPARSE} | rules(clk=bit, userid=count, price=optional(decimal)) | lists
    )
    behavior = rules(user=count, item=count, category=count, time=whole, btag=event)
    return [
        RawFile("taobao", "raw_sample.csv", taobao, layouts["raw_sample"], sample, "clk", "time_stamp"),
        RawFile("taobao", "ad_feature.csv", taobao, layouts["ad_feature"], ads, key="adgroup_id"),
        RawFile("taobao", "user_profile.csv", taobao, layouts["user_profile"], profiles, key="userid"),
        RawFile("taobao", "behavior_log.csv", taobao, layouts["behavior_log"], log, "btag", "time_stamp"),
        RawFile("criteo", "train.txt", criteo, criteo.LAYOUT, rules(label=bit) | integers, "label"),
        RawFile("taobao-x1", "train.csv", taobao_x1, taobao_x1.LAYOUT, x1, "clk"),
        RawFile("userbehavior", "UserBehavior.csv", userbehavior, userbehavior.LAYOUT, behavior, "btag", "time"),
    ]


FILES = {file.name: file for file in _files()}


def judge(file: RawFile, data: bytes) -> Judgement:
    """What should be said of a file of these bytes."""
    layout = file.layout
    parts = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not parts[-1]:
        parts.pop()
    raw = [part.removesuffix(b"\r") for part in parts]
    texts = [part.decode("utf-8", "replace") for part in raw]

    def parted(i: int) -> bool:
        try:
            return "\r" not in raw[i].decode("utf-8") and len(texts[i].split(layout.delimiter)) == len(layout.columns)
        except UnicodeDecodeError:
            return False

    if layout.header:
        names = [name.strip() for name in texts[0].split(layout.delimiter)] if texts else []
        if not texts or not parted(0) or names != list(layout.columns):
            return Judgement([], unusable=True)
    lines, seen = [], set()
    for i in range(int(layout.header), len(texts)):
        if not parted(i):
            lines.append(Line(i + 1, texts[i], {}, None))
            continue
        values = [None if v in layout.missing else v for v in texts[i].split(layout.delimiter)]
        row = dict(zip(layout.columns, values, strict=True))
        faults = [name for name, of_it in file.rules.items() if not all(rule(row[name], row) for rule in of_it)]
        if file.key is not None:
            if row[file.key] in seen and file.key not in faults:
                faults.append(file.key)
            seen.add(row[file.key])
        lines.append(Line(i + 1, texts[i], row, faults))
    return Judgement(lines, unusable=not lines)


@dataclass
class Patient:
    """A file to damage: its lines without their ends, the header among them. ``touched``: lines (from 1) damaged."""

    file: RawFile
    lines: list[bytes]
    rng: random.Random
    others: dict[str, bytes] = field(default_factory=dict)
    touched: set[int] | None = None

    def bytes(self, end: bytes = b"\n") -> bytes:
        return b"".join(line + end for line in self.lines)

    def pick(self) -> int:
        """A line of data to damage."""
        i = self.rng.choice([i for i in range(int(self.file.layout.header), len(self.lines) - 1) if self.lines[i]])
        self.touched = {i + 1}
        return i

    def fields(self, i: int) -> list[bytes]:
        return self.lines[i].split(self.delimiter)

    @property
    def delimiter(self) -> bytes:
        return self.file.layout.delimiter.encode()

    def column(self, name: str | None = None) -> int:
        return self.file.layout.columns.index(name or self.rng.choice(self.file.checked))

    def put(self, value: bytes, name: str | None = None) -> bytes:
        """The file with one value changed."""
        i, k = self.pick(), self.column(name)
        fields = self.fields(i)
        fields += [b""] * (k + 1 - len(fields))  # where an earlier damage cut the line
        fields[k] = value
        self.lines[i] = self.delimiter.join(fields)
        return self.bytes()


KINDS: dict[str, Callable[[Patient], bytes]] = {}
ONE_LINE: list[str] = []  # kinds that damage one line of data and no other
LABELLED: set[str] = set()  # kinds for files with a label
TIMED: set[str] = set()  # kinds for files with a time


def kind(function: Callable[[Patient], bytes]) -> Callable[[Patient], bytes]:
    KINDS[function.__name__] = function
    return function


def line_kind(function: Callable[[Patient], bytes]) -> Callable[[Patient], bytes]:
    ONE_LINE.append(function.__name__)
    return kind(function)


def _edit(name: str, edit: Callable[[Patient, bytes], bytes]) -> None:
    """A kind that changes one line."""

    def damage(patient: Patient) -> bytes:
        i = patient.pick()
        patient.lines[i] = edit(patient, patient.lines[i])
        if b"\n" in patient.lines[i]:
            patient.touched = None
        return patient.bytes()

    KINDS[name] = damage
    ONE_LINE.append(name)


def _insert(patient: Patient, line: bytes, new: bytes) -> bytes:
    place = patient.rng.randrange(len(line) + 1)
    return line[:place] + new + line[place:]


def _flip(patient: Patient, line: bytes, mask: int) -> bytes:
    place = patient.rng.randrange(len(line))
    return line[:place] + bytes([line[place] ^ mask]) + line[place + 1 :]


_edit("one_bit", lambda p, line: _flip(p, line, 1 << p.rng.randrange(8)))
_edit("one_bit_again", lambda p, line: _flip(p, line, 1 << p.rng.randrange(8)))
_edit("one_byte", lambda p, line: _flip(p, line, p.rng.randrange(1, 256)))
_edit("cut_line", lambda p, line: line[: p.rng.randrange(len(line))])
_edit("drop_column", lambda p, line: p.delimiter.join(line.split(p.delimiter)[1:]))
_edit("double_column", lambda p, line: line.split(p.delimiter)[0] + p.delimiter + line)
_edit("reverse_columns", lambda p, line: p.delimiter.join(line.split(p.delimiter)[::-1]))
_edit("another_delimiter", lambda p, line: line.replace(p.delimiter, b";"))
_edit("delimiters_alone", lambda p, line: p.delimiter * line.count(p.delimiter))
_edit("blank_line", lambda p, line: line + b"\n")
_edit("line_of_spaces", lambda p, line: b"   ")
_edit("latin_1", lambda p, line: _insert(p, line, "é".encode("latin-1")))
_edit("bom_inside", lambda p, line: _insert(p, line, b"\xef\xbb\xbf"))
_edit("quoted_line", lambda p, line: b'"' + line + b'"')
_edit("lone_quote", lambda p, line: _insert(p, line, b'"'))
_edit("control_character", lambda p, line: _insert(p, line, bytes([p.rng.choice([0, 7, 11, 12, 26, 27, 127])])))
_edit("carriage_return", lambda p, line: _insert(p, line, b"\r"))
_edit("windows_line", lambda p, line: line + b"\r")
_edit("line_break", lambda p, line: _insert(p, line, b"\n"))


@line_kind
def joined_lines(patient: Patient) -> bytes:
    i = patient.pick()
    patient.lines[i] += patient.lines.pop(i + 1)
    return patient.bytes()


@line_kind
def line_again(patient: Patient) -> bytes:
    i = patient.pick()
    patient.lines.append(patient.lines[i])
    patient.touched = {len(patient.lines)}
    return patient.bytes()


@line_kind
def missing_value(patient: Patient) -> bytes:
    return patient.put(b"")


@line_kind
def huge_number(patient: Patient) -> bytes:
    return patient.put(b"1e31", "price" if "price" in patient.file.rules else None)


@line_kind
def quoted_value(patient: Patient) -> bytes:
    return patient.put(b'"1"')


@line_kind
def long_value(patient: Patient) -> bytes:
    return patient.put(b"7" * 200_000)


@line_kind
def strange_value(patient: Patient) -> bytes:
    return patient.put(patient.rng.choice(BAD_VALUES).encode())


@line_kind
def another_strange_value(patient: Patient) -> bytes:
    return patient.put(patient.rng.choice(BAD_VALUES).encode())


@line_kind
def third_strange_value(patient: Patient) -> bytes:
    return patient.put(patient.rng.choice(BAD_VALUES).encode())


def _of_column(name: str, values: bytes, which: str, group: set[str]) -> None:
    KINDS[name] = lambda patient: patient.put(values, getattr(patient.file, which))
    group.add(name)
    ONE_LINE.append(name)


for _name, _value in (("label_2", b"2"), ("label_minus_1", b"-1"), ("label_yes", b"yes"), ("label_PV", b"PV")):
    _of_column(_name, _value, "label", LABELLED)
for _name, _value in (("year_1902", b"-2145916800"), ("year_2100", b"4102444800"), ("time_of_day", b"12:30")):
    _of_column(_name, _value, "time", TIMED)


def _column_everywhere(patient: Patient, change: Callable[[list[bytes], int], list[bytes]], header: bool) -> bytes:
    k = patient.column()
    first = 0 if header else int(patient.file.layout.header)
    for i in range(first, len(patient.lines)):
        patient.lines[i] = patient.delimiter.join(change(patient.fields(i), k))
    return patient.bytes()


@kind
def column_dropped(patient: Patient) -> bytes:
    return _column_everywhere(patient, lambda fields, k: fields[:k] + fields[k + 1 :], header=True)


@kind
def column_doubled(patient: Patient) -> bytes:
    return _column_everywhere(patient, lambda fields, k: fields[: k + 1] + fields[k:], header=True)


@kind
def column_all_bad(patient: Patient) -> bytes:
    return _column_everywhere(patient, lambda fields, k: [*fields[:k], b"?", *fields[k + 1 :]], header=False)


@kind
def first_line_reversed(patient: Patient) -> bytes:
    patient.lines[0] = patient.delimiter.join(patient.fields(0)[::-1])
    return patient.bytes()


@kind
def first_line_lost(patient: Patient) -> bytes:
    del patient.lines[0]
    return patient.bytes()


@kind
def first_line_twice(patient: Patient) -> bytes:
    patient.lines.insert(0, patient.lines[0])
    return patient.bytes()


@kind
def first_line_alone(patient: Patient) -> bytes:
    del patient.lines[1:]
    return patient.bytes()


@kind
def first_line_with_return(patient: Patient) -> bytes:
    patient.lines[0] = patient.lines[0].replace(patient.delimiter, b"\r" + patient.delimiter, 1)
    return patient.bytes()


@kind
def first_line_twice_once_with_return(patient: Patient) -> bytes:
    patient.lines.insert(0, patient.lines[0].replace(patient.delimiter, b"\r" + patient.delimiter, 1))
    return patient.bytes()


@kind
def cut_file(patient: Patient) -> bytes:
    data = patient.bytes()
    return data[: patient.rng.randrange(1, len(data))]


@kind
def cut_file_again(patient: Patient) -> bytes:
    return cut_file(patient)


@kind
def many_bits(patient: Patient) -> bytes:
    data = bytearray(patient.bytes())
    for _ in range(len(data) // 400):
        data[patient.rng.randrange(len(data))] ^= 1 << patient.rng.randrange(8)
    return bytes(data)


@kind
def zeros_at_the_end(patient: Patient) -> bytes:
    data = patient.bytes()
    return data[: len(data) // 2] + bytes(len(data) // 2)


@kind
def random_bytes(patient: Patient) -> bytes:
    return patient.rng.randbytes(5000)


@kind
def utf_16(patient: Patient) -> bytes:
    return patient.bytes().decode().encode("utf-16")


@kind
def byte_order_mark(patient: Patient) -> bytes:
    return b"\xef\xbb\xbf" + patient.bytes()


@kind
def windows_lines(patient: Patient) -> bytes:
    return patient.bytes(b"\r\n")


@kind
def old_macintosh_lines(patient: Patient) -> bytes:
    return patient.bytes(b"\r")


@kind
def no_last_line_end(patient: Patient) -> bytes:
    return patient.bytes()[:-1]


@kind
def blank_lines_at_the_end(patient: Patient) -> bytes:
    return patient.bytes() + b"\n\n\n"


@kind
def semicolons(patient: Patient) -> bytes:
    return patient.bytes().replace(patient.delimiter, b";")


@kind
def quotes_everywhere(patient: Patient) -> bytes:
    return _column_everywhere(patient, lambda fields, k: [b'"' + value + b'"' for value in fields], header=True)


@kind
def empty(patient: Patient) -> bytes:
    return b""


@kind
def another_file(patient: Patient) -> bytes:
    return patient.others[patient.rng.choice([name for name in sorted(patient.others) if name != patient.file.name])]


def applicable(name: str, file: RawFile) -> bool:
    return not (name in LABELLED and file.label is None) and not (name in TIMED and file.time is None)
