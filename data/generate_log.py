"""Generated event logs: what users view, cart, favour and buy; and the layout UserBehavior.csv made of them.

A user has eight interests, each a category with a favourite thing in it. The events come in sessions of a few seconds
to minutes per step, and in runs that stay in one category; a new run begins at an interest of the user, the first
ones more often, or at a category popular with everyone. All of it is vectorised over the events of many users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.generate import Draws, Output, RawOptions, blocks, share_out, texts, zipf

BTAGS = ("pv", "cart", "fav", "buy")
INTERESTS = 8  # per user
BLOCK_ROWS = 262_144
STRAY_RANGE = (-2_145_916_800, 1_988_150_399)  # unix seconds: the years 1902 … 2032
MOST_ROWS_PER_USER = 5_000  # on average: all rows of a user are held in memory
# Share of the events up to the end of each hour of the day in China, as in the real UserBehavior.csv.
DAY_CURVE = np.cumsum(
    [0, 34, 15, 8, 4, 4, 6, 16, 26, 31, 40, 45, 45, 43, 54, 49, 55, 51, 48, 49, 64, 80, 94, 80, 60],
)


class Events(NamedTuple):
    """One array per column, user after user; ``user`` counts from 0, ``category`` and ``thing`` are ranks."""

    user: np.ndarray
    time: np.ndarray  # unix seconds
    btag: np.ndarray  # place in BTAGS
    category: np.ndarray
    thing: np.ndarray  # within the category


@dataclass(frozen=True)
class Log:
    """The events of all users; those of any range of users can be made on their own."""

    draws: Draws
    ends: np.ndarray  # user u has events ends[u] … ends[u + 1] − 1
    start: int  # unix seconds, the beginning of a day
    days: int
    categories: int
    things: int  # per category
    btag_shares: tuple[float, ...]
    repeats: float  # share of the events that repeat the user's one before in every column
    strays: float  # share of the events with a time far off
    new_session: float  # share of the events that begin a session …
    new_run: float  # … or at least a run
    same_thing: float  # share of the other events that stay at the thing of their run
    popular: float = 0.3  # share of the runs that begin at a popular category, not at an interest
    step: float = 60.0  # mean seconds from event to event of a session

    @property
    def end(self) -> int:
        return self.start + self.days * 86_400

    def events(self, first: int, last: int) -> Events:
        """The events of the users ``first … last − 1``."""
        begin, count = int(self.ends[first]), int(self.ends[last] - self.ends[first])
        draw = {
            name: self.draws.uniform(f"event {name}", begin, count)
            for name in ("step", "place", "pause", "run", "rank", "thing", "same", "btag", "odd", "stray")
        }
        user = np.repeat(np.arange(first, last), np.diff(self.ends[first : last + 1]))
        opens = np.zeros(count, dtype=bool)  # the first event of a user
        opens[self.ends[first:last][np.diff(self.ends[first : last + 1]) > 0] - begin] = True

        session = _latest(opens | (draw["step"] < self.new_session))
        pause = np.cumsum(1 - (np.log1p(-draw["pause"]) * self.step).astype(np.int64))
        time = self.times(draw["place"])[session] + pause - pause[session]
        time = np.minimum(time, self.end - 1)

        run = _latest(opens | (draw["step"] < self.new_session + self.new_run))
        slot = (INTERESTS * draw["run"] ** 2).astype(np.int64)
        interests, favourites = self.interests(first, last)
        place = user - first, slot
        thing = zipf(draw["thing"], self.things)
        is_popular = draw["rank"] < self.popular
        category = np.where(is_popular, zipf(draw["rank"] / self.popular, self.categories), interests[place])
        # Half of the runs at an interest begin at its favourite.
        loyal = draw["rank"] > (1 + self.popular) / 2
        first_thing = np.where(loyal, favourites[place], thing)
        is_first = run == np.arange(count)
        thing = np.where(is_first | (draw["same"] < self.same_thing), first_thing[run], thing)

        btag = np.searchsorted(np.cumsum(self.btag_shares)[:-1], draw["btag"], side="right").astype(np.int8)
        is_stray = draw["odd"] > 1 - self.strays
        low, high = STRAY_RANGE
        time = np.where(is_stray, low + (draw["stray"] * (high - low)).astype(np.int64), time)
        source = _latest(opens | (draw["odd"] >= self.repeats))
        return Events(user, time[source], btag[source], category[run][source], thing[source])

    def interests(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Categories and favourite things, each of shape (last − first, INTERESTS)."""
        place = first * INTERESTS, (last - first) * INTERESTS
        categories = zipf(self.draws.uniform("interest", *place), self.categories)
        things = zipf(self.draws.uniform("favourite", *place), self.things)
        return categories.reshape(-1, INTERESTS), things.reshape(-1, INTERESTS)

    def times(self, places: np.ndarray) -> np.ndarray:
        """Unix seconds at ``places`` (0 … 1) of the log's days, whose hours are as busy as real ones."""
        return time_at(places * self.days, self.start)

    def is_stray(self, time: np.ndarray) -> np.ndarray:
        return (time < self.start) | (time >= self.end)


