"""The memory in which experts are rebuilt: one buffer for all layers of a process, and room to decode quantised factors.

Experts in use are handled in chunks. Of each expert of a chunk the buffer holds F (r, d) of its factorised projections; what a chunk
leaves is overwritten by the next. Letters are those of experts.py.
"""

import torch

from .mobe_factors import Quantised

# The part of the bound that may hold tiles of decoded factors, and the most that is of use: a tile should be a good matrix product.
SCRATCH_SHARE = 4
MOST_SCRATCH = 64 * 2**20
# Bytes that decoding one number takes at its peak, besides the result: codes and scales in f32; of packed codes also words in i64.
CODE_BYTES, PACKED_BYTES = 12, 52


def decoding_bytes(factor, dtype):
    """Bytes that one decoded number of a factor takes; 0 if the factor is used as it is."""
    if not isinstance(factor, Quantised):
        return 0
    return dtype.itemsize + (CODE_BYTES if factor.bits is None else PACKED_BYTES)


class Workspace:
    """layers: the Experts (experts.py) of all layers. bound: in bytes; buffer and scratch together stay below it.

    Raises ValueError if the bound is too small for one expert.
    """

    def __init__(self, layers, bound, setting):
        row, tile = (max(getattr(layer, size) for layer in layers) for size in ("row_bytes", "tile_bytes"))
        worst = max(layers, key=lambda layer: layer.expert_bytes)
        self.scratch = max(row, min(bound // SCRATCH_SHARE, MOST_SCRATCH, tile))
        if worst.expert_bytes + self.scratch > bound:
            # With a quarter of the bound as scratch, four thirds of an expert are enough.
            needed = max(worst.expert_bytes * SCRATCH_SHARE // (SCRATCH_SHARE - 1) + 1, worst.expert_bytes + row)
            raise ValueError(
                f"{setting} is {bound} bytes, and one expert of {worst.name} needs a workspace of {needed} bytes: "
                f'set at least that, e.g. --additional-config \'{{"{setting}": "{-(-needed // 2**20)}MiB"}}\''
            )
        room = bound - self.scratch
        self.chunks = {it: min(it.count, room // it.expert_bytes) if it.expert_bytes else it.count for it in layers}
        size = max(self.chunks[it] * it.expert_bytes for it in layers)
        self.buffer = torch.empty(size, dtype=torch.uint8, device=worst.device)

    @property
    def bytes(self):
        return self.buffer.numel() + self.scratch

    def chunk(self, layer):
        """How many experts of a layer are rebuilt at once."""
        return self.chunks[layer]

    def regions(self, layer, count):
        """{short: (count, r, d)} in the model's dtype, for the projections of a layer that are rebuilt."""
        first, regions = 0, {}
        for short, (rank, columns) in layer.rebuilt.items():
            size = count * rank * columns * layer.dtype.itemsize
            regions[short] = self.buffer[first : first + size].view(layer.dtype).view(count, rank, columns)
            first += size
        return regions
