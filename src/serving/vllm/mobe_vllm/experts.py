"""Routed experts of one layer, computed from factors. Needs torch alone.

    gate_e, up_e = A_e · F_e       F_e = f(Σ_k α_ek B_k) of `mobe`, V_e of `svd`
    down_e = (A_e · F_e)ᵀ, or any of the three a dense matrix
    y = Σ_e w_e · down_e(activation(gate_e x, up_e x))

Neither A_e · F_e nor all F_e are ever in memory: the F_e of a chunk of experts are put into the workspace, and x is multiplied
by F_e and then by A_e. Letters: t tokens, k experts a token, n experts of this rank, p rows of gate_proj on this rank, d its columns,
m bases of a group, r rank.

There are two ways. `run_in_use` rebuilds the experts that tokens were sent to, and needs to know them on the host. `run_all` rebuilds
every expert and multiplies its output by a weight that may be 0: its shapes do not depend on data, so a CUDA graph can hold it. That was
not run on a GPU; the tests run both ways on the CPU. For few tokens there may be a third, the fused kernel (fused_experts.py).
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from .mobe_factors import ACTIVATIONS, Quantised, shape_of
from .workspace import decoding_bytes

# Activations between the projections, by vLLM's names: of gate and up, and of experts without a gate.
GATED = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")}
UNGATED = {f"{name}_no_mul": f for name, f in GATED.items()} | {"relu2_no_mul": lambda x: F.relu(x).square()}


@dataclass(frozen=True)
class Dense:
    """weight: (n, p, d), of down_proj (n, d, p)."""

    weight: torch.Tensor


@dataclass(frozen=True)
class Own:
    """The factors of `svd`. A: (n, p, r), V: (n, r, d), plain or Quantised."""

    A: object
    V: object


@dataclass(frozen=True)
class Shared:
    """The factors of `mobe`. A: (n, p, r). parts: (first expert, B (m, r, d), α (experts, m)) of each group that has experts here.

    A and B are plain or Quantised. f: name of the activation.
    """

    A: object
    parts: tuple
    f: str


def tiles(factor, dtype, scratch):
    """Row tiles of a factor (…, rows, columns) along its second-to-last axis: (slice, floats in dtype). Decoded tiles fit in scratch."""
    *leading, rows, columns = shape_of(factor)
    if not isinstance(factor, Quantised):
        yield slice(0, rows), factor
        return
    row_bytes = columns * decoding_bytes(factor, dtype)
    for size in leading:
        row_bytes *= size
    step = max(1, scratch // row_bytes)
    for first in range(0, rows, step):
        span = slice(first, min(first + step, rows))
        yield span, factor[(..., span, slice(None)) if leading else span].decode(dtype)


class Experts:
    """The experts of one layer on this rank.

    name: of the layer, for messages. projections: {"gate", "up", "down": Dense, Own or Shared}; without gate, experts have two matrices.
    activation: vLLM's name. dtype: of the computation, that of the model.
    """

    def __init__(self, name, projections, activation, dtype):
        self.name, self.projections, self.dtype = name, projections, dtype
        self.gated = "gate" in projections
        self.activation = (GATED if self.gated else UNGATED)[activation]
        self.rebuilt, rows = {}, [(0, 0)]
        for short, it in projections.items():
            if isinstance(it, Dense):
                self.count, self.device = it.weight.shape[0], it.weight.device
                continue
            tensor = it.A.data if isinstance(it.A, Quantised) else it.A
            self.count, self.device = tensor.shape[0], tensor.device
            _, p, rank = shape_of(it.A)
            rows.append((p, rank * decoding_bytes(it.A, dtype)))
            if isinstance(it, Shared):
                _, bases, _ = it.parts[0]
                m, rank, columns = shape_of(bases)
                self.rebuilt[short] = (rank, columns)
                rows += [(rank, m * columns * decoding_bytes(bases, dtype)), (rank, columns * dtype.itemsize if it.f != "none" else 0)]
            elif isinstance(it.V, Quantised):
                self.rebuilt[short] = _, columns = shape_of(it.V)[1:]
                rows.append((rank, columns * decoding_bytes(it.V, dtype)))
        # Bytes of the F of one expert; of the largest row that is decoded or mixed at a time; and of the largest tile that is of use.
        self.expert_bytes = sum(rank * columns for rank, columns in self.rebuilt.values()) * dtype.itemsize
        self.row_bytes = max(size for _, size in rows)
        self.tile_bytes = max(count * size for count, size in rows)

    def rebuild(self, experts, workspace):
        """Puts F of these experts, ascending local numbers, into the workspace: {short: (len(experts), r, d)}."""
        regions = workspace.regions(self, len(experts))
        for short, region in regions.items():
            it = self.projections[short]
            if isinstance(it, Own):
                for place, expert in enumerate(experts):
                    for span, part in tiles(it.V[expert], self.dtype, workspace.scratch):
                        region[place, span] = part
                continue
            for first, bases, coefficients in it.parts:
                places = [place for place, expert in enumerate(experts) if first <= expert < first + coefficients.shape[0]]
                if places:
                    chosen = rows_of(coefficients, [experts[place] - first for place in places]).to(self.dtype)
                    mix_into(region[places[0] : places[-1] + 1], chosen, bases, workspace.scratch)
            if it.f != "none":
                apply_in_place(ACTIVATIONS[it.f], region, workspace.scratch)
        return regions

    def product(self, short, expert, x, F_e, scratch):
        """x · W_eᵀ. x: (t, inputs) -> (t, outputs). F_e: (r, d) in the workspace, None if it is stored."""
        it = self.projections[short]
        if isinstance(it, Dense):
            return F.linear(x, it.weight[expert])
        F_e = it.V[expert] if F_e is None else F_e
        A = it.A[expert]
        if short == "down":
            # Its factors are those of the transpose.
            inner = sum(x[:, span] @ part for span, part in tiles(A, self.dtype, scratch))
            return inner @ F_e
        inner = F.linear(x, F_e)
        parts = [F.linear(inner, part) for _, part in tiles(A, self.dtype, scratch)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def output(self, expert, x, regions, place, scratch):
        """One expert's output for tokens x (t, d), of which down_proj on other ranks has the rest -> (t, d)"""

        def multiplied(short, inputs):
            return self.product(short, expert, inputs, regions[short][place] if short in regions else None, scratch)

        if self.gated:
            hidden = self.activation(multiplied("gate", x)) * multiplied("up", x)
        else:
            hidden = self.activation(multiplied("up", x))
        return multiplied("down", hidden)


