"""The fused decode kernel on a GPU, at the layer shape of Qwen3-30B-A3B: tokens a second and memory of three ways at some batches.

    python bench/kernel.py [--batches 1,16,256] [--layers 4] [--int8] [--out FILE]
    python bench/kernel.py --check        the results alone, at a tiny shape in Triton's interpreter; needs no GPU

dense    W of gate and up in memory, as without compression
plain    F of the experts in use is rebuilt at each step, and x is multiplied with F, then with A
fused    mobe_fused.py

Measured are the products of gate_proj and up_proj, which are the factorised ones, as CUDA graphs. Several layers take turns, so that
weights do not stay in the cache. Needs torch with CUDA and Triton. Without CUDA it says so, and exits with 2.
"""

import argparse
import importlib
import json
import os
import pathlib
import sys
import time
import types

ROOT = pathlib.Path(__file__).resolve().parents[1]
QWEN = {"n": 128, "p": 768, "d": 2048, "r": 768, "m": 32, "k": 8}
TINY = {"n": 9, "p": 19, "d": 37, "r": 21, "m": 5, "k": 3}
LIMIT = 3e-2


def kernels():
    package = sys.modules["factors_alone"] = types.ModuleType("factors_alone")
    package.__path__ = [str(ROOT / "src" / "serving" / "vllm" / "mobe_vllm")]
    return importlib.import_module("factors_alone.mobe_factors"), importlib.import_module("factors_alone.mobe_fused")


def int8(factors, values, group=64):
    import torch

    padded = torch.nn.functional.pad(values.float(), (0, -values.shape[-1] % group)).unflatten(-1, (-1, group))
    scale = (padded.abs().amax(-1) / 127).bfloat16()
    codes = (padded / scale.float()[..., None]).round().clamp(-127, 127).to(torch.int8).flatten(-2)
    return factors.Quantised(codes[..., : values.shape[-1]].contiguous(), scale, values.shape[-1], None, group)


def layer(factors, shape, device, quantised):
    """gate and up of a layer: pairs of (A, B, α)."""
    import torch

    def random(*sides, over):
        values = torch.randn(*sides, device=device, dtype=torch.bfloat16) / over**0.5
        return int8(factors, values) if quantised else values

    n, p, d, r, m = (shape[key] for key in "npdrm")
    alpha = [torch.randn(n, m, device=device, dtype=torch.bfloat16) / m**0.5 for _ in range(2)]
    return [(random(n, p, r, over=r), random(m, r, d, over=1), own) for own in alpha]


def rebuilt(factors, projection, experts, F):
    """Writes F of these experts, in chunks of 8 that are made at once."""
    _, B, alpha = projection
    for chunk in experts.split(8):
        F[chunk] = factors.ACTIVATIONS["silu"](factors.mix(alpha[chunk], B, F.dtype))
    return F


def multiplied(factors, projection, experts, W, F):
    """Writes W of these experts."""
    import torch

    for chunk in experts.split(8):
        W[chunk] = torch.bmm(factors.decoded(projection[0][chunk], W.dtype), rebuilt(factors, projection, chunk, F)[chunk])
    return W


def ways(factors, fused, layers, shape, choices, x):
    """{way: (setup, step)}: setup() makes what the way holds in memory; step(held, layer number) gives y of gate and up."""
    import torch

    n, p, d, r = (shape[key] for key in "npdr")
    used = choices.unique()

    def dense(weights):
        pairs = fused.Pairs(choices, n)
        return [fused.expert_products(W, x[None], pairs, x.dtype, pairs.token) for W in weights]

    def empty(rows):
        return [torch.zeros(n, rows, d, device=x.device, dtype=x.dtype) for _ in range(2)]

    def weights():
        return [[multiplied(factors, *it) for it in zip(own, [used] * 2, empty(p), empty(r), strict=True)] for own in layers]

    def by_kernel(projections):
        pairs = fused.Pairs(choices, n)
        return [fused.fused_products(A, [B], [alpha], x, pairs, "silu") for A, B, alpha in projections]

    def plain(held, number):
        pairs, made = fused.Pairs(choices, n), []
        for projection, F in zip(layers[number], held, strict=True):
            u = torch.empty(pairs.order.numel(), r, device=x.device, dtype=x.dtype)
            fused.expert_products(rebuilt(factors, projection, used, F), x[None], pairs, x.dtype, pairs.token, out=u)
            made.append(fused.expert_products(projection[0], u[None], pairs, x.dtype))
        return made

    return {
        "dense": (weights, lambda held, number: dense(held[number])),
        "plain": (lambda: empty(r), plain),
        "fused": (lambda: None, lambda held, number: by_kernel(layers[number])),
    }  # fmt: skip


