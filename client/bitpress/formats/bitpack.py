"""Dense bit streams: codes of 2 to 8 bits (statistics: 1 to 8) without a spare bit between them.

The stream is little-endian: code k occupies the bits k*bits .. (k+1)*bits - 1, bit 0 being the
lowest bit of byte 0. Eight codes fill exactly `bits` bytes, which is the unit both functions
work in; only the end of the last dimension is padded, to a whole byte.
"""

import torch
from torch import Tensor
from torch.nn import functional


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes take."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the last dimension.

    codes: uint8 [..., N], each below 2**bits, not modified.
    Returns uint8 [..., ceil(N * bits / 8)].
    """
    count = codes.shape[-1]
    octets = functional.pad(codes, (0, -count % 8)).unflatten(-1, (-1, 8))
    packed = octets.new_zeros(*octets.shape[:-1], bits)
    for k in range(8):
        byte, shift = divmod(k * bits, 8)
        packed[..., byte] |= octets[..., k] << shift
        if shift + bits > 8:
            packed[..., byte + 1] |= octets[..., k] >> (8 - shift)
    return packed.flatten(-2)[..., : packed_bytes(count, bits)].contiguous()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo `pack`.

    packed: uint8 [..., ceil(count * bits / 8)].
    Returns uint8 [..., count].
    """
    if bits == 8:
        return packed
    octets = functional.pad(packed, (0, -packed.shape[-1] % bits)).unflatten(-1, (-1, bits))
    codes = octets.new_empty(*octets.shape[:-1], 8)
    mask = 2**bits - 1
    for k in range(8):
        byte, shift = divmod(k * bits, 8)
        code = octets[..., byte] >> shift
        if shift + bits > 8:
            code |= octets[..., byte + 1] << (8 - shift)
        torch.bitwise_and(code, mask, out=codes[..., k])
    return codes.flatten(-2)[..., :count]
