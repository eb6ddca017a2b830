"""A layer's experts by the fused kernel (mobe_fused.py), for few tokens. Letters are those of experts.py; N = t · k pairs.

All pairs of tokens and experts are computed at once: gate and up, the activation, down, and the weighted sums of each token. Grids and
shapes depend on the shapes of the input alone, so a CUDA graph can hold it. What is made on the way lies in the workspace, which is free
then: no F is rebuilt. Needs torch alone.

The kernel has the products of factors, and those of dense projections. It does not read factors of `svd`, nor those in other dtypes than
floats of the model's and int8; layers with such factors are rebuilt.
"""

import math

import torch

from .experts import Dense, Own
from .mobe_factors import shape_of
from .mobe_fused import Pairs, available, basis_products, expected_times, expert_products, split_count, supported, triton

if triton is not None:
    import triton.language as tl

# Columns of a program of `weighted_sums`.
WIDTH = 256
# Most tokens for which the kernel is considered, so that the search for the last one ends.
MOST_TOKENS = 2**16


def why_not(experts):
    """Why the kernel cannot compute this layer, in words; None if it can."""
    if triton is None:
        return "there is no Triton here"
    if not available(experts.device):
        return f"the experts are on a device of type {experts.device.type}, and the kernel needs CUDA"
    if any(isinstance(it, Own) for it in experts.projections.values()):
        return "it has no products of factors of `svd`"
    for short, it in experts.projections.items():
        factors = (it.weight,) if isinstance(it, Dense) else (it.A, *(part for _, *own in it.parts for part in own))
        if not all(supported(factor, experts.dtype) for factor in factors):
            return f"{short}_proj has factors in a dtype that it does not read (it reads floats of the model's dtype, and int8)"
    return None


def most_tokens(experts, k, workspace):
    """For up to this many tokens, each of which chose k experts, the kernel is faster and fits in the workspace; 0: for none."""
    fits = [1, MOST_TOKENS]
    if why_not(experts) or not worthwhile(experts, 1, k, workspace):
        return 0
    while fits[1] - fits[0] > 1:
        middle = sum(fits) // 2
        fits[0 if worthwhile(experts, middle, k, workspace) else 1] = middle
    return fits[0]


def worthwhile(experts, t, k, workspace):
    # Dense projections take the same time either way.
    times = [expected_times(t, k, experts.count, *sizes, experts.dtype.itemsize) for sizes in factor_sizes(experts)]
    rebuild, fused = map(sum, zip(*times, strict=True))
    return fused < rebuild and bytes_needed(experts, t * k) <= workspace.buffer.numel()


def factor_sizes(experts):
    """(m, p, r, d) of each factorised projection."""
    for it in experts.projections.values():
        if not isinstance(it, Dense):
            _, p, r = shape_of(it.A)
            m, _, d = shape_of(it.parts[0][1])
            yield m * len(it.parts), p, r, d


def buffers(experts, pairs):
    """What lies in the workspace for this many pairs: {name: (shape, dtype)}.

    gate, up: their outputs. inner: A_eᵀ · x of a factorised down_proj. sums: partial sums of F_e · x, of one projection after the other, and
    at last the outputs of down_proj.
    """
    made, sums, size = {}, [], experts.dtype.itemsize
    for short, it in experts.projections.items():
        if isinstance(it, Dense):
            outputs = it.weight.shape[1]
            if short == "down":
                sums.append(((1, pairs, outputs), experts.dtype))
        else:
            _, outputs, r = shape_of(it.A)
            m, _, d = shape_of(it.parts[0][1])
            down = short == "down"
            if down:
                made["inner"] = ((pairs, r), experts.dtype)
            sides = (d, r) if down else (r, d)
            sums.append(((split_count(m, *sides, size, down), pairs, sides[0]), torch.float32))
        if short != "down":
            made[short] = ((pairs, outputs), experts.dtype)
    made["sums"] = max(sums, key=byte_count)
    return made


