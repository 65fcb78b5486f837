"""ROTE in Triton: one elementwise kernel; its own backward, as a rotation is undone by the opposite angle."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.backends import on_device_of, triton_target


@triton.jit(do_not_specialize=["N"])
def _rotate(
    X, COS, SIN, OUT, x_token, x_head, N, H,
    HALF: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """``out₁ = x₁ cos − x₂ sin, out₂ = x₂ cos + x₁ sin`` with x₁, x₂ the halves of a head; in float32.

    Grid (blocks of tokens, blocks of heads). X (N, H, 2·HALF), COS and SIN (N, HALF), OUT (N, H, 2·HALF) contiguous.
    """
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    i = tl.arange(0, BLOCK_HALF)
    angle_Nh = n[:, None] * HALF + i[None, :]
    mask_Nh = (n < N)[:, None] & (i < HALF)[None, :]
    # Loaded once per token: the heads share them.
    cos_N1h = tl.load(COS + angle_Nh, mask=mask_Nh, other=0.0).to(tl.float32)[:, None, :]
    sin_N1h = tl.load(SIN + angle_Nh, mask=mask_Nh, other=0.0).to(tl.float32)[:, None, :]
    mask_NHh = mask_Nh[:, None, :] & (h < H)[None, :, None]
    x = X + n[:, None, None] * x_token + h.to(tl.int64)[None, :, None] * x_head + i[None, None, :]
    first_NHh = tl.load(x, mask=mask_NHh, other=0.0).to(tl.float32)
    second_NHh = tl.load(x + HALF, mask=mask_NHh, other=0.0).to(tl.float32)
    out = OUT + (n[:, None, None] * H + h[None, :, None]) * (2 * HALF) + i[None, None, :]
    dtype = OUT.dtype.element_ty
    tl.store(out, (first_NHh * cos_N1h - second_NHh * sin_N1h).to(dtype), mask=mask_NHh)
    tl.store(out + HALF, (second_NHh * cos_N1h + first_NHh * sin_N1h).to(dtype), mask=mask_NHh)


def configuration(target: str, heads: int, half: int) -> dict[str, int]:
    """Block sizes: about 16 elements of each half per thread; in the interpreter small, so that tests span several."""
    block_half = triton.next_power_of_2(half)
    block_heads = min(triton.next_power_of_2(heads), 2 if target == "interpreter" else 16)
    elements = 64 if target == "interpreter" else 2048
    block = max(elements // (block_half * block_heads), 1)
    return {"BLOCK_N": block, "BLOCK_H": block_heads, "BLOCK_HALF": block_half, "num_warps": 4}


def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See :func:`kernels.rote.reference.rote_reference`."""
    tokens, heads, width = x.shape
    out = x.new_empty(x.shape)
    if not x.numel():
        return out
    x = x if x.stride(2) == 1 else x.contiguous()
    with on_device_of(x):
        blocks = configuration(triton_target(), heads, width // 2)
        grid = (triton.cdiv(tokens, blocks["BLOCK_N"]), triton.cdiv(heads, blocks["BLOCK_H"]))
        _rotate[grid](
            *(x, cos.contiguous(), sin.contiguous(), out, x.stride(0), x.stride(1), tokens, heads),
            HALF=width // 2,
            **blocks,
        )
    return out


def turn_wide(
    widest: int, cos: Tensor | None, sin: Tensor | None, *heads: Tensor
) -> tuple[tuple[Tensor, ...], Tensor | None, Tensor | None]:
    """``heads``, and the angles that a kernel which turns heads up to ``widest`` still has to turn them by: wider ones
    are turned here, and None is left."""
    if cos is None or sin is None:
        return heads, None, None
    if heads[0].shape[2] > widest:
        return tuple(forward(x, cos, sin) for x in heads), None, None
    return heads, cos.contiguous(), sin.contiguous()
