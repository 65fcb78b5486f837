"""InterFormer (arXiv 2411.09852): field tokens and sequences learn from summaries of each other, layer by layer.

Legend: B rows · N packed tokens · n context tokens · n_sum summary tokens (as many CLS) · d width · L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from kernels import Rotation
from kunlun.features import TIME, Batch, FeatureSchema, Jagged
from kunlun.layers.attention import SelfAttention
from kunlun.layers.context import ContextSummary, Gate
from kunlun.layers.cross_network import CrossNetwork
from kunlun.layers.dot_interaction import DotInteraction
from kunlun.layers.embedding import EmbeddingConfig, EmbeddingTables, EventEncoder, FieldTokens
from kunlun.layers.gdpa import Context, LinearPFFN, PersonalizedBlock
from kunlun.layers.head import Heads, linear_flops, mlp
from kunlun.layers.joining import as_sequences, join_order, reorder
from kunlun.layers.pooling import PMA
from kunlun.layers.rote import Rote, RoteConfig


@dataclass(frozen=True)
class SummaryConfig:
    """The cross arch: how many tokens tell one side of the other."""

    context: int = 4
    """n_sum, tokens of X_sum; prepended to the events once, they are the CLS tokens."""
    pooled: int = 2
    """PMA tokens of a sequence."""
    recent: int = 2
    """K, a sequence's newest events."""

    def __post_init__(self) -> None:
        if min(self.context, self.pooled, self.recent) < 1:
            raise ValueError(f"summary: context, pooled and recent must be ≥ 1, got {self}")

    @property
    def sequence(self) -> int:
        """Tokens of S_sum."""
        return self.context + self.pooled + self.recent


@dataclass(frozen=True)
class InteractionConfig:
    """The interaction arch."""

    kind: Literal["dcnv2", "dot"] = "dcnv2"
    """A cross network on the concatenated tokens, or dot products of their pairs."""
    cross_layers: int = 1
    """Of the cross network."""
    rank: int | None = 32
    """Of the cross network's matrices; null = full."""
    hidden: int = 128
    """Hidden width of the MLP that makes the next tokens."""

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"interaction.hidden must be ≥ 1, got {self.hidden}")


class InteractionArch(nn.Module):
    """``X⁽ˡ⁺¹⁾ = LN(X⁽ˡ⁾ + MLP(Interaction([X⁽ˡ⁾ ‖ S_sum])))`` (section 4.2).

    *Deviation (ours)*: shortcut and norm; the paper's equation has neither, DHEN, its choice in experiments, has both.
    """

    def __init__(self, tokens: int, summary_tokens: int, width: int, config: InteractionConfig) -> None:
        super().__init__()
        inputs = tokens + summary_tokens
        self.dot = config.kind == "dot"
        self.interact: DotInteraction | CrossNetwork
        if self.dot:
            self.interact = DotInteraction(inputs, width)
            features = self.interact.outputs
        else:
            features = inputs * width
            self.interact = CrossNetwork(features, config.cross_layers, config.rank)
        self.mlp = mlp(features, [config.hidden], tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_Bnd: Tensor, summaries: list[Tensor]) -> Tensor:
        """(B, n, d) and the S_sum of each event type, (B, tokens, d) → (B, n, d)."""
        tokens = torch.cat([x_Bnd, *summaries], dim=1)
        features = self.interact(tokens if self.dot else tokens.flatten(1))
        return self.norm(x_Bnd + self.mlp(features).view_as(x_Bnd))

    def flops(self) -> int:
        return self.interact.flops() + linear_flops(self.mlp)


