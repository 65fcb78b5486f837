"""DLRM (arXiv 1906.00091): dot products of all pairs of tokens beside the dense features, then an MLP.

Legend: B rows · n tokens · d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kunlun.features import Batch, FeatureSchema
from kunlun.layers.dot_interaction import DotInteraction
from kunlun.layers.embedding import EmbeddingConfig, EmbeddingTables
from kunlun.layers.head import Heads, linear_flops, mlp
from kunlun.layers.pooled_events import PooledTokens


class DLRM(nn.Module):
    """Bottom MLP on the dense features, dot products with the embeddings, top MLP (section 2).

    The token of the dense features, whose linear map is the bottom MLP's first layer, goes through the rest of it; the
    head, the top MLP, reads it beside the products. *Deviation (ours)*: embeddings are projected to tokens of width d,
    so that tables of any width fit.

    Args:
        schema: of the data set.
        width: d, of the tokens.
        bottom_hidden: widths of the bottom MLP's hidden layers after the first, which has width d.
        embedding: of the tables.
        head_hidden: widths of the hidden layers of each task's top MLP.
        dropout: in the top MLP.

    Raises:
        ValueError: names the argument that does not fit, or says that the data set gives one token, hence no pair.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        width: int = 32,
        bottom_hidden: list[int] | None = None,
        embedding: EmbeddingConfig = EmbeddingConfig(),  # noqa: B008
        head_hidden: list[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be ≥ 1, got {width}")
        self.schema = schema
        self.tables = EmbeddingTables(schema, embedding)
        self.tokens = PooledTokens(schema, self.tables, width)
        if self.tokens.count < 2:
            raise ValueError(f"schema: DLRM multiplies pairs of tokens, but {schema.name!r} gives only one")
        self.dot = DotInteraction(self.tokens.count, width)
        context = self.tokens.context
        self.place = context.count - 1  # of the dense token
        self.bottom = (
            None if context.dense is None else nn.Sequential(nn.GELU(), mlp(width, bottom_hidden or [], width))
        )
        inputs = self.dot.outputs + (0 if self.bottom is None else width)
        self.heads = Heads(inputs, head_hidden, len(schema.tasks), dropout)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, tasks)."""
        x_Bnd = self.tokens(batch, self.tables)
        if self.bottom is None:
            return self.heads(self.dot(x_Bnd))
        dense = self.bottom(x_Bnd[:, self.place])
        x_Bnd = torch.cat([x_Bnd[:, : self.place], dense[:, None], x_Bnd[:, self.place + 1 :]], dim=1)
        return self.heads(torch.cat([dense, self.dot(x_Bnd)], dim=1))

    def flops(self, lengths: dict[str, int]) -> dict[str, int]:
        """Forward FLOPs of one sample by part; ``lengths``: events of each type. Matrix products only."""
        parts = self.tokens.flops(lengths)
        parts["tokens"] += 0 if self.bottom is None else linear_flops(self.bottom)
        return {**parts, "interaction": self.dot.flops(), "head": self.heads.flops()}
