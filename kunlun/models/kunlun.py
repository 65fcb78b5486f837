"""Kunlun (arXiv 2602.10016): event towers and a global interaction that shape each other layer by layer.

Every component is chosen once, here, at construction; the forward has no toggles.
Legend: B rows · G histories · n context tokens · d model width · e event type · d_e its tower's width · L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

from kernels import Rotation
from kunlun.features import TIME, Batch, EventType, FeatureSchema, Jagged
from kunlun.layers.attention import SelfAttention
from kunlun.layers.context import ContextSummary
from kunlun.layers.embedding import EmbeddingConfig, EmbeddingTables, EventEncoder, FieldTokens, candidate_field
from kunlun.layers.gdpa import (
    GDPA,
    Context,
    GDPABlock,
    GDPAConfig,
    LinearPFFN,
    PersonalizedBlock,
    PersonalizedMap,
    SharedFFN,
)
from kunlun.layers.head import Heads
from kunlun.layers.merging import MERGED, merged, merged_schema
from kunlun.layers.pooling import HSP, PMA, MeanPooling, Pooling
from kunlun.layers.rote import Rote, RoteConfig
from kunlun.layers.wukong import LinearMix, WukongConfig, WukongExperts


@dataclass(frozen=True)
class Components:
    """The five components of the paper. False = what it replaced (the ``no_…`` ablations)."""

    gdpa: bool = True
    """False: InterFormer's linear PFFN."""
    hsp: bool = True
    """False: PMA, one cross-attention of M learned queries."""
    window: bool = True
    """False: full self-attention."""
    compskip: bool = True
    """False: every layer does PFFN, attention and a fresh summary."""
    event_personalization: bool = True
    """False: every event type gets the largest tower."""


@dataclass(frozen=True)
class TowerConfig:
    """The tower of one event type."""

    width: int = 32
    """d_e."""
    heads: int = 2
    """H; width / heads must be even."""
    tokens: int = 4
    """M, summary tokens."""
    layers: int = 2
    """L_e: past it, the tower keeps returning its last summary."""
    window: int = 16
    """w, half window of the self-attention."""

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.tokens, self.layers) < 1 or self.window < 0:
            raise ValueError(f"tower: width, heads, tokens and layers must be ≥ 1 and window ≥ 0, got {self}")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"tower: width must be a multiple of 2 · heads, got width {self.width}, heads {self.heads}"
            )


@dataclass(frozen=True)
class HSPConfig:
    """Hierarchical seed pooling."""

    seeds: int = 32
    """S, more than any tower's tokens."""
    rank: int = 4
    """k, the number of Kronecker terms."""

    def __post_init__(self) -> None:
        if min(self.seeds, self.rank) < 1:
            raise ValueError(f"hsp: seeds and rank must be ≥ 1, got {self}")


class EventTower(nn.Module):
    """The sequence side of all layers for one event type.

    CompSkip: an even layer does the PFFN and a fresh summary, an odd one only the attention, and its summary is the
    cached one. Otherwise every layer does all three. A skipped operator is None: it owns no parameters. A tower whose
    last layer changed the events without summarising them takes one more summary, for the next interaction or the head.
    """

    def __init__(
        self,
        config: TowerConfig,
        *,
        pffn: Callable[[], nn.Module],
        attention: Callable[[], nn.Module] | None,
        pooling: Callable[[], Pooling],
        compskip: bool,
    ) -> None:
        super().__init__()
        self.config = config
        even, odd = [True, False] if compskip else [True, True]
        self.pffn, self.attention, self.pool = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        stale = False
        for layer in range(config.layers):
            first = even if layer % 2 == 0 else odd
            second = attention is not None and (not compskip or layer % 2 == 1)
            self.pffn.append(pffn() if first else nn.Identity())
            self.attention.append(attention() if second and attention else nn.Identity())
            self.pool.append(pooling() if first else nn.Identity())
            stale = second and not first
        self.last_pool: Pooling | None = pooling() if stale else None

    def step(
        self, layer: int, sequence: Jagged, summary: Tensor | None, context: Context, rotation: Rotation
    ) -> tuple[Jagged, Tensor | None]:
        """Layer ``layer``: the events and the summary (B, M, d_e) after it."""
        if layer < self.config.layers:
            pffn, attention, pool = self.pffn[layer], self.attention[layer], self.pool[layer]
            if not isinstance(pffn, nn.Identity):
                sequence = pffn(sequence, context)
            if not isinstance(attention, nn.Identity):
                sequence = attention(sequence, rotation)
            if not isinstance(pool, nn.Identity):
                summary = pool(sequence, rotation)
        elif layer == self.config.layers and self.last_pool is not None:
            summary = self.last_pool(sequence, rotation)
        return sequence, summary


