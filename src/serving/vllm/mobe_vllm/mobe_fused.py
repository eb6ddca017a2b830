"""The fused decode kernel: y = A_e · (f(Σ_k α_ek B_k) · x) for the (token, expert) pairs of a layer.

B is read once for all experts in use, and F = f(Σ α B) is never written to memory. Two kernels in Triton:

1. `mixed_products`: u = F_e · x. A program holds R rows and K columns of all m bases. For each block of experts in use it makes that
   part of their F by one product (experts, m) × (m, R·K), and multiplies it with the inputs of their pairs.
2. `own_products`: y = A_e · u, for each expert in use.

Both also multiply with the transposed matrix, since a factorised down_proj is (A_e · F_e)ᵀ.

Grids and shapes depend on the shapes of the arguments alone. Which experts are in use is found and kept on the device, so the calls
may be captured in a CUDA graph. The order of summation is fixed, so results are the same each time. Letters: n experts, m bases, r
rank, d columns, p rows of A, t tokens, k experts of a token.

Needs torch alone. Without Triton `available` is false. The kernels were tested in Triton's interpreter, and compiled for GPUs of
NVIDIA (sm_80 and sm_90); nothing was run on a GPU yet.
"""

import os

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

from .mobe_factors import Quantised, shape_of, switched_on

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Experts and pairs of a block: the smallest sides of a product on tensor cores.
BLOCK = 16
# Bytes of the bases that a program holds at a time. Several programs fit into a multiprocessor's shared memory (228 KiB on Hopper).
TILE_BYTES = 32 * 1024
# Programs of the first launch that are aimed at: a few for each multiprocessor of a large GPU (132 of an H100).
PROGRAMS = 512
# Operations of tensor cores in the time of one byte from memory: 800 TFLOP/s and 3.3 TB/s of an H100. Others are similar.
OPERATIONS_PER_BYTE = 240


def available(device):
    """Whether the kernels can run on tensors of this device. On a CPU only in Triton's interpreter, for tests."""
    if triton is None:
        return False
    return device.type == "cuda" or (device.type == "cpu" and interpreted())


def wanted():
    """Whether MOBE_KERNEL=on asks the modelling file for the kernels. Nobody has run them on a GPU yet, so they are off by default."""
    return switched_on(os.environ.get("MOBE_KERNEL") or "off", "MOBE_KERNEL")


