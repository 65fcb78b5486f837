"""Generated Taobao display ads: the world of users, ads, behaviours and impressions behind the two layouts.

Whether an impression is clicked depends on the user's behaviours strictly before its second, and on nothing else:
the click rate is 1 + CATEGORY_LIFT if the ad's category is among them, + BRAND_LIFT if its brand is, times the number
that makes the rate of all impressions CLICK_RATE. Half of the ads shown are in a category that interests the user,
the others are those popular with everyone, so both kinds are common.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from data.generate import Draws, blocks, zipf
from data.generate_log import BLOCK_ROWS, INTERESTS, Events, Log, check_users, heavy_tail, time_at

CLICK_RATE = 0.0514
CATEGORY_LIFT, BRAND_LIFT = 2.0, 4.0
INTERESTING = 0.5  # share of the ads shown that are in one of the user's categories
START, DAYS = 1_492_790_400, 22  # behaviour from 2017-04-22 to 05-13 in China
FIRST_AD_DAY = 14  # impressions from 2017-05-06 on
WITHOUT_PROFILE = 0.057  # of the impressions
NULL_BRANDS, NO_PVALUE_LEVEL, NO_CLASS_LEVEL = 0.29, 0.54, 0.32
TIES = 0.003  # share of the events that are in the very second of one of the user's impressions
PILOT_ROWS = 500_000  # events and impressions of the first users, on which the rate of clicks is fitted
THINGS = 32  # brands per category
LOWEST_CENTS, HIGHEST_CENTS = 1, 9_999_999_900
MOST_CATEGORIES, MOST_BRANDS = 2**17, 2**20  # so that user, category or brand, and time fit 64 bits
PROFILE_FIELDS = (
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
    "new_user_class_level",
)


@dataclass(frozen=True)
class Size:
    """How much of everything there is."""

    impressions: int
    events: int
    users: int
    ads: int
    categories: int
    brands: int

    @classmethod
    def of(cls, impressions: int, events: int, users: int, ads: int, categories: int, brands: int) -> Size:
        """The numbers given; for each 0 one in proportion to the others, and not more than the real files have.

        ValueError: numbers that cannot be.
        """
        check_users(users, impressions=impressions, events=events)
        if min(ads, categories, brands) < 0 or categories > MOST_CATEGORIES or brands > MOST_BRANDS:
            raise ValueError(
                "ads, categories and brands must not be negative (0: a number in proportion), "
                f"categories at most {MOST_CATEGORIES} and brands at most {MOST_BRANDS}"
            )
        users = users or max(1, round(impressions / 23), round(events / 633))
        ads = ads or min(846_811, max(10, impressions // 31))
        categories = categories or min(12_960, max(10, ads // 12))
        return cls(impressions, events, users, ads, categories, brands or min(460_561, max(10, ads // 2)))


class Impressions(NamedTuple):
    """One array per column, user after user."""

    user: np.ndarray  # from 0
    time: np.ndarray  # unix seconds
    ad: np.ndarray  # place in the list of ads
    pid: np.ndarray  # place in PIDS
    click: np.ndarray


@dataclass(frozen=True)
class World:
    """Users, ads, and what happens: behaviour and impressions of any range of users, each time the same."""

    draws: Draws
    size: Size
    without_profile: float = WITHOUT_PROFILE

    @cached_property
    def log(self) -> Log:
        return Log(
            draws=self.draws,
            ends=heavy_tail(self.draws, "events", self.size.users, self.size.events, spread=1.0),
            start=START,
            days=DAYS,
            categories=self.size.categories,
            things=THINGS,
            btag_shares=(0.95, 0.024, 0.014, 0.012),
            repeats=0.07,
            strays=0.0001,
            new_session=0.06,
            new_run=0.2,
            same_thing=0.6,
        )

    @cached_property
    def impression_ends(self) -> np.ndarray:
        return heavy_tail(self.draws, "impressions", self.size.users, self.size.impressions, spread=1.0)

    @cached_property
    def user_ids(self) -> np.ndarray:
        return self.draws.permutation("user", self.size.users)

    @cached_property
    def has_profile(self) -> np.ndarray:
        """Users drawn at random go without, as long as their impressions are no more than the share that is wanted."""
        order = self.draws.permutation("profile", self.size.users) - 1
        impressions = np.cumsum(np.diff(self.impression_ends)[order])
        has = np.ones(self.size.users, dtype=bool)
        has[order[impressions <= self.without_profile * self.size.impressions]] = self.without_profile == 0
        return has

    @cached_property
    def category_ids(self) -> np.ndarray:
        return self.draws.permutation("category", self.size.categories)

    @cached_property
    def brand_ids(self) -> np.ndarray:
        """Of each thing in each category, of shape (categories, THINGS); a brand can be in many categories."""
        draws = self.draws.uniform("brand", 0, self.size.categories * THINGS)
        ids = self.draws.permutation("brand", self.size.brands)
        return ids[(draws * self.size.brands).astype(np.int64)].reshape(-1, THINGS)

    @cached_property
    def ad_categories(self) -> np.ndarray:
        """Category of each ad as a rank, ascending: the ads of a category are together."""
        return np.sort(zipf(self.draws.uniform("ad category", 0, self.size.ads), self.size.categories))

    @cached_property
    def ad_brands(self) -> np.ndarray:
        """Brand id of each ad, 0 where it has none."""
        things = zipf(self.draws.uniform("ad thing", 0, self.size.ads), THINGS)
        has = self.draws.uniform("ad brand", 0, self.size.ads) >= NULL_BRANDS
        return np.where(has, self.brand_ids[self.ad_categories, things], 0)

    @cached_property
    def ad_ids(self) -> np.ndarray:
        return self.draws.permutation("ad", self.size.ads)

    @cached_property
    def ad_owners(self) -> tuple[np.ndarray, np.ndarray]:
        """Campaign and customer of each ad; a customer runs campaigns, a campaign has ads."""
        campaigns = (self.draws.uniform("campaign", 0, self.size.ads) * (self.size.ads // 2 + 1)).astype(np.int64)
        return campaigns + 1, campaigns * 7 // 12 + 1

    @cached_property
    def ad_cents(self) -> np.ndarray:
        """Price in hundredths: log-normal, mostly whole, a thousandth anywhere, the first and last at the ends."""
        cents = np.exp(np.log(15_000) + 1.3 * self.draws.normal("price", self.size.ads))
        odd = self.draws.uniform("odd price", 0, self.size.ads)
        cents = np.where(odd > 0.3, np.ceil(cents / 100) * 100, cents)
        cents = np.where(odd < 0.001, HIGHEST_CENTS ** np.minimum(odd / 0.001, 1), cents).round().astype(np.int64)
        cents[0], cents[-1] = LOWEST_CENTS, HIGHEST_CENTS
        return np.clip(cents, LOWEST_CENTS, HIGHEST_CENTS)

    @cached_property
    def base_rate(self) -> float:
        """Click rate of an ad whose category and brand the user has not met."""
        ends = self.log.ends + self.impression_ends
        first, last = next(
            (first, last) for first, last in blocks(ends, PILOT_ROWS) if np.ptp(self.impression_ends[[first, last]])
        )
        return CLICK_RATE / self._lift(self._shown(first, last), self.events(first, last)).mean()

    def user_blocks(self) -> list[tuple[int, int]]:
        return list(blocks(self.log.ends + self.impression_ends, BLOCK_ROWS))

    def events(self, first: int, last: int) -> Events:
        """Behaviour of the users ``first … last − 1``.

        Some events are in the second of one of the user's impressions and in its ad's category: a reader that takes
        them for the past counts more than it should.
        """
        events = self.log.events(first, last)
        begin, count = int(self.log.ends[first]), len(events.user)
        tie = self.draws.uniform("tie", begin, count)
        choice = np.diff(self.impression_ends)[events.user]
        which = self.impression_ends[events.user] - self.impression_ends[first] + (tie / TIES * choice).astype(np.int64)
        tied = (tie < TIES) & (choice > 0)
        shown = self._shown(first, last)
        time, category = events.time.copy(), events.category.copy()
        time[tied], category[tied] = shown.time[which[tied]], self.ad_categories[shown.ad[which[tied]]]
        return events._replace(time=time, category=category)

    def impressions(self, first: int, last: int, events: Events) -> Impressions:
        """Impressions of the users ``first … last − 1``, whose behaviour is ``events``; no two are the same."""
        shown = self._shown(first, last)
        rate = self.base_rate * self._lift(shown, events)
        draw = self.draws.uniform("click", int(self.impression_ends[first]), len(shown.user))
        return shown._replace(click=draw < rate)

    def profiles(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Profile fields of the users ``first … last − 1``; 0 in the last of the levels is 'not known'."""
        draw = {name: self.draws.uniform(name, first, last - first) for name in PROFILE_FIELDS}
        gender = _pick(draw["final_gender_code"], (0.27, 0.73)) + 1
        age = _pick(draw["age_level"], (0.005, 0.03, 0.25, 0.32, 0.2, 0.17, 0.025))
        group = age + np.where((gender == 1) & (age > 0), 6, 0)
        segment = np.where(draw["cms_segid"] < 0.54, 0, 1 + (draw["cms_segid"] * 1e6).astype(np.int64) % 8 + 8 * group)
        known = (1 - NO_PVALUE_LEVEL) * np.array([0.28, 0.62, 0.1])
        classes = (1 - NO_CLASS_LEVEL) * np.array([0.1, 0.5, 0.25, 0.15])
        return {
            "cms_segid": np.minimum(segment, 96),
            "cms_group_id": group,
            "final_gender_code": gender,
            "age_level": age,
            "pvalue_level": _pick(draw["pvalue_level"], (NO_PVALUE_LEVEL, *known)),
            "shopping_level": _pick(draw["shopping_level"], (0.04, 0.08, 0.88)) + 1,
            "occupation": _pick(draw["occupation"], (0.94, 0.06)),
            "new_user_class_level": _pick(draw["new_user_class_level"], (NO_CLASS_LEVEL, *classes)),
        }

    def _shown(self, first: int, last: int) -> Impressions:
        """Impressions whose click is not known yet."""
        ends = self.impression_ends
        begin, count = int(ends[first]), int(ends[last] - ends[first])
        draw = {
            name: self.draws.uniform(f"impression {name}", begin, count)
            for name in ("hour", "ad", "slot", "rank", "pid")
        }
        user = np.repeat(np.arange(first, last), np.diff(ends[first : last + 1]))
        # The days in turn: each has the same share of the impressions, whatever their number.
        ad_days = DAYS - FIRST_AD_DAY
        time = time_at(FIRST_AD_DAY + np.arange(begin, begin + count) % ad_days + draw["hour"], START)

        ads = zipf(draw["rank"], self.size.ads)
        popular = (ads * 7_368_787 + 1) % self.size.ads  # a prime: spreads the popular ads over the categories
        slot = (draw["slot"] ** 2 * INTERESTS).astype(np.int64)
        category = self.log.interests(first, last)[0][user - first, slot]
        begins = np.searchsorted(self.ad_categories, category)
        there = np.searchsorted(self.ad_categories, category, side="right") - begins
        interesting = begins + zipf(draw["rank"], np.maximum(there, 1))
        ad = np.where((draw["ad"] < INTERESTING) & (there > 0), interesting, popular)
        time = _made_distinct(user, time, ad, START + DAYS * 86_400)
        pid = (draw["pid"] >= 0.6).astype(np.int8)
        return Impressions(user, time, ad, pid, np.zeros(count, dtype=bool))

    def _lift(self, shown: Impressions, events: Events) -> np.ndarray:
        """How much more likely than an unmet ad each one shown is to be clicked."""
        usable = ~self.log.is_stray(events.time)
        user, time, category = events.user[usable], events.time[usable], events.category[usable]
        brand = self.brand_ids[category, events.thing[usable]]
        category_met = _met(user, category, time, shown.user, self.ad_categories[shown.ad], shown.time)
        brand_met = _met(user, brand, time, shown.user, self.ad_brands[shown.ad], shown.time)
        return 1 + CATEGORY_LIFT * category_met + BRAND_LIFT * brand_met


