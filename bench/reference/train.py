"""The competitor in the race: the fit of the public reference (train.py and train_group.py of the MoBE repository), rewritten
in few lines of PyTorch.

    python train.py fixtures/tiny-qwen3-moe --layer 1 --projection gate_proj --bases 8 --steps 1000 > result.json
    python train.py experts.npy --bases 4 --batch 8          # any (n, p, d) array, .npy or a single-tensor .safetensors

Everything that costs time is as in the reference: fp16 targets are scaled again in each step, experts are picked by index,
gradients come from autograd, the optimiser is torch.optim.Adam, and two more error measures are computed and three losses
copied to the host. Prints JSON: for each group of experts its curve [step, seconds since the start, loss before that step's
update], and the error of the state that was kept.
"""

import argparse
import json
import pathlib
import resource
import sys
import time

import numpy
import torch
from torch.nn import functional

KEEP_EVERY = 200  # steps; the reference looks for a new best state only then


def read_experts(source, layer, projection):
    """Returns (n, p, d) fp16. The reference rounds all weights to fp16."""
    path = pathlib.Path(source)
    if path.suffix == ".npy":
        return torch.from_numpy(numpy.load(path)).to(torch.float16)
    from safetensors import safe_open

    prefix, suffix = f"model.layers.{layer}.mlp.experts.", f".{projection}.weight"
    found = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            if path.is_file() and len(names) == 1:
                return tensors.get_tensor(names[0]).to(torch.float16)
            for name in names:
                if name.startswith(prefix) and name.endswith(suffix):
                    found[int(name[len(prefix) : -len(suffix)])] = tensors.get_tensor(name).to(torch.float16)
    if not found:
        sys.exit(f"no {prefix}*{suffix} in {source}")
    return torch.stack([found[expert] for expert in range(len(found))])


def start(experts, bases, rank):
    """Returns A, B and the logits, from the truncated SVD of stacked blocks of consecutive experts."""
    n, p, d = experts.shape
    block = n // bases
    A, B = [], []
    for j in range(bases):
        U, S, Vt = torch.linalg.svd(experts[j * block : (j + 1) * block].reshape(-1, d).float(), full_matrices=False)
        A.append((U[:, :rank] @ torch.diag(S[:rank])).reshape(block, p, rank))
        B.append(Vt[:rank])
    logits = torch.eye(bases, device=experts.device).repeat_interleave(block, 0)
    return [torch.nn.Parameter(x) for x in (torch.cat(A), torch.stack(B), logits)]


def rebuild(A, B, logits, picked, activate):
    mixed = torch.einsum("bi,ijk->bjk", torch.softmax(logits[picked], dim=1), B)
    return A[picked] @ activate(mixed)


def fit(target, sigma, options, clock):
    n = len(target)
    activate = {"silu": functional.silu, "tanh": torch.tanh}[options.activation]
    parameters = start(target, options.bases, options.rank)
    started_after = clock()
    optimizer = torch.optim.Adam(parameters, lr=options.rate)
    batch = options.batch or n
    batches = [torch.arange(i, min(i + batch, n), device=target.device) for i in range(0, n, batch)]
    curve, best, kept, step, over = [], float("inf"), None, 0, False
    while not over:
        step += 1
        loss_sum = real_sum = absolute_sum = 0.0
        optimizer.zero_grad()
        for picked in batches:
            rebuilt = rebuild(*parameters, picked, activate)
            wanted = target[picked]
            scaled = wanted / sigma  # fp16, like both operands
            unscaled = rebuilt * sigma
            loss = functional.mse_loss(rebuilt, scaled.to(torch.float32))
            real = functional.mse_loss(unscaled, wanted)
            absolute = functional.l1_loss(unscaled, wanted)
            (loss / len(batches)).backward()
            loss_sum += loss.item() * len(picked)
            real_sum += real.item() * len(picked)
            absolute_sum += absolute.item() * len(picked)
        optimizer.step()
        over = step == options.steps or (options.seconds and clock() > options.seconds)
        if step == 1 or step % options.every == 0 or over:
            curve.append([step, round(clock(), 4), loss_sum / n])
        # The loss belongs to the state before this update, but the state after it is kept: the reference does the same.
        if step % KEEP_EVERY == 0 and real_sum < best:
            best, kept = real_sum, [x.detach().clone() for x in parameters]
    fitted = clock()
    with torch.no_grad():
        squared = 0.0
        for picked in batches:
            rebuilt = rebuild(*(kept or parameters), picked, activate) * sigma
            squared += (rebuilt.double() - target[picked].double()).square().sum().item()
    return {
        "steps": step,
        "start_seconds": round(started_after, 4),
        "seconds": round(fitted, 4),
        "curve": curve,
        "relative_squared_error": squared / target.double().square().sum().item(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a checkpoint's folder or file, or an array of experts (n, p, d)")
    parser.add_argument("--layer", type=int, default=0)
    parser.add_argument("--projection", default="gate_proj")
    parser.add_argument("--bases", type=int, required=True)
    parser.add_argument("--rank", type=int, help="default: p")
    parser.add_argument("--activation", choices=["silu", "tanh"], default="silu")
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--seconds", type=float, help="stop a group after so long, its start included")
    parser.add_argument("--rate", type=float, default=0.07)
    parser.add_argument("--batch", type=int, help="experts a batch; default: all of a group")
    parser.add_argument("--groups", type=int, default=1, help="cut experts and bases in so many independent fits")
    parser.add_argument("--every", type=int, default=1, help="steps from one point of the curve to the next")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)

    experts = read_experts(options.source, options.layer, options.projection).to(device)
    options.rank = options.rank or experts.shape[1]
    if len(experts) % options.groups or options.bases % options.groups:
        sys.exit("experts and bases must divide evenly among the groups")
    options.bases //= options.groups
    if len(experts) // options.groups % options.bases:
        sys.exit("experts must divide evenly among the bases: the reference drops the rest")
    sigma = experts.std()  # over all groups; rounded to fp16
    # The first optimizer loads modules for a second or more. Like all imports, that happens before the clock starts.
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    groups = []
    for target in experts.chunk(options.groups):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        groups.append(fit(target, sigma, options, lambda: time.perf_counter() - begun))
    result = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": options.threads,
        "shape": list(experts.shape),
        "sigma": sigma.item(),
        "seconds": sum(group["seconds"] for group in groups),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "groups": groups,
    }
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
