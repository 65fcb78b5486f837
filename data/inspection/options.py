"""What `inspect` can be told. Importing this loads nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

# Where the people of these data sets live: in UTC their night would be cut in two, and a day appear that is none.
HOME = {"userbehavior": "Asia/Shanghai", "taobao": "Asia/Shanghai"}


@dataclass(frozen=True)
class InspectionOptions:
    """What to look at, and where the page goes; ValueError names the option that is wrong."""

    html: str = ""
    """A file to write the same as one HTML page with charts; it needs nothing else and works offline."""
    max_length: int = 0
    """L_max: say which share of the histories is longer than this, so cut in training; 0 = none is cut."""
    rows: int = 0
    """For a quick look: this many rows of each split, in short runs spread evenly over it; 0 = every row."""
    timezone: str = ""
    """Whose days are counted, such as Asia/Shanghai; empty: the `timezone` it was prepared with; else
    Asia/Shanghai for the data sets of Taobao, UTC for all others."""

    def __post_init__(self) -> None:
        if self.html and not self.html.endswith((".html", ".htm")):
            raise ValueError(f"html must be the name of a file that ends in .html, not {self.html!r}")
        if self.max_length < 0:
            raise ValueError(f"max_length must be 0 (nothing is cut) or positive, not {self.max_length}")
        if self.rows < 0:
            raise ValueError(f"rows must be 0 (every row) or positive, not {self.rows}")
        if self.timezone:
            find_timezone(self.timezone)

    def zone(self, dataset: str, prepared_with: Mapping[str, Any]) -> ZoneInfo:
        """The time zone to count the days of ``dataset`` in; ``prepared_with``: the options of its preparation."""
        return find_timezone(self.timezone or str(prepared_with.get("timezone") or HOME.get(dataset, "UTC")))


def find_timezone(name: str) -> ZoneInfo:
    """The time zone called ``name``; ValueError suggests one."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):  # unknown, or not even a name: a folder of the database, a path
        near = difflib.get_close_matches(name, available_timezones(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; give a name such as Asia/Shanghai or UTC"
        raise ValueError(f"timezone {name!r} is not known{hint}") from None
