"""Writes a calibration record of a model with transformers, on any device, for models that `mobe calibrate` cannot run itself.

    python calibrate.py MODEL RECORD --text FILE... [--tokens N] [--sequence-length N] [--seed N] [--device cuda] [--dtype bfloat16]
    python calibrate.py MODEL RECORD --tokens-from OTHER_RECORD

MODEL is the checkpoint's folder, which mobe compresses. A text is plain UTF-8, or JSON lines (.jsonl) that have `text` or
`messages`; messages go through the model's chat template. `mobe compress MODEL OUT --calibration RECORD` then uses the record.
The format is described in mobe-stream's src/calibration/record.ts. Needs torch and transformers (5.x).

Every experts module that is called with (hidden states, indices, weights) is recorded: nearly all of transformers' families have
such modules. A factor that a model applies to the sum of the experts' outputs afterwards is not part of the weights.
"""

import argparse
import hashlib
import json
import math
import pathlib
import re
import struct
import sys

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto import modeling_auto

RECORD_FILE = "calibration.json"
TOKENS_FILE = "tokens.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Sequences are as long as the model's context, but no longer than this.
USUAL_LENGTH = 2048
# Each expert gets this many tokens for each of its columns, if the text has enough.
TOKENS_A_COLUMN = 5
AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "I32": torch.int32}


class Refusal(Exception):
    """A reason that the user must know."""


# ---------------------------------------------------------------- the fingerprint of a checkpoint


def js_number(value):
    """A number as JavaScript prints it."""
    number = float(value)
    if not math.isfinite(number):
        return "null"
    if number == 0:
        return "0"
    digits, _, power = repr(abs(number)).lower().partition("e")
    whole, _, fraction = digits.partition(".")
    exponent = int(power or 0) + len(whole)
    digits = (whole + fraction).lstrip("0")
    exponent -= len(whole + fraction) - len(digits)
    digits = digits.rstrip("0")
    if 0 < exponent <= 21:
        text = digits[:exponent].ljust(exponent, "0") + ("." + digits[exponent:] if len(digits) > exponent else "")
    elif -6 < exponent <= 0:
        text = "0." + "0" * -exponent + digits
    else:
        text = digits[0] + ("." + digits[1:] if len(digits) > 1 else "") + f"e{exponent - 1:+d}"
    return ("-" if number < 0 else "") + text