class Kunlun(nn.Module):
    """The full model; a data set without histories leaves its interaction side.

    Args:
        schema: of the data set; linked from the data in a run.
        width: d, of context tokens.
        layers: L.
        context_tokens: n_sum, tokens of the context summary.
        towers: a tower per event type, by name; ``default`` for those not named. A null takes a name back that an
            earlier config gave.
        components: the five toggles.
        drop: abilities taken away altogether (the ``drop_…`` ablations).
        uniform_events: every event type gets one same tower, at the FLOPs of the personalized ones.
        gdpa, hsp, rote, wukong, embedding: settings of the parts.
        pooling: a pooling module of your own instead of HSP, called with (width, heads, tokens).
        token_norm: field tokens at unit scale before the first interaction (ours).
        head_hidden: widths of the hidden layers of each task's head.
        dropout: in the head.

    Raises:
        ValueError: names the argument that does not fit.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        width: int = 32,
        layers: int = 2,
        context_tokens: int = 8,
        towers: dict[str, TowerConfig | None] | None = None,
        components: Components = Components(),
        drop: list[Literal["gdpa", "attention", "hsp", "wukong", "event_types"]] | None = None,
        uniform_events: bool = False,
        gdpa: GDPAConfig = GDPAConfig(),  # noqa: B008
        hsp: HSPConfig = HSPConfig(),
        rote: RoteConfig = RoteConfig(),  # noqa: B008
        wukong: WukongConfig = WukongConfig(),  # noqa: B008
        embedding: EmbeddingConfig = EmbeddingConfig(),  # noqa: B008
        pooling: Callable[[int, int, int], Pooling] | None = None,
        token_norm: bool = True,
        head_hidden: list[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(width, layers, context_tokens) < 1:
            raise ValueError(f"width, layers and context_tokens must be ≥ 1, got {width}, {layers}, {context_tokens}")
        self.schema, self.layers, self.width = schema, layers, width
        given = {name: tower for name, tower in (towers or {}).items() if tower is not None}
        self.merges = "event_types" in (drop or ()) and len(schema.events) > 1
        configs = choose_towers(schema, given, layers, components.event_personalization and not self.merges)
        if self.merges:
            schema = merged_schema(schema)
            configs = {MERGED: next(iter(configs.values()))}
        self.tables = EmbeddingTables(schema, embedding)
        self.context = FieldTokens(schema, self.tables, width, norm=token_norm)
        self._parts = _Parts(width, context_tokens, components, frozenset(drop or ()), gdpa, hsp, pooling)
        if uniform_events and not self.merges:
            configs = self._level(configs)
        # Module containers, not dicts and lists: the casts say what they hold.
        self.encoders = cast("dict[str, EventEncoder]", nn.ModuleDict())
        self.towers = cast("dict[str, EventTower]", nn.ModuleDict())
        self.projects = cast("dict[str, nn.Linear]", nn.ModuleDict())
        self.rotes = cast("dict[str, Rote]", nn.ModuleDict())
        for event in schema.events:
            config = configs[event.name]
            self.encoders[event.name] = EventEncoder(event, schema, self.tables, config.width)
            self.towers[event.name] = self._parts.tower(
                config, event.max_length, self.encoders[event.name].candidate is not None
            )
            self.projects[event.name] = nn.Linear(config.width, width)
            self.rotes[event.name] = Rote(config.width // config.heads, rote)
        summary_tokens = sum(_tokens(self.towers[e.name]) for e in schema.events)
        self.summaries = cast("list[ContextSummary]", nn.ModuleList())
        self.interactions = cast("list[WukongExperts | LinearMix]", nn.ModuleList())
        interaction = LinearMix if "wukong" in self._parts.drop else WukongExperts
        tokens = self.context.count
        for _ in range(layers):
            self.summaries.append(ContextSummary(tokens, context_tokens, width))
            self.interactions.append(interaction(context_tokens + summary_tokens, width, wukong))
            tokens = wukong.tokens
        # A tower as deep as the model may still hold a summary that no interaction has read.
        self.late = [
            e.name
            for e in schema.events
            if configs[e.name].layers == layers and self.towers[e.name].last_pool is not None
        ]
        inputs = (tokens + sum(_tokens(self.towers[name]) for name in self.late)) * width
        self.heads = Heads(inputs, head_hidden, len(schema.tasks), dropout)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, tasks)."""
        batch = merged(batch) if self.merges else batch
        x_Bnd = self.context(batch, self.tables)
        sequences, rotations = self._events(batch)
        candidates = {
            name: encoder.encode_candidate(batch.sparse, self.tables) for name, encoder in self.encoders.items()
        }
        summaries: dict[str, Tensor | None] = dict.fromkeys(sequences)
        for layer in range(self.layers):
            x_sum = self.summaries[layer](x_Bnd)
            tokens = [x_sum]
            for name, tower in self.towers.items():
                sequences[name], summaries[name] = tower.step(
                    layer, sequences[name], summaries[name], Context(x_sum, candidates[name]), rotations[name]
                )
                tokens.append(self.projects[name](summaries[name]))
            x_Bnd = self.interactions[layer](torch.cat(tokens, dim=1))
        last = [x_Bnd]
        for name in self.late:
            _, summary = self.towers[name].step(
                self.layers, sequences[name], None, Context(x_sum, None), rotations[name]
            )
            last.append(self.projects[name](summary))
        return self.heads(torch.cat(last, dim=1).flatten(1))

    def _events(self, batch: Batch) -> tuple[dict[str, Jagged], dict[str, Rotation]]:
        """Encoded events and their rotations, one sequence per row. A history that several rows share is looked up
        and encoded once; only then do its rows part, because the context of each changes the events."""
        sequences, rotations = {}, {}
        for name, encoder in self.encoders.items():
            fields = batch.events[name]
            sequence = batch.per_row(encoder(fields, self.tables))
            times = batch.per_row(fields[TIME]).values if TIME in fields else None
            sequences[name] = sequence
            rotations[name] = self.rotes[name](sequence, times, batch.request_time)
        return sequences, rotations

    def _level(self, configs: dict[str, TowerConfig]) -> dict[str, TowerConfig]:
        """One tower for all event types whose FLOPs, at the data's mean lengths, come nearest to ``configs``."""
        if not configs:
            return configs
        lengths = {e.name: min(round(e.mean_length), e.max_length) or e.max_length for e in self.schema.events}
        events = {e.name: e for e in self.schema.events}

        def cost(chosen: dict[str, TowerConfig]) -> int:
            return sum(self._parts.flops(c, events[n], lengths[n], self.schema) for n, c in chosen.items())

        budget = cost(configs)
        largest = max(configs.values(), key=lambda c: (c.width * c.layers, c.width))
        step = 2 * largest.heads
        widths = range(step, largest.width + step, step)
        uniform = [dict.fromkeys(configs, replace(largest, width=w)) for w in widths]
        return min(uniform, key=lambda chosen: abs(cost(chosen) - budget))

    def parts(self) -> dict[str, list[nn.Module]]:
        """The modules of each part that :meth:`flops` counts."""
        towers = [cast("dict[str, list[nn.Module]]", tower_parts(tower)) for tower in self.towers.values()]
        return {
            "tokens": [self.context],
            "encoder": list(self.encoders.values()),
            "context_summary": list(self.summaries),
            **{part: [m for tower in towers for m in tower[part]] for part in ("pffn", "attention", "pooling")},
            "interaction": [*self.interactions, *self.projects.values()],
            "head": list(self.heads),
        }

    def flops(self, lengths: dict[str, int]) -> dict[str, int]:
        """Forward FLOPs of one sample by part; ``lengths``: events of each type. 1 multiply-add = 2; matrix products
        only: lookups, norms, activations and rotations are not counted."""
        lengths = {MERGED: sum(lengths.values())} if self.merges else lengths
        parts = {
            "tokens": self.context.flops(),
            "encoder": sum(self.encoders[e].flops(n) for e, n in lengths.items()),
            "context_summary": sum(m.flops() for m in self.summaries),
            "pffn": 0,
            "attention": 0,
            "pooling": 0,
            "interaction": sum(m.flops() for m in self.interactions),
            "head": self.heads.flops(),
        }
        for name, length in lengths.items():
            tower = self.towers[name]
            for part, modules in tower_parts(tower).items():
                parts[part] += sum(m.flops(length) for m in modules)
            projected = (self.layers + (name in self.late)) * _tokens(tower)
            parts["interaction"] += 2 * projected * self.projects[name].weight.numel()
        return parts