def compare(made):
    """The largest difference from dense, of its largest number."""
    dense = made["dense"]
    return {
        way: max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in zip(own, dense, strict=True))
        for way, own in made.items()
    }


def chosen(shape, t, device):
    import torch

    choices = torch.stack([torch.randperm(shape["n"])[: shape["k"]] for _ in range(t)]).to(device)
    return choices, torch.randn(t, shape["d"], device=device, dtype=torch.bfloat16) / shape["d"] ** 0.5


def check(factors, fused, quantised):
    import torch

    layers = [layer(factors, TINY, torch.device("cpu"), quantised)]
    for t in (1, 5):
        choices, x = chosen(TINY, t, torch.device("cpu"))
        made = {way: step(setup(), 0) for way, (setup, step) in ways(factors, fused, layers, TINY, choices, x).items()}
        differences = compare(made)
        print(json.dumps({"tokens": t, "differences": differences}))
        assert max(differences.values()) < LIMIT, "the ways differ"


def measure(fused, factors, options):
    import torch
    import triton

    device = torch.device("cuda")
    layers = [layer(factors, QWEN, device, options.int8) for _ in range(options.layers)]
    factor_bytes = torch.cuda.memory_allocated()
    rows = []
    for t in map(int, options.batches.split(",")):
        choices, x = chosen(QWEN, t, device)
        row, made = {"batch": t, "expected": "fused" if fused.fused_is_faster(t, *(QWEN[key] for key in "knmprd")) else "plain"}, {}
        for way, (setup, step) in ways(factors, fused, layers, QWEN, choices, x).items():
            held = setup()
            resident = torch.cuda.memory_allocated() - (factor_bytes if way == "dense" else 0)
            for number in range(options.layers):
                made[way] = step(held, number)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for number in range(options.layers):
                    step(held, number)
            times = []
            for _ in range(20):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                graph.replay()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end) / options.layers)
            milliseconds = sorted(times)[len(times) // 2]
            peak = torch.cuda.max_memory_allocated() - (factor_bytes if way == "dense" else 0)
            row[way] = {
                "ms_a_layer": round(milliseconds, 4),
                "tokens_a_second_a_layer": round(t / milliseconds * 1e3),
                "resident_mb": round(resident / 1e6),
                "peak_mb": round(peak / 1e6),
            }
            del held, graph
            torch.cuda.empty_cache()
        row["differences"] = compare(made)
        rows.append(row)
        print(json.dumps(row), flush=True)
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    facts = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "shape": QWEN, "layers": options.layers, "int8": options.int8}
    options.out.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")
    wrong = [row["batch"] for row in rows if max(row["differences"].values()) >= LIMIT]
    if wrong:
        sys.exit(f"kernel: the ways differ at batch {wrong}; see differences in {options.out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="1,16,256")
    parser.add_argument("--layers", type=int, default=4, help="layers that take turns")
    parser.add_argument("--int8", action="store_true", help="factors in int8")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench" / "results" / "kernel.json")
    parser.add_argument("--check", action="store_true", help="only compare the ways, in Triton's interpreter")
    options = parser.parse_args()
    if options.check:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not options.check and not torch.cuda.is_available():
        print("kernel: torch finds no CUDA here, so nothing was measured; --check compares the results without a GPU", file=sys.stderr)
        sys.exit(2)
    torch.manual_seed(0)
    factors, fused = kernels()
    if not fused.available(torch.device("cpu" if options.check else "cuda")):
        print("kernel: there is no Triton here; install it with pip install triton", file=sys.stderr)
        sys.exit(2)
    with torch.no_grad():
        if options.check:
            check(factors, fused, options.int8)
        else:
            measure(fused, factors, options)


if __name__ == "__main__":
    main()
