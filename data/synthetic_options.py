"""What `inspect synthetic` can be told. Importing this loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data.synthetic_config import SyntheticConfig
from data.synthetic_presets import PRESETS, altered


@dataclass(frozen=True)
class SyntheticInspectionOptions:
    """Which world, how much of it, and where the page goes; ValueError names the option that is wrong."""

    preset: Literal["tiny", "small", "small_5pct", "large", "massive"] = "tiny"
    """The world to look at."""
    strengths: dict[str, float] | None = None
    """Part → how much it moves the log-odds, as in '{recency: 2.0}'; parts that are left out are as in the preset."""
    ctr: float | None = None
    """Mean click probability; null: that of the preset."""
    label_noise: float | None = None
    """Share of the labels that are drawn at the rate `ctr`, whatever the sample; null: that of the preset."""
    html: str = ""
    """A file to write the same as one HTML page with charts; it needs nothing else and works offline."""
    rows: int = 20_000
    """So many rows of each split are made, in short runs spread evenly over it."""

    def __post_init__(self) -> None:
        if self.html and not self.html.endswith((".html", ".htm")):
            raise ValueError(f"html must be the name of a file that ends in .html, not {self.html!r}")
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, not {self.rows}")
        self.world()

    def world(self) -> SyntheticConfig:
        """The configuration of the world."""
        return altered(PRESETS[self.preset], strengths=self.strengths, ctr=self.ctr, label_noise=self.label_noise)
