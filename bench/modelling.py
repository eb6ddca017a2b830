"""Time and memory of a native checkpoint in transformers on the CPU, with the modelling files of this tree and of an older commit.

    python bench/modelling.py [--against COMMIT] [--model FOLDER] [--tokens 1,64,1024] [--threads N] [--out FILE]

Makes a Qwen3-MoE of 300 MB with random weights and compresses it with dist/ (npm run build), unless --model names a native folder.
Each measurement is a process of its own, in f32. Needs torch, transformers and git.

seconds: the shortest of some runs, of wall-clock time and of CPU time, without loading. On a busy machine CPU time is the steadier one.
peak: the largest resident memory of a forward, less that of the loaded model.
"""

import argparse
import ctypes
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = ("src/models/modeling/modeling_mobe.py", "src/serving/vllm/mobe_vllm/mobe_factors.py", "src/serving/vllm/mobe_vllm/mobe_fused.py")
# The last commit whose modelling file made F anew for each expert.
BEFORE = "56a710c"
MIB = 1 << 20


def make_model(folder):
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=512,
        hidden_size=1024,
        moe_intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=48,
        num_experts_per_tok=8,
        initializer_range=0.03,
        max_position_embeddings=4096,
    )
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def resident(field):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return None


def measure(folder, tokens, threads, runs):
    """One process: time and memory of a forward of so many tokens, and what the model says."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    text = (torch.arange(tokens)[None] * 37) % 509 + 2
    with torch.inference_mode():
        # What loading freed goes back to the system first, so that a forward cannot use it unseen.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        loaded = resident("VmRSS")
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        logits = model(text).logits
        peak = resident("VmHWM") - loaded
        walls, cpus = [], []
        for _ in range(runs):
            wall, cpu = time.perf_counter(), time.process_time()
            model(text)
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
        greedy = model.generate(text, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)[0, -8:].tolist()
    torch.save(logits, pathlib.Path(folder) / "logits.pt")
    return {"wall": min(walls), "cpu": min(cpus), "peak_mib": round(peak / MIB, 1), "loaded_mib": round(loaded / MIB), "greedy": greedy}


def child(*args):
    done = subprocess.run([sys.executable, __file__, "--child", *map(str, args)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", default=BEFORE)
    parser.add_argument("--model")
    parser.add_argument("--tokens", default="1,64,1024")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", default=ROOT / "bench" / "results" / "modelling.json")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, *numbers = options.child
        print(json.dumps(measure(folder, *map(int, numbers))))
        return
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        if options.model is None:
            make_model(work / "source")
            compress = ["node", ROOT / "dist/src/cli/main.js", "compress", work / "source", work / "native", "--bases", "16", "--steps", "1"]
            subprocess.run(compress, check=True)
        model = pathlib.Path(options.model or work / "native")
        for way in ("before", "now"):
            shutil.copytree(model, work / way)
        for file in FILES:
            shutil.copy(ROOT / file, work / "now")
            old = subprocess.run(["git", "show", f"{options.against}:{file}"], cwd=ROOT, capture_output=True)
            if old.returncode == 0:
                (work / "before" / pathlib.Path(file).name).write_bytes(old.stdout)
        rows = []
        for tokens in map(int, options.tokens.split(",")):
            row = {way: child(work / way, tokens, options.threads, options.runs) for way in ("before", "now")}
            before, now = (torch.load(work / way / "logits.pt") for way in ("before", "now"))
            row["difference"] = float((before - now).abs().max() / before.abs().max())
            row["same_greedy_tokens"] = row["before"].pop("greedy") == row["now"].pop("greedy")
            row["speedup"] = {clock: round(row["before"][clock] / row["now"][clock], 2) for clock in ("wall", "cpu")}
            rows.append({"tokens": tokens, **row})
            print(json.dumps(rows[-1]), flush=True)
        cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
        facts = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": {"cpu": cpu, "threads": options.threads, "torch": torch.__version__, "transformers": transformers.__version__},
            "model": "Qwen3-MoE, 2 layers, hidden 1024, 48 experts of 512, top 8, --bases 16, f32",
            "against": options.against,
            "rows": rows,
        }
        pathlib.Path(options.out).write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
