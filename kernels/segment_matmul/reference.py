"""A matrix for each packed sequence, in readable torch, twice differentiable."""

from __future__ import annotations

from torch import Tensor

from kernels.packed import layout_of, nothing


def segment_matmul_reference(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """See :func:`kernels.segment_matmul.segment_matmul`."""
    layout = layout_of(offsets)
    if not layout.buckets:
        return nothing((x.shape[0], weight.shape[2]), [x, weight])
    parts = zip(layout.buckets, layout.split_tokens(x), layout.split_samples(weight), strict=True)
    return layout.join_tokens([bucket.unpad(bucket.pad(x_n) @ weight_b) for bucket, x_n, weight_b in parts], x.shape[0])