class SequenceSummary(nn.Module):
    """``S_sum = Gate([S_CLS ‖ S_PMA ‖ S_recent])`` (section 4.4): (B, n_sum + PMA + K, d).

    Recent tokens come newest first; where a history has fewer, zeros. PMA attends to the CLS tokens too, so that it is
    defined for an empty history.
    """

    def __init__(self, width: int, heads: int, config: SummaryConfig) -> None:
        super().__init__()
        self.config = config
        self.pool = PMA(width, heads, config.pooled)
        self.gate = Gate(width)

    def forward(self, sequence: Jagged, rotation: Rotation) -> Tensor:
        """``sequence``: Jagged of (N, d), each one's CLS tokens first."""
        starts, ends = sequence.offsets[:-1, None], sequence.offsets[1:, None]
        device = starts.device
        cls_BMd = sequence.values[starts + torch.arange(self.config.context, device=device)]
        rows = ends - 1 - torch.arange(self.config.recent, device=device)
        there = rows >= starts + self.config.context
        recent_BKd = sequence.values[rows.clamp(min=0)] * there[:, :, None]
        return self.gate(torch.cat([cls_BMd, self.pool(sequence, rotation), recent_BKd], dim=1))

    def flops(self, length: int) -> int:
        return self.pool.flops(length) + self.gate.flops(self.config.sequence)


class SequenceTower(nn.Module):
    """All layers of one event type: ``S⁽ˡ⁺¹⁾ = MHA(PFFN(X_sum, S⁽ˡ⁾))`` (section 4.3) and a summary before each and
    after the last. ``PFFN = S · W`` with W generated from X_sum for each sample; full attention.

    *Deviation (ours)*: residuals and norms around both, those of Kunlun's blocks.
    """

    def __init__(self, width: int, heads: int, layers: int, config: SummaryConfig) -> None:
        super().__init__()
        pffn = [PersonalizedBlock(LinearPFFN(config.context, width, width), width) for _ in range(layers)]
        self.pffn = cast("list[PersonalizedBlock]", nn.ModuleList(pffn))
        attention = nn.ModuleList(SelfAttention(width, heads, None) for _ in range(layers))
        self.attention = cast("list[SelfAttention]", attention)
        summaries = nn.ModuleList(SequenceSummary(width, heads, config) for _ in range(layers + 1))
        self.summaries = cast("list[SequenceSummary]", summaries)

    def step(self, layer: int, sequence: Jagged, x_sum: Tensor, rotation: Rotation) -> Jagged:
        return self.attention[layer](self.pffn[layer](sequence, Context(x_sum, None)), rotation)


