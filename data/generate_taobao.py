"""Generated Taobao display ads in their two layouts: the four raw files, and TaobaoAd_x1 with its ready-made histories.

What happens in them is in data.generate_ads. As in the real TaobaoAd_x1, only users with a profile are in it, what is
not known is 0, the price is scaled, and the test set is the last of the eight days. A history there is the last 50
behaviours strictly before the impression, the oldest first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data.generate import Draws, Output, RawOptions, nullable, parts, texts
from data.generate_ads import DAYS, START, Impressions, Size, World
from data.generate_log import BLOCK_ROWS, BTAGS, Events

if TYPE_CHECKING:
    import pyarrow as pa

PIDS = ("430548_1007", "430539_1007")
FRACTIONS = tuple(str(hundredths / 100)[2:] for hundredths in range(100))  # of a price, as Python writes floats
HEADERS = {
    "raw_sample.csv": "user,time_stamp,adgroup_id,pid,nonclk,clk",
    "ad_feature.csv": "adgroup_id,cate_id,campaign_id,customer,brand,price",
    # The blank at the end stands in the real file too.
    "user_profile.csv": "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
    "occupation,new_user_class_level ",
    "behavior_log.csv": "user,time_stamp,btag,cate,brand",
}
EVENTS_PER_ROW = 27
LONGEST_HISTORY = 50
LAST_DAY = START + (DAYS - 1) * 86_400
PRICE_TOP, PRICE_UNIT = 1.0005, 77_000.0  # the real file's prices are near PRICE_TOP − price / PRICE_UNIT


@dataclass(frozen=True)
class TaobaoRaw(RawOptions):
    """Ali_Display_Ad_Click: raw_sample.csv, ad_feature.csv, user_profile.csv, behavior_log.csv."""

    impressions: int = 30_000
    """Rows of raw_sample.csv; the real one has 26,557,961."""
    events: int = 800_000
    """Rows of behavior_log.csv, exact repetitions and stray times included; the real one has 723,268,134."""
    users: int = 0
    """Users; 0: one per 23 impressions or per 633 events, as in the real files, whichever makes more."""
    ads: int = 0
    """Rows of ad_feature.csv; 0: one per 31 impressions, and not more than the 846,811 of the real one."""
    categories: int = 0
    """Different categories at most; 0: one per 12 ads, and not more than the 12,960 of the real files."""
    brands: int = 0
    """Different brands at most; 0: one per two ads, and not more than the 460,561 of the real files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.size()

    def size(self) -> Size:
        return Size.of(self.impressions, self.events, self.users, self.ads, self.categories, self.brands)

    def write(self, output: Output) -> None:
        world = World(Draws(self.seed), self.size())
        _write_ads(output, world)
        _write_profiles(output, world)
        output.say(f"wrote {world.size.ads:,} ads and the profiles of {world.size.users:,} users")
        for first, last in world.user_blocks():
            events = world.events(first, last)
            shown = world.impressions(first, last, events)
            mixed = np.random.default_rng([self.seed, first])  # only the order of a block's rows hangs on it
            _write_impressions(output, world, shown, mixed.permutation(len(shown.user)))
            _write_events(output, world, events, mixed.permutation(len(events.user)))