@dataclass(frozen=True)
class _Parts:
    """Builds towers: the one place where toggles turn into modules."""

    width: int
    context_tokens: int
    components: Components
    drop: frozenset[str]
    gdpa: GDPAConfig
    hsp: HSPConfig
    pooling: Callable[[int, int, int], Pooling] | None

    def tower(self, config: TowerConfig, max_length: int, candidate: bool) -> EventTower:
        half_window = config.window if self.components.window else None
        return EventTower(
            config,
            pffn=lambda: self._block(config, max_length, candidate),
            attention=None
            if "attention" in self.drop
            else lambda: SelfAttention(config.width, config.heads, half_window),
            pooling=lambda: self._pooling(config),
            compskip=self.components.compskip,
        )

    def _block(self, config: TowerConfig, max_length: int, candidate: bool) -> PersonalizedBlock:
        inner = self._pffn(config, max_length, candidate)
        if isinstance(inner, GDPA) and inner.fused:
            return GDPABlock(inner, config.width)
        return PersonalizedBlock(inner, config.width)

    def _pffn(self, config: TowerConfig, max_length: int, candidate: bool) -> PersonalizedMap:
        if "gdpa" in self.drop:
            return SharedFFN(config.width, self.gdpa.kv_tokens)
        if not self.components.gdpa:
            return LinearPFFN(self.context_tokens, self.width, config.width)
        return GDPA(self.context_tokens, self.width, config.width, config.heads, max_length, candidate, self.gdpa)

    def _pooling(self, config: TowerConfig) -> Pooling:
        sizes = (config.width, config.heads, config.tokens)
        if "hsp" in self.drop:
            return MeanPooling(*sizes)
        if not self.components.hsp:
            return PMA(*sizes)
        if self.pooling is not None:
            return self.pooling(*sizes)
        return HSP(*sizes, **asdict(self.hsp))

    def flops(self, config: TowerConfig, event: EventType, length: int, schema: FeatureSchema) -> int:
        """Of one sample, without building parameters in memory."""
        with torch.device("meta"):
            candidate = all(candidate_field(f, schema.sparse) is not None for f in event.fields)
            tower = self.tower(config, event.max_length, candidate)
        return sum(m.flops(length) for modules in tower_parts(tower).values() for m in modules)


