"""The stored factors of native MoBE checkpoints: their dtypes, the names of their tensors, and numbers made of them.

modeling_mobe.py says what the factors are. This file needs torch alone: the modelling file and the plugin for vLLM share it, also how
a setting is read.
"""

import re
from functools import partial

import torch
import torch.nn.functional as F

ACTIVATIONS = {
    "silu": F.silu,
    "tanh": torch.tanh,
    "gelu": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "none": lambda x: x,
}
CODES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
PACKED_BITS = {"int4": 4, "int5": 5, "int6": 6}
SWITCH = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


class Quantised:
    """A factor (…, columns) as it is stored. An index of its first axes gives a part of it.

    data: codes (…, columns), or i32 words (…, ⌈columns · bits / 32⌉). scale: (…, ⌈columns / group⌉).
    """

    def __init__(self, data, scale, columns, bits, group):
        self.data, self.scale, self.columns, self.bits, self.group = data, scale, columns, bits, group

    def __getitem__(self, index):
        return Quantised(self.data[index], self.scale[index], self.columns, self.bits, self.group)

    def decode(self, dtype):
        codes = self.data if self.bits is None else unpack(self.data, self.columns, self.bits)
        scale = self.scale.float().repeat_interleave(self.group, -1)[..., : self.columns]
        return (codes.float() * scale).to(dtype)


def shape_of(factor):
    """The shape of a factor's numbers."""
    return (*factor.data.shape[:-1], factor.columns) if isinstance(factor, Quantised) else tuple(factor.shape)


def unpack(words, columns, bits):
    """Fields of `bits` bits of i32 words, lowest first; a field may go on in the next word -> codes (…, columns) i64"""
    start = torch.arange(columns, device=words.device) * bits
    first = start // 32
    words = words.long() & 0xFFFFFFFF
    # The last field does not go on in a next word.
    pairs = words[..., first] | words[..., (first + 1).clamp(max=words.shape[-1] - 1)] << 32
    return (pairs >> start % 32 & (1 << bits) - 1) - (1 << bits - 1)


def decoded(factor, dtype):
    """A factor as floats: a quantised one in this dtype, a plain one as it is."""
    return factor.decode(dtype) if isinstance(factor, Quantised) else factor


def stored_parts(shape, dtype, group):
    """The tensors that hold a factor: {ending of the name: (shape, dtype)}. A dtype of None is that of the model."""
    *rows, columns = shape
    scale = {"scale": ((*rows, -(-columns // group)), torch.bfloat16)} if group else {}
    if dtype in CODES:
        return {"": (shape, CODES[dtype]), **scale}
    if dtype in PACKED_BITS:
        return {"packed": ((*rows, -(-columns * PACKED_BITS[dtype] // 32)), torch.int32), **scale}
    if dtype is None or getattr(getattr(torch, dtype, None), "is_floating_point", False):
        return {"": (shape, None)}
    raise ValueError(f"factors of dtype {dtype} are newer than this file")


def mix(coefficients, bases, dtype, out=None):
    """Σ_k α_k B_k: (…, m), (m, r, d) -> (…, r, d). Of quantised bases no more numbers are decoded at once than r · d.

    out: where the result goes, if no gradients are wanted: contiguous, of its shape and dtype.
    """
    if not isinstance(bases, Quantised):
        flat = None if out is None else out.flatten(-2)
        return torch.matmul(coefficients, bases.flatten(1), out=flat).unflatten(-1, bases.shape[1:])
    m, r = bases.data.shape[:2]
    rows = -(-r // m)
    tiles = (mix(coefficients, bases[:, first : first + rows].decode(dtype), dtype) for first in range(0, r, rows))
    if out is None:
        return torch.cat(list(tiles), -2)
    for number, tile in enumerate(tiles):
        out[..., number * rows : (number + 1) * rows, :] = tile
    return out


def part_name(name, ending):
    """The parameter's name of a part of a factor. gate_A and scale -> gate_scale_A, which no pattern for gate_A matches."""
    short, _, factor = name.partition("_")
    if not ending:
        return name
    return f"{name}_{ending}" if short == "B" else f"{short}_{ending}_{factor}"


def shared_names(short, group, groups):
    suffix = f"{short}_{group}" if groups > 1 else short
    return f"B_{suffix}", f"W_{suffix}"


def layer_of(name):
    """The number of the layer that a module or a tensor belongs to, or None."""
    found = re.findall(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)(?=\.|$)", name)
    return int(found[-1]) if found else None


def switched_on(value, setting):
    """Whether a setting is on: "on", "off", or the like, or a truth value. setting: its name, for the error."""
    word = str(value).strip().lower()
    if word not in SWITCH:
        raise ValueError(f"{setting} is {value!r}: write on or off")
    return SWITCH[word]