def time_at(days: np.ndarray, start: int) -> np.ndarray:
    """Unix seconds so many days after ``start``, the part of a day bent to the busy hours."""
    day = days.astype(np.int64)
    second = np.interp(days - day, DAY_CURVE / DAY_CURVE[-1], np.arange(25) * 3600)
    return start + day * 86_400 + second.astype(np.int64)


def heavy_tail(draws: Draws, purpose: str, users: int, rows: int, spread: float) -> np.ndarray:
    """``rows`` shared out to users as log-normal numbers with that standard deviation of the logarithm, as ends."""
    return share_out(rows, np.exp(spread * draws.normal(purpose, users)))


def check_users(users: int, **rows: int) -> None:
    """ValueError: a number is negative, or the users (0: any number) are too few or too many for the rows."""
    for name, count in rows.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
        if users > 0 and count > users * MOST_ROWS_PER_USER:
            raise ValueError(
                f"{count} {name} of {users} users are more than {MOST_ROWS_PER_USER} per user; give more users"
            )
    if not 0 <= users <= sum(rows.values()):
        raise ValueError(
            f"users must be at least 1, or 0 for a number in proportion, and at most {' + '.join(rows)}, not {users}"
        )


def _latest(flags: np.ndarray) -> np.ndarray:
    """For each place the latest place up to it where the flag is set (the first is)."""
    return np.maximum.accumulate(np.where(flags, np.arange(len(flags)), 0))


def _text_order(numbers: np.ndarray) -> np.ndarray:
    """The order of positive ``numbers`` as texts: 1, 10, 100, 11, 2."""
    digits = np.floor(np.log10(numbers) + 1e-9).astype(np.int64) + 1
    return np.lexsort((digits, numbers * 10 ** (digits.max() - digits)))


@dataclass(frozen=True)
class UserBehaviorRaw(RawOptions):
    """Taobao UserBehavior.csv: user, item, category, btag, time; no header; sorted by user as text, then by time."""

    rows: int = 100_000
    """Events, exact repetitions and stray times included; the real file has 100,150,807."""
    users: int = 0
    """Different users; 0: one per 101 events, as in the real file."""
    items: int = 0
    """Different items at most; 0: one per two events, and not more than the 4,162,024 of the real file."""
    categories: int = 0
    """Different categories at most; 0: one per 18 items, and not more than the 9,439 of the real file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_users(self.users, rows=self.rows)
        if min(self.items, self.categories) < 0:
            raise ValueError("items and categories must be at least 1, or 0 for a number in proportion")

    def write(self, output: Output) -> None:
        log = _user_behavior_log(self)
        draws = log.draws
        numbers = np.sort(draws.permutation("user", int(1.03 * (len(log.ends) - 1)) + 1)[: len(log.ends) - 1])
        numbers = numbers[_text_order(numbers)]
        # Things are numbered category by category; the ids must not give the category away.
        item_ids = draws.permutation("item", log.categories * log.things)
        category_ids = draws.permutation("category", 500 * log.categories)[: log.categories]
        for first, last in blocks(log.ends, BLOCK_ROWS):
            events = log.events(first, last)
            order = np.lexsort((events.time, events.user))
            user, time, btag, category, thing = (column[order] for column in events)
            columns = {
                "user": numbers[user],
                "item": item_ids[category * log.things + thing],
                "category": category_ids[category],
                "btag": texts(btag, BTAGS),
                "time": time,
            }
            output.write("UserBehavior.csv", columns, final=self.rows)


def _user_behavior_log(options: UserBehaviorRaw) -> Log:
    draws = Draws(options.seed)
    users = options.users or max(1, round(options.rows / 101))
    items = options.items or min(4_162_024, max(10, options.rows // 2))
    categories = options.categories or min(9_439, max(5, items // 18))
    return Log(
        draws=draws,
        ends=heavy_tail(draws, "events", users, options.rows, spread=0.85),
        start=1_511_539_200,  # 2017-11-25 in China
        days=9,
        categories=min(categories, items),
        things=max(1, items // categories),
        btag_shares=(0.8958, 0.0553, 0.0288, 0.0201),
        repeats=0.0002,
        strays=0.0004,
        new_session=0.12,
        new_run=0.5,
        same_thing=0.1,
    )