class Counted(Protocol):
    """What all parts of a tower have in common: the FLOPs of one sample with ``length`` events."""

    def flops(self, length: int) -> int: ...


def tower_parts(tower: EventTower) -> dict[str, list[Counted]]:
    """The modules of a tower that exist, by part."""

    def real(modules: nn.ModuleList) -> list[Counted]:
        return cast("list[Counted]", [m for m in modules if not isinstance(m, nn.Identity)])

    last: list[Counted] = [] if tower.last_pool is None else [tower.last_pool]
    return {"pffn": real(tower.pffn), "attention": real(tower.attention), "pooling": real(tower.pool) + last}


def choose_towers(
    schema: FeatureSchema, towers: dict[str, TowerConfig], layers: int, personalized: bool
) -> dict[str, TowerConfig]:
    """The tower of each event type of ``schema``; all the largest where they are not personalized."""
    names = [e.name for e in schema.events]
    unknown = set(towers) - {*names, "default"}
    if unknown and names:
        raise ValueError(f"towers: no event type {sorted(unknown)} in {schema.name!r}; it has {names} (and 'default')")
    chosen = {name: towers.get(name, towers.get("default", TowerConfig())) for name in names}
    for name, config in chosen.items():
        if config.layers > layers:
            raise ValueError(f"towers.{name}.layers: {config.layers} exceed the model's {layers} layers")
    if not personalized and chosen:
        largest = max(chosen.values(), key=lambda c: (c.width * c.layers, c.width, c.tokens, c.window))
        chosen = dict.fromkeys(chosen, largest)
    return chosen


def _tokens(tower: EventTower) -> int:
    """Summary tokens a tower gives (a pooling module may give fewer than asked)."""
    return next(m.tokens for m in tower.modules() if isinstance(m, Pooling))