def _made_distinct(user: np.ndarray, time: np.ndarray, ad: np.ndarray, end: int) -> np.ndarray:
    """The times, moved on by seconds where a user is shown an ad twice in one; the log's last second moves back."""
    time = time.copy()
    while True:
        order = np.lexsort((time, ad, user))
        same = np.zeros(len(order), dtype=bool)
        same[1:] = (np.diff(user[order]) == 0) & (np.diff(ad[order]) == 0) & (np.diff(time[order]) == 0)
        if not same.any():
            return time
        again = order[same]
        time[again] += 1
        late = again[time[again] >= end]
        # Back to the day's beginning, which is hardly ever full.
        time[late] -= 86_400


def _met(
    users: np.ndarray, values: np.ndarray, times: np.ndarray, user: np.ndarray, value: np.ndarray, time: np.ndarray
) -> np.ndarray:
    """Whether ``user`` has ``value`` among its (``users``, ``values``) at a time strictly before ``time``."""
    first = users.min() if len(users) else 0
    width = int(max(values.max(initial=0), value.max(initial=0))) + 1
    span = DAYS * 86_400 + 1
    known = np.sort(((users - first) * width + values) * span + times - START)
    wanted = ((user - first) * width + value) * span
    return np.searchsorted(known, wanted + time - START) > np.searchsorted(known, wanted)


def _pick(uniform: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """0, 1, … with these shares."""
    return np.searchsorted(np.cumsum(shares)[:-1], uniform, side="right")