def byte_count(buffer):
    shape, dtype = buffer
    # The next buffer begins at a multiple of what any dtype, and a load of several numbers, wants.
    return -(-math.prod(shape) * dtype.itemsize // 256) * 256


def bytes_needed(experts, pairs):
    return sum(map(byte_count, buffers(experts, pairs).values()))


def run_fused(experts, x, weights, local_ids, workspace):
    """x: (t, d), weights and local_ids: (t, k), an id of another rank is -1 -> (t, d). For no more tokens than `most_tokens`."""
    pairs = Pairs(local_ids, experts.count)
    held, first = {}, 0
    for name, buffer in buffers(experts, pairs.order.numel()).items():
        held[name] = workspace.buffer[first : first + byte_count(buffer)]
        first += byte_count(buffer)

    def memory(name):
        def out(*shape, dtype, device):
            return held[name][: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)

        return out

    def new(name, *shape):
        return memory(name)(*shape, dtype=x.dtype, device=x.device)

    def first_product(short):
        it, total = experts.projections[short], pairs.order.numel()
        if isinstance(it, Dense):
            return expert_products(it.weight, x[None], pairs, x.dtype, pairs.token, out=new(short, total, it.weight.shape[1]))
        sums = basis_products(*bases_of(it), x, pairs.token, pairs, it.f, out=memory("sums"))
        return expert_products(it.A, sums, pairs, x.dtype, out=new(short, total, shape_of(it.A)[1]))

    def last_product(hidden):
        it, total = experts.projections["down"], pairs.order.numel()
        if isinstance(it, Dense):
            return expert_products(it.weight, hidden[None], pairs, x.dtype, out=new("sums", total, it.weight.shape[1]))[None]
        inner = expert_products(it.A, hidden[None], pairs, x.dtype, turned=True, out=new("inner", total, shape_of(it.A)[2]))
        return basis_products(*bases_of(it), inner, pairs.number, pairs, it.f, turned=True, out=memory("sums"))

    x = x.contiguous()
    hidden = experts.activation(first_product("gate" if experts.gated else "up"))
    if experts.gated:
        hidden *= first_product("up")
    return summed(last_product(hidden), weights, local_ids, pairs, x)


def bases_of(it):
    return [bases for _, bases, _ in it.parts], [alpha for _, _, alpha in it.parts]


def summed(y, weights, local_ids, pairs, x):
    """Σ of a token's outputs, times its weights. y: (s, N, d) in the order of sorted pairs, whose s parts are added up -> (t, d)"""
    place = torch.empty_like(pairs.number)
    place[pairs.order] = pairs.number
    place = torch.where((local_ids >= 0) & (local_ids < pairs.experts), place.view(local_ids.shape), -1)
    splits, total, d = y.shape
    result = torch.empty_like(x)
    weighted_sums[(x.shape[0], triton.cdiv(d, WIDTH))](
        y, place, weights.contiguous(), result, total, pairs.choices, d, SPLITS=splits, WIDTH=WIDTH
    )
    return result


if triton is not None:

    @triton.jit
    def weighted_sums(Y, PLACE, WEIGHT, OUT, total, choices, d, SPLITS: tl.constexpr, WIDTH: tl.constexpr):
        """Program (t, i): columns i·WIDTH … of token t. A choice whose place is −1 is of no expert here."""
        token = tl.program_id(0).to(tl.int64)
        columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        sum = tl.zeros((WIDTH,), tl.float32)
        for choice in range(choices):
            place = tl.load(PLACE + token * choices + choice).to(tl.int64)
            weight = tl.load(WEIGHT + token * choices + choice).to(tl.float32)
            y = tl.zeros((WIDTH,), tl.float32)
            for split in range(SPLITS):
                own = Y + (split * total + place) * d + columns
                y += tl.load(own, mask=columns < tl.where(place >= 0, d, 0), other=0).to(tl.float32)
            sum += y * weight
        tl.store(OUT + token * d + columns, sum.to(OUT.dtype.element_ty), mask=columns < d)
