"""DCNv2 (arXiv 2008.13535): a cross network on the concatenated tokens, then an MLP (the stacked form).

Legend: B rows · n tokens · d width.
"""

from __future__ import annotations

from torch import Tensor, nn

from kunlun.features import Batch, FeatureSchema
from kunlun.layers.cross_network import CrossNetwork
from kunlun.layers.embedding import EmbeddingConfig, EmbeddingTables
from kunlun.layers.head import Heads
from kunlun.layers.pooled_events import PooledTokens


class DCNv2(nn.Module):
    """The stacked structure: the head is the deep network on the last cross layer ("Deep and Cross Combination").

    *Deviation (ours)*: x_0 is made of tokens of one width, where the paper concatenates raw embeddings.

    Args:
        schema: of the data set.
        width: d, of the tokens; x_0 has tokens × d numbers.
        layers: cross layers.
        rank: of each cross layer's matrix; null = full.
        embedding: of the tables.
        head_hidden: widths of the hidden layers of each task's deep network.
        dropout: in the deep network.

    Raises:
        ValueError: names the argument that does not fit.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        width: int = 16,
        layers: int = 3,
        rank: int | None = None,
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
        inputs = self.tokens.count * width
        self.cross = CrossNetwork(inputs, layers, rank)
        self.heads = Heads(inputs, head_hidden, len(schema.tasks), dropout)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, tasks)."""
        x_Bnd = self.tokens(batch, self.tables)
        return self.heads(self.cross(x_Bnd.flatten(1)))

    def flops(self, lengths: dict[str, int]) -> dict[str, int]:
        """Forward FLOPs of one sample by part; ``lengths``: events of each type. Matrix products only."""
        return {**self.tokens.flops(lengths), "interaction": self.cross.flops(), "head": self.heads.flops()}