class InterFormer(nn.Module):
    """Interaction arch, sequence arch and cross arch, L times; then the head on a last cross arch's [X_sum ‖ S_sum].

    *Deviations (ours)*: events of several types are no aligned sequences that MaskNet could merge, so each type has a
    sequence arch of its own and its S_sum joins the others'; the gate is :class:`kunlun.layers.context.Gate`'s;
    X_sum is linear along the tokens.

    Args:
        schema: of the data set.
        width: d, of context tokens and events.
        heads: of the attention; width must be a multiple of 2 · heads.
        layers: L.
        summary: sizes of the cross arch.
        interaction: the interaction arch.
        rote: ``mode: position`` is the paper's rotary position embedding; ``time`` adds the age (Kunlun's ROTE).
        embedding: of the tables.
        head_hidden: widths of the hidden layers of each task's head.
        dropout: in the head.

    Raises:
        ValueError: names the argument that does not fit.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        width: int = 32,
        heads: int = 2,
        layers: int = 2,
        summary: SummaryConfig = SummaryConfig(),
        interaction: InteractionConfig = InteractionConfig(),
        rote: RoteConfig = RoteConfig(mode="position"),  # noqa: B008
        embedding: EmbeddingConfig = EmbeddingConfig(),  # noqa: B008
        head_hidden: list[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(width, heads, layers) < 1:
            raise ValueError(f"width, heads and layers must be ≥ 1, got {width}, {heads}, {layers}")
        if width % (2 * heads):
            raise ValueError(f"width must be a multiple of 2 · heads, got width {width}, heads {heads}")
        self.schema, self.layers, self.summary = schema, layers, summary
        self.tables = EmbeddingTables(schema, embedding)
        self.context = FieldTokens(schema, self.tables, width)
        encoders = nn.ModuleDict({e.name: EventEncoder(e, schema, self.tables, width) for e in schema.events})
        towers = nn.ModuleDict({e.name: SequenceTower(width, heads, layers, summary) for e in schema.events})
        self.encoders = cast("dict[str, EventEncoder]", encoders)
        self.towers = cast("dict[str, SequenceTower]", towers)
        self.rote = Rote(width // heads, rote)
        summary_tokens = len(schema.events) * summary.sequence
        tokens = self.context.count
        # X_sum speaks to the sequences; without any, only the head reads one.
        wanted = layers + 1 if schema.events else 1
        summaries = nn.ModuleList(ContextSummary(tokens, summary.context, width) for _ in range(wanted))
        interactions = nn.ModuleList(InteractionArch(tokens, summary_tokens, width, interaction) for _ in range(layers))
        self.summaries = cast("list[ContextSummary]", summaries)
        self.interactions = cast("list[InteractionArch]", interactions)
        self.heads = Heads((summary.context + summary_tokens) * width, head_hidden, len(schema.tasks), dropout)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, tasks)."""
        x_Bnd = self.context(batch, self.tables)
        if not self.towers:
            for interaction in self.interactions:
                x_Bnd = interaction(x_Bnd, [])
            return self.heads(self.summaries[-1](x_Bnd).flatten(1))
        x_sum = self.summaries[0](x_Bnd)
        sequences, rotations = self._events(batch, x_sum)
        for layer, interaction in enumerate(self.interactions):
            s_sums = self._summarise(layer, sequences, rotations)
            for name, tower in self.towers.items():
                sequences[name] = tower.step(layer, sequences[name], x_sum, rotations[name])
            x_Bnd = interaction(x_Bnd, s_sums)
            x_sum = self.summaries[layer + 1](x_Bnd)
        last = [x_sum, *self._summarise(self.layers, sequences, rotations)]
        return self.heads(torch.cat(last, dim=1).flatten(1))

    def _summarise(self, layer: int, sequences: dict[str, Jagged], rotations: dict[str, Rotation]) -> list[Tensor]:
        """S_sum of each event type, (B, tokens, d)."""
        return [t.summaries[layer](sequences[name], rotations[name]) for name, t in self.towers.items()]

    def _events(self, batch: Batch, x_sum: Tensor) -> tuple[dict[str, Jagged], dict[str, Rotation]]:
        """``S⁽¹⁾ = [X_sum ‖ S]``, one sequence per row: the CLS tokens come first and count as made at the request."""
        sequences, rotations = {}, {}
        cls = as_sequences(x_sum)
        for name, encoder in self.encoders.items():
            events = batch.per_row(encoder(batch.events[name], self.tables))
            order = join_order([cls, events])
            sequence = reorder(order, [cls.values, events.values])
            times = None
            if TIME in batch.events[name] and batch.request_time is not None:
                made = batch.request_time.repeat_interleave(self.summary.context)
                times = reorder(order, [made, batch.per_row(batch.events[name][TIME]).values]).values
            sequences[name] = sequence
            rotations[name] = self.rote(sequence, times, batch.request_time)
        return sequences, rotations

    def flops(self, lengths: dict[str, int]) -> dict[str, int]:
        """Forward FLOPs of one sample by part; ``lengths``: events of each type. Matrix products only."""
        parts = {
            "tokens": self.context.flops(),
            "encoder": sum(self.encoders[name].flops(n, candidate=False) for name, n in lengths.items()),
            "context_summary": sum(m.flops() for m in self.summaries),
            "pffn": 0,
            "attention": 0,
            "pooling": 0,
            "interaction": sum(m.flops() for m in self.interactions),
            "head": self.heads.flops(),
        }
        for name, length in lengths.items():
            tokens, tower = length + self.summary.context, self.towers[name]
            parts["pffn"] += sum(m.flops(tokens) for m in tower.pffn)
            parts["attention"] += sum(m.flops(tokens) for m in tower.attention)
            parts["pooling"] += sum(m.flops(tokens) for m in tower.summaries)
        return parts