def rows_of(matrix, rows):
    """Rows of α. Neighbours are taken as a slice, which needs no copy from the host."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return matrix[rows[0] : rows[-1] + 1]
    return matrix[torch.tensor(rows, device=matrix.device)]


def mix_into(out, coefficients, bases, scratch):
    """out (c, r, d) = Σ_k coefficients (c, m) · bases (m, r, d)."""
    flat = out.flatten(1)
    columns = out.shape[2]
    for span, part in tiles(bases, out.dtype, scratch):
        torch.mm(coefficients, part.flatten(1), out=flat[:, span.start * columns : span.stop * columns])


def apply_in_place(f, region, scratch):
    """Applies f to a region (c, r, d), as many rows at a time as fit in scratch."""
    rows = region.flatten(0, 1)
    step = max(1, scratch // (rows.shape[1] * rows.element_size()))
    for first in range(0, rows.shape[0], step):
        part = rows[first : first + step]
        part.copy_(f(part))


def run_in_use(experts, x, weights, local_ids, workspace):
    """Rebuilds the experts that tokens were sent to. x: (t, d), weights and local_ids: (t, k), an id of another rank is -1 -> (t, d)"""
    result = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    flat = local_ids.flatten()
    order = flat.argsort(stable=True)
    used, counts = flat[order].unique_consecutive(return_counts=True)
    used, ends = used.tolist(), counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    tokens, weights = order // local_ids.shape[1], weights.flatten()[order].float()
    own = [place for place, expert in enumerate(used) if expert >= 0]
    chunk = workspace.chunk(experts)
    for first in range(0, len(own), chunk):
        places = own[first : first + chunk]
        regions = experts.rebuild([used[place] for place in places], workspace)
        for slot, place in enumerate(places):
            span = slice(starts[place], ends[place])
            rows = tokens[span]
            y = experts.output(used[place], x[rows], regions, slot, workspace.scratch)
            result.index_add_(0, rows, y.float() * weights[span, None])
    return result.to(x.dtype)


def run_all(experts, x, weights, local_ids, workspace):
    """Rebuilds every expert, whoever uses it; the rest as in run_in_use. No shape and no value on the host depends on data."""
    result = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    chunk = workspace.chunk(experts)
    for first in range(0, experts.count, chunk):
        numbers = range(first, min(first + chunk, experts.count))
        regions = experts.rebuild(numbers, workspace)
        for slot, expert in enumerate(numbers):
            weight = (weights.float() * (local_ids == expert)).sum(1, keepdim=True)
            result += experts.output(expert, x, regions, slot, workspace.scratch).float() * weight
    return result.to(x.dtype)
