"""Wukong (arXiv 2403.02545): stacked factorization machines on the field tokens.

Legend: B rows · n tokens · d width · L layers.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from kunlun.features import Batch, FeatureSchema
from kunlun.layers.embedding import EmbeddingConfig, EmbeddingTables
from kunlun.layers.head import Heads
from kunlun.layers.pooled_events import PooledTokens
from kunlun.layers.wukong import WukongConfig, WukongExperts


class Wukong(nn.Module):
    """L Wukong layers on the field tokens and one mean-pooled token per event type, then an MLP (section 3).

    Args:
        schema: of the data set.
        width: d, of the tokens.
        layers: L.
        wukong: of each layer; one expert on all tokens is the paper's, n_F = n_L = tokens / 2.
        embedding: of the tables.
        token_norm: field tokens at unit scale, as in Kunlun, whose interaction this is.
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
        wukong: WukongConfig = WukongConfig(experts=1),  # noqa: B008
        embedding: EmbeddingConfig = EmbeddingConfig(),  # noqa: B008
        token_norm: bool = True,
        head_hidden: list[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(width, layers) < 1:
            raise ValueError(f"width and layers must be ≥ 1, got {width} and {layers}")
        self.schema = schema
        self.tables = EmbeddingTables(schema, embedding)
        self.tokens = PooledTokens(schema, self.tables, width, norm=token_norm)
        counts = [self.tokens.count, *[wukong.tokens] * layers]
        layer_list = nn.ModuleList(WukongExperts(n, width, wukong) for n in counts[:-1])
        self.layers = cast("list[WukongExperts]", layer_list)
        self.heads = Heads(wukong.tokens * width, head_hidden, len(schema.tasks), dropout)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, tasks)."""
        x_Bnd = self.tokens(batch, self.tables)
        for layer in self.layers:
            x_Bnd = layer(x_Bnd)
        return self.heads(x_Bnd.flatten(1))

    def flops(self, lengths: dict[str, int]) -> dict[str, int]:
        """Forward FLOPs of one sample by part; ``lengths``: events of each type. Matrix products only."""
        interaction = sum(layer.flops() for layer in self.layers)
        return {**self.tokens.flops(lengths), "interaction": interaction, "head": self.heads.flops()}