def interpreted():
    """Whether Triton's interpreter runs the kernels. It multiplies the bits of bf16 numbers as integers, so they are widened there."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def supported(factor, dtype):
    """Whether the kernels read this factor for inputs of this dtype: floats of the same dtype, and int8."""
    if dtype not in DTYPES:
        return False
    return factor.data.dtype == torch.int8 if isinstance(factor, Quantised) else factor.dtype == dtype


def fused_is_faster(t, k, n, m, p, r, d, size=2):
    """Whether the kernel is faster than rebuilding F_e of the experts in use, for t tokens. Other arguments: those of `expected_times`."""
    rebuild, fused = expected_times(t, k, n, m, p, r, d, size)
    return fused < rebuild


def expected_times(t, k, n, m, p, r, d, size=2):
    """(time of rebuilding, time of the kernel) for t tokens, in bytes that memory moves meanwhile.

    The model: a way takes the longer of the times that its bytes and its operations need (OPERATIONS_PER_BYTE). With E experts in use, of
    which n · (1 − (1 − k/n)^t) are expected, and N = t · k pairs:

        rebuild   bytes: B, A; F written and read       operations: mixing, N · F·x, N · A·u
        fused     bytes: B, A; u written and read       operations: mixing, N · F·x for a block of experts, N · A·u

    A pair's input is multiplied with F of a whole block of experts, and all but one of the products are dropped. So rebuilding wins
    where each expert has many pairs. size: bytes of a number.
    """
    used = n * (1 - (1 - min(k, n) / n) ** t)
    pairs = t * k
    read = m * r * d + used * p * r
    mixing = 2 * used * m * r * d
    rebuild = max((read + 2 * used * r * d) * size, (mixing + 2 * pairs * (r * d + p * r)) / OPERATIONS_PER_BYTE)
    block = min(BLOCK, max(used, 1))
    fused = max(read * size + 8 * pairs * r, (mixing + 2 * pairs * (block * r * d + p * r)) / OPERATIONS_PER_BYTE)
    return rebuild, fused


class Pairs:
    """The (token, expert) pairs of a layer, sorted by expert. All tensors are on the device, and their shapes are those of the input.

    experts: (t, k) integers. A number outside 0 … n − 1 means no expert; the pair's row of the result is zero.

    order, token, slot (t·k): place in `experts`, token, and place of the expert in `used`. number (t·k): 0, 1, …
    start (n + 1): the first pair of each expert. used (n): experts that have pairs, ascending, then the others. before (n + 1): how many
    experts in use have a smaller number.
    """

    def __init__(self, experts, n):
        self.tokens, self.choices, self.experts = *experts.shape, n
        numbers = torch.arange(n + 1, device=experts.device)
        by_expert, self.order = experts.reshape(-1).long().sort(stable=True)
        self.token = (self.order // max(self.choices, 1)).int()
        self.number = torch.arange(self.order.numel(), device=experts.device, dtype=torch.int32)
        start = torch.searchsorted(by_expert, numbers)
        idle = start[1:] == start[:-1]
        self.used = idle.int().argsort(stable=True).int()
        self.before = torch.zeros_like(numbers, dtype=torch.int32)
        self.before[1:] = (~idle).cumsum(0)
        self.slot = self.before[by_expert.clamp(0, n - 1)]
        self.start = start.int()


def tile_sizes(m, size, turned=False):
    """(R, K): rows and columns of the bases that a program holds at a time. size: bytes of a number.

    Numbers that are neighbours in memory are those of a row, or of a column if `turned`: these are the more ones.
    """
    width = max(BLOCK, triton.next_power_of_2(m))
    area = 1 << max(4, (TILE_BYTES // (width * size)).bit_length() - 1)
    if turned:
        # A product on tensor cores has at least BLOCK columns.
        rows = min(32, area // BLOCK)
        return rows, min(32, area // rows)
    columns = min(64, area)
    return min(16, area // columns), columns


def split_count(m, rows, columns, size, turned=False):
    """How many programs share a row of tiles of F (rows, columns), as it is multiplied. Each has partial sums of its own."""
    tile_rows, tile_columns = tile_sizes(m, size, turned)
    return min(triton.cdiv(columns, tile_columns), max(1, PROGRAMS // triton.cdiv(rows, tile_rows)))


def stored(factor):
    """(numbers or codes, scales, columns that share a scale, whether quantised) for a kernel."""
    if isinstance(factor, Quantised):
        return factor.data.contiguous(), factor.scale.contiguous(), factor.group, True
    factor = factor.contiguous()
    return factor, factor, 1, False


def fused_products(A, bases, coefficients, x, pairs, activation):
    """y = A_e · (f(Σ_k α_ek B_k) · x_t) for all pairs of tokens and experts.

    A: (n, p, r). bases: the list of B (m, r, d), one for each group of experts; coefficients: their α (experts of the group, m). x: (t, d).
    A and B may be `Quantised` with int8 codes. activation: a key of ACTIVATIONS. See `supported` for dtypes.
    Returns (t · k, p) in the dtype of x, in the order of the experts that `pairs` was made of. Sums are made in f32.
    """
    return expert_products(A, basis_products(bases, coefficients, x, pairs.token, pairs, activation), pairs, x.dtype)


def basis_products(bases, coefficients, x, rows, pairs, activation, turned=False, out=torch.empty):
    """u = F_e · x of each pair, or F_eᵀ · x if `turned`. Arguments that are not explained: those of `fused_products`.

    rows (t·k): the row of x of each pair, in the order of sorted pairs. out: makes the memory of the result, like torch.empty.
    Returns (s, t · k, r) f32 in that order, or (s, t · k, d); the s parts are to be added up. Pairs without an expert have no numbers.
    """
    x = x.contiguous()
    total = pairs.order.numel()
    m, *sides = shape_of(bases[0])
    outputs, inputs = reversed(sides) if turned else sides
    R, K = tile_sizes(m, x.element_size(), turned)
    splits = split_count(m, outputs, inputs, x.element_size(), turned)
    u = out(splits, total, outputs, device=x.device, dtype=torch.float32)
    first = 0
    for basis, alpha in zip(bases, coefficients, strict=True) if total else ():
        data, scale, scale_group, quantised = stored(basis)
        mixed_products[(triton.cdiv(outputs, R), splits)](
            data, scale, alpha.contiguous(), x, rows, pairs.slot, pairs.start, pairs.used, pairs.before, u,
            first, first + len(alpha), total, m, outputs, inputs, scale_group,
            M=max(BLOCK, triton.next_power_of_2(m)), R=R, K=K, BLOCK=BLOCK, SPLITS=splits,
            ACTIVATION=activation, QUANTISED=quantised, TURNED=turned, WIDE=interpreted(),
        )  # fmt: skip
        first += len(alpha)
    return u


def expert_products(A, u, pairs, dtype, rows=None, turned=False, out=None):
    """y = A_e · u of each pair, or A_eᵀ · u if `turned`, with one matrix for each expert.

    A: (n, p, r), floats of this dtype or int8. u: (s, t · k, r), or (s, t · k, p) if `turned`; the s parts are added up. rows (t·k): the row
    of u of each pair, in the order of sorted pairs; without it that order.
    Returns (t · k, p), or (t · k, r), in the order of the experts that `pairs` was made of; pairs without an expert have zeros.
    out: memory for the result; then it is in the order of sorted pairs, and pairs without an expert have no numbers.
    """
    data, scale, scale_group, quantised = stored(A)
    n, *sides = shape_of(A)
    outputs, inputs = reversed(sides) if turned else sides
    splits, height, _ = u.shape
    total = pairs.order.numel()
    y = torch.zeros(total, outputs, device=u.device, dtype=dtype) if out is None else out
    N, K = (min(64, max(16, triton.next_power_of_2(side))) for side in (outputs, inputs))
    if total:
        own_products[(triton.cdiv(outputs, N), n)](
            data, scale, u, pairs.number if rows is None else rows, pairs.start, pairs.used, pairs.order if out is None else pairs.number, y,
            height, outputs, inputs, scale_group,
            N=N, K=K, BLOCK=BLOCK, SPLITS=splits, QUANTISED=quantised, TURNED=turned, WIDE=interpreted(),
        )  # fmt: skip
    return y


if triton is not None:

    @triton.jit
    def product(a, b, WIDE: tl.constexpr):
        """a · b with sums in f32. Factors in f32 are not rounded to TF32."""
        if WIDE:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        return tl.dot(a, b, input_precision="ieee")

    @triton.jit
    def tanh(f):
        # The series of small numbers, of which the formula would lose digits.
        s = f * f
        small = f * (1 - s * (1 / 3 - s * (2 / 15 - s * (17 / 315))))
        e = tl.exp(-2 * tl.abs(f))
        large = (1 - e) / (1 + e)
        return tl.where(tl.abs(f) < 0.1, small, tl.where(f < 0, -large, large))

    @triton.jit
    def activated(f, ACTIVATION: tl.constexpr):
        if ACTIVATION == "silu":
            f = f * tl.sigmoid(f)
        elif ACTIVATION == "tanh":
            f = tanh(f)
        elif ACTIVATION == "gelu":
            f = 0.5 * f * (1 + tanh(0.7978845608028654 * (f + 0.044715 * f * f * f)))
        elif ACTIVATION == "relu":
            f = tl.maximum(f, 0)
        elif ACTIVATION == "sigmoid":
            f = tl.sigmoid(f)
        else:
            tl.static_assert(ACTIVATION == "none")
        return f

    @triton.jit
    def mixed_products(
        B, SCALE, ALPHA, X, ROW, SLOT, START, USED, BEFORE, U,
        first, last, total, m, r, d, scale_group,
        M: tl.constexpr, R: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
        ACTIVATION: tl.constexpr, QUANTISED: tl.constexpr, TURNED: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        """Program (i, s): rows i·R … of the bases, and every SPLITS-th tile of their columns, for experts first … last − 1.

        Bases are (r, d) as they are multiplied; TURNED: they are stored as (d, r).
        """
        dtype = X.dtype.element_ty
        split = tl.program_id(1)
        rows = tl.program_id(0) * R + tl.arange(0, R)
        place = tl.arange(0, R * K)
        row = tl.program_id(0) * R + (place % R if TURNED else place // K)
        js = tl.arange(0, M)
        lo = tl.load(BEFORE + first)
        hi = tl.load(BEFORE + last)
        for k0 in range(split * K, d, SPLITS * K):
            column = k0 + (place // R if TURNED else place % K)
            inside = (js < m)[:, None] & ((row < r) & (column < d))[None, :]
            # The stored row and column, and the length of a stored row.
            i = column if TURNED else row
            j = row if TURNED else column
            width = r if TURNED else d
            where = js.to(tl.int64)[:, None] * r * d + (i.to(tl.int64) * width + j)[None, :]
            slab = tl.load(B + where, mask=inside, other=0)
            if QUANTISED:
                scales = (width + scale_group - 1) // scale_group
                height = d if TURNED else r
                where = js.to(tl.int64)[:, None] * height * scales + (i.to(tl.int64) * scales + j // scale_group)[None, :]
                slab = slab.to(tl.float32) * tl.load(SCALE + where, mask=inside, other=0).to(tl.float32)
            slab = slab.to(dtype)
            columns = k0 + tl.arange(0, K)
            for a0 in range(lo, hi, BLOCK):
                a = a0 + tl.arange(0, BLOCK)
                expert = tl.load(USED + a, mask=a < hi, other=first)
                alpha = ALPHA + (expert - first)[:, None] * m + js[None, :]
                alpha = tl.load(alpha, mask=(a < hi)[:, None] & (js < m)[None, :], other=0)
                f = activated(product(alpha.to(dtype), slab, WIDE), ACTIVATION).to(dtype)
                if TURNED:
                    f = tl.reshape(tl.permute(tl.reshape(f, (BLOCK, K, R)), (1, 0, 2)), (K, BLOCK * R))
                else:
                    f = tl.trans(tl.reshape(f, (BLOCK * R, K)))
                begin = tl.load(START + tl.load(USED + a0))
                end = tl.load(START + tl.load(USED + tl.minimum(a0 + BLOCK, hi) - 1) + 1)
                for p0 in range(begin, end, BLOCK):
                    pair = p0 + tl.arange(0, BLOCK)
                    real = pair < end
                    own_row = tl.load(ROW + pair, mask=real, other=0).to(tl.int64)
                    x = X + own_row[:, None] * d + columns[None, :]
                    x = tl.load(x, mask=real[:, None] & (columns < d)[None, :], other=0)
                    # With every expert of the block; then that of the pair is chosen.
                    part = tl.reshape(product(x, f, WIDE), (BLOCK, BLOCK, R))
                    slot = tl.load(SLOT + pair, mask=real, other=-1)
                    part = tl.sum(tl.where((slot[:, None] == a[None, :])[:, :, None], part, 0.0), 1)
                    u = U + (split * total + pair).to(tl.int64)[:, None] * r + rows[None, :]
                    own = real[:, None] & (rows < r)[None, :]
                    # The first tile of the columns finds no sum.
                    part += tl.load(u, mask=own & (k0 >= SPLITS * K), other=0.0)
                    tl.store(u, part, mask=own)
            # All threads see the sums before the next tile adds to them.
            tl.debug_barrier()

    @triton.jit
    def own_products(
        A, SCALE, U, ROW, START, USED, PLACE, Y,
        height, p, r, scale_group,
        N: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
        QUANTISED: tl.constexpr, TURNED: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        """Program (i, a): rows i·N … of A of the a-th expert of USED. Those past the ones in use have no pairs.

        A is (n, p, r) as it is multiplied; TURNED: it is stored as (n, r, p). height: rows of a part of U.
        """
        dtype = Y.dtype.element_ty
        rows = tl.program_id(0) * N + tl.arange(0, N)
        expert = tl.load(USED + tl.program_id(1)).to(tl.int64)
        begin = tl.load(START + expert)
        end = tl.load(START + expert + 1)
        for p0 in range(begin, end, BLOCK):
            pair = p0 + tl.arange(0, BLOCK)
            real = pair < end
            own_row = tl.load(ROW + pair, mask=real, other=0)
            sum = tl.zeros((BLOCK, N), tl.float32)
            for k0 in range(0, r, K):
                column = k0 + tl.arange(0, K)
                u = tl.zeros((BLOCK, K), tl.float32)
                for split in range(SPLITS):
                    where = U + (split * height + own_row).to(tl.int64)[:, None] * r + column[None, :]
                    u += tl.load(where, mask=real[:, None] & (column < r)[None, :], other=0.0).to(tl.float32)
                # A tile of columns by rows, read along stored rows.
                if TURNED:
                    a = stored_tile(A, SCALE, expert * r, column, r, rows, p, scale_group, QUANTISED)
                else:
                    a = tl.trans(stored_tile(A, SCALE, expert * p, rows, p, column, r, scale_group, QUANTISED))
                sum += product(u.to(dtype), a.to(dtype), WIDE)
            place = tl.load(PLACE + pair, mask=real, other=0).to(tl.int64)
            tl.store(Y + place[:, None] * p + rows[None, :], sum.to(dtype), mask=real[:, None] & (rows < p)[None, :])

    @triton.jit
    def stored_tile(A, SCALE, above, i, height, j, width, scale_group, QUANTISED: tl.constexpr):
        """Rows i and columns j of a stored matrix (height, width), which has `above` rows before it. Zeros outside."""
        inside = (i < height)[:, None] & (j < width)[None, :]
        row = (above + i)[:, None]
        a = tl.load(A + row * width + j[None, :], mask=inside, other=0)
        if QUANTISED:
            scales = (width + scale_group - 1) // scale_group
            scale = tl.load(SCALE + row * scales + (j // scale_group)[None, :], mask=inside, other=0)
            a = a.to(tl.float32) * scale.to(tl.float32)
        return a