def _write_ads(output: Output, world: World) -> None:
    import pyarrow as pa
    from pyarrow import compute

    order = np.argsort(world.ad_ids)
    for first, count in parts(world.size.ads, BLOCK_ROWS):
        rows = order[first : first + count]
        cents = world.ad_cents[rows]
        whole = pa.array(cents // 100).cast(pa.string())
        brands = nullable(world.ad_brands[rows], world.ad_brands[rows] == 0).cast(pa.string())
        columns = {
            "adgroup_id": world.ad_ids[rows],
            "cate_id": world.category_ids[world.ad_categories[rows]],
            "campaign_id": world.ad_owners[0][rows],
            "customer": world.ad_owners[1][rows],
            "brand": brands.fill_null("NULL"),
            "price": compute.binary_join_element_wise(whole, texts(cents % 100, FRACTIONS), "."),
        }
        output.write("ad_feature.csv", columns, header=HEADERS["ad_feature.csv"])


def _write_profiles(output: Output, world: World) -> None:
    order = np.argsort(world.user_ids)
    order = order[world.has_profile[order]]
    fields = world.profiles(0, world.size.users)
    for first, count in parts(len(order), BLOCK_ROWS):
        rows = order[first : first + count]
        columns: dict[str, Any] = {
            "userid": world.user_ids[rows],
            **{name: values[rows] for name, values in fields.items()},
        }
        for name in ("pvalue_level", "new_user_class_level"):
            columns[name] = nullable(columns[name], columns[name] == 0)
        output.write("user_profile.csv", columns, header=HEADERS["user_profile.csv"])


def _write_impressions(output: Output, world: World, shown: Impressions, order: np.ndarray) -> None:
    click = shown.click[order].astype(np.int8)
    columns = {
        "user": world.user_ids[shown.user[order]],
        "time_stamp": shown.time[order],
        "adgroup_id": world.ad_ids[shown.ad[order]],
        "pid": texts(shown.pid[order], PIDS),
        "nonclk": 1 - click,
        "clk": click,
    }
    output.write("raw_sample.csv", columns, header=HEADERS["raw_sample.csv"])


def _write_events(output: Output, world: World, events: Events, order: np.ndarray) -> None:
    category = events.category[order]
    columns = {
        "user": world.user_ids[events.user[order]],
        "time_stamp": events.time[order],
        "btag": texts(events.btag[order], BTAGS),
        "cate": world.category_ids[category],
        "brand": world.brand_ids[category, events.thing[order]],
    }
    output.write("behavior_log.csv", columns, header=HEADERS["behavior_log.csv"], final=world.size.events)


@dataclass(frozen=True)
class TaobaoX1Raw(RawOptions):
    """TaobaoAd_x1: train.csv and test.csv, with a header and ^-joined histories."""

    rows: int = 30_000
    """Rows of both files together; one in eight is the test set. The real set has 25,029,426."""
    users: int = 0
    """Users; 0: one per 23 rows, as in the real set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.size()

    def size(self) -> Size:
        if self.rows < 10:
            raise ValueError(f"rows must be at least 10, so that both files have some, not {self.rows}")
        return Size.of(self.rows, EVENTS_PER_ROW * self.rows, self.users, 0, 0, 0)

    def write(self, output: Output) -> None:
        from data.taobao_x1 import LAYOUT

        world = World(Draws(self.seed), self.size(), without_profile=0)
        for first, last in world.user_blocks():
            events = world.events(first, last)
            shown = world.impressions(first, last, events)
            columns = _x1_columns(world, first, last, events, shown)
            order = np.random.default_rng([self.seed, first]).permutation(len(shown.user))
            is_test = shown.time[order] >= LAST_DAY
            for name, chosen, share in (("train.csv", order[~is_test], 7), ("test.csv", order[is_test], 1)):
                part = {column: columns[column].take(chosen) for column in LAYOUT.columns}
                output.write(name, part, header=",".join(LAYOUT.columns), final=self.rows * share // 8)


def _x1_columns(world: World, first: int, last: int, events: Events, shown: Impressions) -> dict:
    import pyarrow as pa

    profiles = world.profiles(first, last)
    history = _histories(world, events, shown)
    columns = {
        "clk": shown.click.astype(np.int8),
        **history,
        "userid": world.user_ids[shown.user],
        **{name: values[shown.user - first] for name, values in profiles.items()},
        "adgroup_id": world.ad_ids[shown.ad],
        "cate_id": world.category_ids[world.ad_categories[shown.ad]],
        "campaign_id": world.ad_owners[0][shown.ad],
        "customer": world.ad_owners[1][shown.ad],
        "brand": world.ad_brands[shown.ad],
        "price": PRICE_TOP - world.ad_cents[shown.ad] / 100 / PRICE_UNIT,
        "pid": shown.pid,
        "btag": np.ones(len(shown.user), dtype=np.int8),
    }
    return {name: pa.array(values) for name, values in columns.items()}


def _histories(world: World, events: Events, shown: Impressions) -> dict[str, pa.Array]:
    """The three list columns; nothing where there is no behaviour before."""
    import pyarrow as pa
    from pyarrow import compute

    from data.taobao_x1 import CODES

    usable = np.flatnonzero(~world.log.is_stray(events.time))
    usable = usable[np.lexsort((events.time[usable], events.user[usable]))]
    place = events.user[usable] * (DAYS * 86_400) + events.time[usable] - START
    ends = np.searchsorted(place, shown.user * (DAYS * 86_400) + shown.time - START)
    begins = np.maximum(np.searchsorted(events.user[usable], shown.user), ends - LONGEST_HISTORY)
    offsets = np.concatenate([[0], np.cumsum(ends - begins)])
    rows = usable[np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], ends - begins)]
    category = events.category[rows]
    codes = np.array([int(CODES[btag]) for btag in BTAGS])
    values = {
        "btag_his": codes[events.btag[rows]],
        "cate_his": world.category_ids[category],
        "brand_his": world.brand_ids[category, events.thing[rows]],
    }
    lists = {
        name: pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(column).cast(pa.string()))
        for name, column in values.items()
    }
    return {name: compute.binary_join(column, "^") for name, column in lists.items()}