def js_json(value):
    """JSON as JavaScript's JSON.stringify prints it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return js_number(value)
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
    if isinstance(value, list):
        return "[" + ",".join(map(js_json, value)) + "]"
    # JavaScript puts keys that are whole numbers first.
    numbers = [key for key in value if re.fullmatch("0|[1-9][0-9]*", key) and int(key) < 2**32 - 1]
    keys = sorted(numbers, key=int) + [key for key in value if key not in set(numbers)]
    return "{" + ",".join(f"{js_json(key)}:{js_json(value[key])}" for key in keys) + "}"


def shards_of(folder):
    """The safetensors files of a checkpoint, in the order in which mobe hashes them."""
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    if (folder / INDEX_FILE).exists():
        named = set(json.loads((folder / INDEX_FILE).read_text(encoding="utf-8-sig"))["weight_map"].values())
        if "model.safetensors" in found and "model.safetensors" not in named:
            raise Refusal(f"{folder} has both {INDEX_FILE} and a model.safetensors that it does not name. Remove one of them.")
        if missing := sorted(named - set(found)):
            raise Refusal(f"{folder} lacks {missing[0]}, which {INDEX_FILE} names.")
        return sorted(named)
    if "model.safetensors" in found:
        return ["model.safetensors"]
    numbered = [name for name in found if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    if len(numbered or found) != len(found) or not found:
        raise Refusal(f"{folder} has no {INDEX_FILE}, and its safetensors files ({', '.join(found) or 'none'}) do not tell which are the model.")
    return found


def fingerprint(folder):
    """The checkpoint's fingerprint as mobe computes it: see `fingerprint` in src/checkpoint/open-checkpoint.ts."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    found = hashlib.sha256(js_json(config).encode("utf-8", "surrogatepass"))
    for name in shards_of(folder):
        with open(folder / name, "rb") as shard:
            size = shard.seek(0, 2)
            shard.seek(0)
            (length,) = struct.unpack("<Q", shard.read(8))
            header = json.loads(shard.read(length))
            header.pop("__metadata__", None)
            tensors = sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"]))
            found.update(f"{name} {size}".encode())
            first = size
            for number, (tensor, facts) in enumerate(tensors):
                start = 8 + length + facts["data_offsets"][0]
                first = start if number == 0 else first
                shape = ",".join(map(str, facts["shape"]))
                found.update(f"{tensor} {facts['dtype']} {shape} {start}".encode())
            for block in range(16):
                shard.seek(first + (size - first) * block // 16)
                found.update(shard.read(4096))
    return found.hexdigest()


# ---------------------------------------------------------------- the files of a record


class TensorFile:
    """A safetensors file whose tensors are written in pieces. It has its name once it is complete."""

    def __init__(self, path, tensors):
        """tensors: {name: (dtype, shape)}"""
        self.path, self.part, self.places = path, path.with_name(path.name + ".part"), {}
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name, (dtype, shape) in tensors.items():
            start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.file = open(self.part, "wb")
        self.file.write(struct.pack("<Q", len(text)) + text)
        self.file.truncate(8 + len(text) + end)
        self.dtypes = {name: DTYPES[dtype] for name, (dtype, _) in tensors.items()}
        self.places = {name: 8 + len(text) + header[name]["data_offsets"][0] for name in tensors}

    def append(self, name, values):
        """Writes the next rows of a tensor."""
        data = values.detach().to(self.dtypes[name]).cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        self.file.seek(self.places[name])
        self.file.write(data)
        self.places[name] += len(data)

    def close(self):
        self.file.close()
        self.part.replace(self.path)


def read_tokens(record):
    """-> (sequences, length)"""
    with open(record / TOKENS_FILE, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        facts = json.loads(file.read(length))["tokens"]
        file.seek(8 + length + facts["data_offsets"][0])
        data = bytearray(file.read(facts["data_offsets"][1] - facts["data_offsets"][0]))
    return torch.frombuffer(data, dtype=torch.int32).view(facts["shape"])


# ---------------------------------------------------------------- what the model does


def routing(arguments):
    """-> (inputs (t, d), indices (t, k), weights (t, k)) of a call of an experts module, or None for any other call"""
    given = [it for it in arguments if isinstance(it, torch.Tensor)]
    if len(given) < 3:
        return None
    inputs, (first, second) = given[0], given[1:3]
    if first.is_floating_point() == second.is_floating_point() or not inputs.is_floating_point():
        return None
    indices, weights = (second, first) if first.is_floating_point() else (first, second)
    k = indices.shape[-1]
    inputs, indices, weights = inputs.reshape(-1, inputs.shape[-1]), indices.reshape(-1, k).long(), weights.reshape(-1, weights.shape[-1])
    if weights.shape[-1] != k:
        # The weights of all experts.
        weights = weights.gather(1, indices)
    if not len(inputs) == len(indices) == len(weights):
        return None
    return inputs, indices, weights


def layer_of(name):
    """-> (name of the decoder layer that a module is in, number of the layer), or None"""
    found = re.match(r"(.*?\b(?:layers|blocks|block|h)\.(\d+))\.", name + ".")
    return (found[1], int(found[2])) if found else None


def expert_count(module):
    """The number of experts that have weights: the first axis of a stack."""
    stacks = [it for it in module.parameters(recurse=False) if it.dim() == 3]
    return min(map(len, stacks)) if stacks else module.num_experts


class Observer:
    """Calls `on_experts(layer, number of experts, inputs, indices, weights)` and `on_layer(layer, hidden states)` while a model runs."""

    def __init__(self, model, on_experts, on_layer):
        self.handles, self.on_experts, self.on_layer = [], on_experts, on_layer
        self.seen = {}
        for name, module in model.named_modules():
            place = layer_of(name)
            if not place:
                continue
            if place[0] == name:
                self.handles.append(module.register_forward_hook(self.after_layer(place[1])))
            elif re.search(r"experts?(\.mlp)?$", name):
                self.handles.append(module.register_forward_pre_hook(self.before_experts(name, place[1]), with_kwargs=True))

    def before_experts(self, name, layer):
        def hook(module, arguments, named):
            call = routing([*arguments, *named.values()])
            if call is None:
                return
            if self.seen.setdefault(layer, name) != name:
                raise Refusal(f"layer {layer} has two experts modules, {self.seen[layer]} and {name}.")
            count = expert_count(module)
            if call[1].max() >= count:
                raise Refusal(f"{name} sends tokens to experts without weights. Such models cannot be recorded.")
            self.on_experts(layer, count, *call)

        return hook

    def after_layer(self, layer):
        def hook(module, arguments, output):
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            self.on_layer(layer, hidden)

        return hook

    def remove(self):
        for handle in self.handles:
            handle.remove()


def run(model, tokens):
    """Runs the language model on sequences of token numbers (s, length)."""
    # Qwen3-Omni's language model is called so.
    language = getattr(model, "thinker", model)
    options = {"logits_to_keep": 1} if "logits_to_keep" in language.forward.__code__.co_varnames else {}
    with torch.no_grad():
        language(input_ids=tokens.long().to(next(language.parameters()).device), use_cache=False, **options)


def probe(model, tokens):
    """Runs a few tokens and finds the layers that have experts. -> {layer: (d, k, n)}"""
    found = {}
    if model.config.is_encoder_decoder:
        raise Refusal("an encoder with a decoder cannot be recorded.")

    def on_experts(layer, count, inputs, indices, weights):
        if layer in found:
            raise Refusal(f"layer {layer} calls its experts more than once for a token. Such models cannot be recorded.")
        found[layer] = (inputs.shape[-1], indices.shape[-1], count)

    observer = Observer(model, on_experts, lambda layer, hidden: None)
    try:
        run(model, tokens)
    finally:
        observer.remove()
    if not found:
        raise Refusal("no experts module of this model is called with hidden states, indices and weights, so it cannot be recorded.")
    return found


def write_record(model, folder, record, tokens, facts, batch=1):
    """Runs a model on tokens (sequences, length), and writes the record. folder: its checkpoint. facts: `seed` and `texts`.

    Returns {layer: (n), the tokens of each expert}.
    """
    record = pathlib.Path(record)
    sequences, length = tokens.shape
    total = sequences * length
    sizes = probe(model, tokens[:1, :8])
    record.mkdir(parents=True, exist_ok=True)
    files = {
        layer: TensorFile(
            record / f"layer-{layer:03}.safetensors",
            {"input": ("BF16", (total, d)), "experts": ("I32", (total, k)), "weights": ("F32", (total, k)), "scale": ("F32", (total,))},
        )
        for layer, (d, k, _) in sizes.items()
    }
    reached = {layer: torch.zeros(n, dtype=torch.long) for layer, (_, _, n) in sizes.items()}

    def on_experts(layer, count, inputs, indices, weights):
        file = files[layer]
        file.append("input", inputs)
        file.append("experts", indices)
        file.append("weights", weights)
        reached[layer] += torch.bincount(indices.flatten().cpu(), minlength=count)

    def on_layer(layer, hidden):
        if layer in files:
            # Models with several residual streams have an axis for them before the last one.
            rows = hidden.reshape(running, -1).float()
            files[layer].append("scale", rows.pow(2).mean(-1).rsqrt())

    observer = Observer(model, on_experts, on_layer)
    try:
        for first in range(0, sequences, batch):
            part = tokens[first : first + batch]
            running = part.numel()
            run(model, part)
            print(f"\rsequence {min(first + batch, sequences)} of {sequences}", end="", file=sys.stderr, flush=True)
    finally:
        observer.remove()
        print(file=sys.stderr)
    for file in files.values():
        file.close()
    own = TensorFile(record / TOKENS_FILE, {"tokens": ("I32", tuple(tokens.shape))})
    own.append("tokens", tokens)
    own.close()
    place = next(model.parameters()).device
    facts = {
        "version": 1,
        "sourceFingerprint": fingerprint(folder),
        **{"sequences": sequences, "length": length},
        **facts,
        "layers": sorted(files),
        "engine": {"name": f"transformers {transformers.__version__}", "device": str(place), "kind": place.type},
    }
    part = record / f"{RECORD_FILE}.part"
    part.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    part.replace(record / RECORD_FILE)
    return reached


# ---------------------------------------------------------------- texts and the command


def documents(file, tokenizer):
    """-> the texts of a file"""
    text = file.read_bytes().decode("utf-8-sig")
    if file.suffix.lower() != ".jsonl":
        return [text]
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            own = entry.get("text")
            found.append(own if isinstance(own, str) else tokenizer.apply_chat_template(entry["messages"], tokenize=False))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refusal(f"line {number} of {file} is not JSON with text or messages ({error}).") from error
    return found


def text_tokens(file, tokenizer):
    """-> the token numbers of all texts of a file, one after the other"""
    parts = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in documents(file, tokenizer)]
    return [token for part in parts for token in part]


def choose_tokens(texts, length, wanted, seed):
    """Cuts texts (token numbers) into windows that do not overlap, and chooses some at random. -> (sequences, length)"""
    length = min(length, max(map(len, texts)))
    if length < 2:
        raise Refusal("the texts have fewer than two tokens.")
    windows = [text[first : first + length] for text in texts for first in range(0, len(text) - length + 1, length)]
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    return torch.tensor([windows[at] for at in order[: max(1, math.ceil(wanted / length))]], dtype=torch.int32)


def load_model(folder, dtype, device, trusted):
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
    for name in AUTO_CLASSES:
        auto = getattr(modeling_auto, name)
        if type(config) in auto._model_mapping or name in getattr(config, "auto_map", {}):
            place = {"device_map": "auto"} if device == "auto" else {}
            model = auto.from_pretrained(folder, dtype=dtype, trust_remote_code=trusted, **place)
            return (model if place else model.to(device)).eval()
    raise Refusal(f"transformers has no class for the model type {config.model_type} in {folder}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n", 2)[2], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help="the checkpoint's folder")
    parser.add_argument("record", type=pathlib.Path, help="the folder to write")
    parser.add_argument("--text", nargs="+", type=pathlib.Path, default=[], help="plain text, or .jsonl")
    parser.add_argument("--tokens-from", type=pathlib.Path, metavar="RECORD", help="take the sequences of another record")
    parser.add_argument("--tokens", type=int, help="default: 5 times the width for each expert, if the text has as many")
    parser.add_argument("--sequence-length", type=int, help="default: the model's context, at most 2048")
    parser.add_argument("--seed", type=int, default=0, help="chooses the sequences (default: 0)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps, or auto to spread the model (default: cpu)")
    parser.add_argument("--dtype", default="bfloat16", help="in which the model runs (default: bfloat16)")
    parser.add_argument("--batch", type=int, default=1, help="sequences that run together (default: 1)")
    parser.add_argument("--trust-remote-code", action="store_true")
    options = parser.parse_args()
    try:
        write(options)
    except (Refusal, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        sys.exit(f"error: {error}")


def write(options):
    if bool(options.text) == bool(options.tokens_from):
        raise Refusal("give either --text or --tokens-from.")
    if options.record.exists() and any(file.suffix != ".part" for file in options.record.iterdir()):
        raise Refusal(f"{options.record} is not empty. Give another folder.")
    fingerprint(options.model)
    model = load_model(options.model, getattr(torch, options.dtype), options.device, options.trust_remote_code)
    if options.tokens_from:
        other = json.loads((options.tokens_from / RECORD_FILE).read_text(encoding="utf-8"))
        tokens, facts = read_tokens(options.tokens_from), {key: other[key] for key in ("seed", "texts")}
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=options.trust_remote_code)
        config = model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None) or USUAL_LENGTH
        length = options.sequence_length or min(context, USUAL_LENGTH)
        texts = [text_tokens(file, tokenizer) for file in options.text]
        tokens = choose_tokens(texts, length, options.tokens or usual_tokens(model), options.seed)
        facts = {"seed": options.seed, "texts": [text_facts(file) for file in options.text]}
    reached = write_record(model, options.model, options.record, tokens, facts, options.batch)
    print(f"{tokens.numel()} tokens in {len(tokens)} sequences of {tokens.shape[1]}")
    for layer, counts in sorted(reached.items()):
        print(f"layer {layer}: {counts.float().mean():.0f} tokens an expert, from {counts.min()} to {counts.max()}")


def usual_tokens(model):
    """As many as give each expert `TOKENS_A_COLUMN` times the width, if all experts get as many."""
    return max(math.ceil(TOKENS_A_COLUMN * d * n / k) for d, k, n in probe(model, torch.zeros((1, 2), dtype=torch.int32)).values())


def text_facts(file):
    data = file.read_bytes()
    return {"name": file.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


if __name__ == "__main__":
    main()
