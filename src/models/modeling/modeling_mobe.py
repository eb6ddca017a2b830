"""Native checkpoints of mobe-stream: transformers' own models, whose routed experts are stored as factors.

The model, its routers, its shared experts and its experts class are transformers'. Only the matrices of the experts come
from elsewhere: in a factorised layer, `experts.gate_up_proj[e]` and `experts.down_proj[e]` are made of factors when they are
multiplied with. Two methods (`mobe.method` in config.json):

    mobe   W_e (p, d) = A_e (p, r) · f(Σ_k α_ek B_k) (r, d)     arXiv 2508.05257; B and α belong to the layer
    svd    W_e (p, d) = A_e (p, r) · V_e (r, d)

A factorised down_proj is the transpose, W_e (d, p) = (A_e · F_e)ᵀ. Letters: n experts, m bases, g groups, d columns of
gate_proj, p its rows, r rank, t tokens.

Tensors of a layer, after the prefix that its experts have in the source (`mobe.prefix`); gate may be up or down:

    B_gate (m, r, d), W_gate (n, m)     B and α; with g > 1 groups B_gate_{i} (m/g, r, d) and W_gate_{i} (n/g, m/g)
    experts.{e}.gate_proj.weight        A (p, r) of `mobe`
    experts.{e}.gate_proj.A, .V         A and V of `svd`
    experts.{e}.up_proj.weight          a dense projection (p, d) that the source stored in one tensor with a factorised one

A, V and B may be quantised. An entry of `mobe.factors` then names their dtypes: `dtype` that of A and V, `bases_dtype` that of B.
Numbers of a row share a scale by `scale_group` g: value = code · scale. α is never quantised. The names of the tensors end with

    (nothing), _scale   int8 and fp8: codes of the factor's shape, I8 or F8_E4M3, and BF16 (…, ⌈columns / g⌉)
    _packed, _scale     int4, int5 and int6 of b bits: I32 (…, ⌈columns · b / 32⌉), in which the field of b bits, lowest first, of
                        a column holds code + 2^(b − 1); and BF16 (…, ⌈columns / g⌉)

All other tensors are those of the source.
"""

import os
import re
import shutil
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, wraps
from inspect import signature

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.configuration_utils import PretrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import MergeModulelist, PrefixChange, WeightConverter, WeightRenaming
from transformers.dynamic_module_utils import get_relative_import_files

from .mobe_factors import ACTIVATIONS, PACKED_BITS, Quantised, decoded, layer_of, mix, part_name, shared_names, stored_parts
from .mobe_fused import Pairs, available, fused_is_faster, fused_products, supported, wanted

# A model type of its own makes transformers refuse the checkpoint unless it may run this file. Otherwise transformers would
# fill the experts with random numbers.
MODEL_TYPE = "mobe"
# Model types whose models are those of another type.
SAME_MODEL = {"kimi_k2": "deepseek_v3"}
# Auto classes, in the order in which a model's class is looked for if config.json does not name it.
AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")

PROJECTIONS = ("gate", "up", "down")
# Experts whose F are made by one product. More are hardly faster, and each takes as much memory as a matrix.
CHUNK = 8
# What experts classes call the experts that each token chose (t, k).
CHOICES = ("top_k_index", "router_indices")


def random_parameter(like, shape, dtype, std):
    """A parameter of a stored tensor. dtype None: that of `like`. On the meta device nothing is filled in."""
    if dtype is None:
        parameter = nn.Parameter(like.new_empty(shape))
        return parameter if parameter.is_meta else nn.init.normal_(parameter, std=std)
    values = like.new_empty(shape, dtype=dtype)
    if not values.is_meta:
        if dtype == torch.bfloat16:
            # Scales. Codes of 8 bits have a deviation of some 64.
            values.fill_(std / 64)
        elif dtype in (torch.int8, torch.int32):
            limits = torch.iinfo(dtype)
            values.random_(limits.min, limits.max + 1)
        else:
            values.copy_(64 * torch.randn(shape, device=values.device))
    return nn.Parameter(values, requires_grad=False)


class Dense:
    """A matrix (p, d), or (d, p) if it is a down_proj."""

    def __init__(self, weight):
        self.weight = weight

    def apply(self, x):
        return F.linear(x, self.weight)

    def whole(self):
        return self.weight


class Product:
    """The matrix A · F (p, d), or its transpose (d, p) if it is a down_proj."""

    def __init__(self, A, F, transposed):
        self.A, self.F, self.transposed = A, F, transposed

    def apply(self, x):
        (p, r), d = self.A.shape, self.F.shape[-1]
        # For very many rows it is less work to make the matrix.
        if x.numel() // x.shape[-1] * (r * d + p * r - p * d) > p * r * d:
            return F.linear(x, self.whole())
        return x @ self.A @ self.F if self.transposed else F.linear(F.linear(x, self.F), self.A)

    def whole(self):
        return (self.A @ self.F).mT if self.transposed else self.A @ self.F


class Lazy:
    """Stands for a tensor that is made only if a function other than a multiplication, or an attribute, asks for it."""

    def __getattr__(self, name):
        return getattr(self.whole(), name)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if len(args) > 1 and isinstance(args[1], Lazy) and not isinstance(args[0], Lazy):
            output = args[1].multiplied(function, args[0])
            if output is not None:
                bias = args[2] if len(args) > 2 else kwargs.get("bias")
                return output if bias is None else output + bias
        made = [it.whole() if isinstance(it, Lazy) else it for it in args]
        return function(*made, **{key: it.whole() if isinstance(it, Lazy) else it for key, it in kwargs.items()})


class ExpertMatrix(Lazy):
    """One expert's matrix as its class expects it. shorts: gate and up, or one of them, or down.

    The matrices of `shorts` are made when they are needed, and not kept: a step makes other experts' F in the same memory.
    """

    def __init__(self, experts, shorts, expert):
        self.experts, self.shorts, self.expert = experts, shorts, expert

    def multiplied(self, function, x):
        if function not in (RIGHT_PRODUCTS if self.experts.mobe_transposed else (F.linear,)):
            return None
        step = self.experts.mobe_step
        fused = [step and step.fused(short, self.expert, x) for short in self.shorts]
        return self.joined(
            [
                self.experts.mobe_matrix(short, self.expert).apply(x) if output is None else output
                for short, output in zip(self.shorts, fused, strict=True)
            ]
        )

    def joined(self, outputs):
        """outputs: of each part, along the last axis."""
        if len(outputs) == 1:
            return outputs[0]
        return torch.stack(outputs, -1).flatten(-2) if self.experts.mobe_interleaved else torch.cat(outputs, -1)

    def whole(self):
        turned = self.joined([self.experts.mobe_matrix(short, self.expert).whole().mT for short in self.shorts])
        return turned if self.experts.mobe_transposed else turned.mT


class ExpertMatrices(Lazy):
    """The matrices of all experts of a layer: `[e]` is that of one. make: expert number -> ExpertMatrix."""

    def __init__(self, make, shape):
        self.make, self.shape = make, shape

    def __getitem__(self, expert):
        return self.make(int(expert))

    def __len__(self):
        return self.shape[0]

    def multiplied(self, function, x):
        if function is torch.bmm:
            return torch.stack([torch.matmul(own, self[expert]) for expert, own in enumerate(x)])
        return None

    def whole(self):
        return torch.stack([self[expert].whole() for expert in range(len(self))])


RIGHT_PRODUCTS = (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__)


class ChosenRows(TorchFunctionMode):
    """Notices which rows of the tokens an experts class takes: `chosen` are the rows `rows` of them."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens, self.chosen, self.rows = tokens, None, None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.__getitem__ and args[0] is self.tokens and isinstance(args[1], torch.Tensor):
            self.chosen, self.rows = result, args[1]
        return result


class Step:
    """What one forward of a layer's experts makes, and keeps until its end.

    F of a chunk of the experts in use are made by one product: the bases are read once for all of them. For few tokens on a GPU with
    Triton, and MOBE_KERNEL=on, a fused kernel makes the products of all tokens at once, without F (mobe_fused.py).
    """

    def __init__(self, experts, tokens, choices):
        self.experts, self.choices, self.chunks, self.memory, self.products = experts, choices, {}, {}, {}
        self.used = self.pairs = self.chosen_rows = None
        few = torch.is_tensor(tokens) and choices is not None and tokens.dim() == choices.dim() == 2
        if few and wanted() and not torch.is_grad_enabled() and available(tokens.device):
            self.chosen_rows = ChosenRows(tokens)

    def mixed(self, short, expert):
        """F of one expert (r, d)."""
        chunk, made = self.chunks.get(short, ((), None))
        if expert not in chunk:
            # The last chunk's memory is needed for this one.
            self.chunks.pop(short, None)
            made = None
            chunk = self.chunk(expert, self.experts.mobe_groups[short])
            made = self.experts.mobe_mixed(short, chunk, self.memory)
            self.chunks[short] = chunk, made
        return made[chunk.index(expert)]

    def chunk(self, expert, size):
        """This expert and the next ones in use of its group. Experts run in ascending order."""
        if self.used is None:
            n = self.experts.mobe_number
            self.used = list(range(n)) if self.choices is None else self.choices.unique().tolist()
        end = (expert // size + 1) * size
        return [expert, *(other for other in self.used if expert < other < end)][:CHUNK]

    def fused(self, short, expert, x):
        """The product of rows of the tokens with an expert's matrix, by the fused kernel; None if that is not the way."""
        noticed = self.chosen_rows
        if noticed is None or x is not noticed.chosen or short == "down":
            return None
        if short not in self.products:
            self.products[short] = self.fused_products(short)
        if self.products[short] is None:
            return None
        choice = (self.choices[noticed.rows] == expert).int().argmax(-1)
        return self.products[short][noticed.rows, choice]

    def fused_products(self, short):
        """(t, k, p), or None if another way is faster or the kernel does not read these factors."""
        experts, tokens = self.experts, self.chosen_rows.tokens
        if experts.mobe_method == "svd" or short not in experts.mobe_groups:
            return None
        A, bases, coefficients = experts.mobe_shared(short)
        if not all(supported(factor, tokens.dtype) for factor in (A, *bases)) or coefficients[0].dtype != tokens.dtype:
            return None
        (t, k), n, m = self.choices.shape, experts.mobe_number, sum(alpha.shape[1] for alpha in coefficients)
        first = bases[0].data if isinstance(bases[0], Quantised) else bases[0]
        p = (A.data if isinstance(A, Quantised) else A).shape[1]
        r, d = (first.shape[1], bases[0].columns) if isinstance(bases[0], Quantised) else first.shape[1:]
        if not fused_is_faster(t, k, n, m, p, r, d, tokens.element_size()):
            return None
        self.pairs = self.pairs or Pairs(self.choices, n)
        name = experts.mobe_activation_names[short]
        return fused_products(A, bases, coefficients, tokens, self.pairs, name).unflatten(0, (t, k))


def in_step(forward):
    """An experts class' forward, which has a Step while it runs."""
    names = list(signature(forward).parameters)

    @wraps(forward)
    def run(self, *args, **kwargs):
        given = dict(zip(names[1:], args, strict=False)) | kwargs
        step = Step(self, given.get(names[1]), next((given[name] for name in CHOICES if torch.is_tensor(given.get(name))), None))
        self.mobe_step = step
        try:
            with step.chosen_rows or nullcontext():
                return forward(self, *args, **kwargs)
        finally:
            self.mobe_step = None

    return run


class Factorised:
    """Goes before a family's experts class in the bases of the class that the experts of a factorised layer get."""

    # That of the forward that runs.
    mobe_step = None

    def mobe_matrix(self, short, expert):
        """gate, up or down of one expert."""
        if short not in self.mobe_groups:
            return Dense(getattr(self, f"{short}_dense")[expert])
        A = decoded(self.mobe_factor(f"{short}_A")[expert], self.mobe_dtype.dtype)
        if self.mobe_method == "svd":
            shared = decoded(self.mobe_factor(f"{short}_V")[expert], self.mobe_dtype.dtype)
        elif self.mobe_step is None:
            shared = self.mobe_mixed(short, [expert])[0]
        else:
            shared = self.mobe_step.mixed(short, expert)
        return Product(A, shared, short == "down")

    def mobe_mixed(self, short, chunk, memory=None):
        """F of some experts of a group (experts, r, d). memory: {short: a tensor that held others}; used if there are no gradients."""
        group = chunk[0] // self.mobe_groups[short]
        B, W = shared_names(short, group, self.mobe_parts[short])
        first = group * self.mobe_groups[short]
        coefficients, bases = getattr(self, W)[[expert - first for expert in chunk]], self.mobe_factor(B)
        activation, dtype = self.mobe_activations[short], self.mobe_dtype.dtype
        if memory is None or torch.is_grad_enabled():
            return activation(mix(coefficients, bases, dtype))
        if short not in memory or len(memory[short]) < len(chunk):
            shape = (*bases.data.shape[1:-1], bases.columns) if isinstance(bases, Quantised) else bases.shape[1:]
            memory[short] = coefficients.new_empty(len(chunk), *shape)
        made = mix(coefficients, bases, dtype, memory[short][: len(chunk)])
        for own in made:
            own.copy_(activation(own))
        return made

    def mobe_shared(self, short):
        """A, the bases of all groups, and their coefficients."""
        names = [shared_names(short, group, self.mobe_parts[short]) for group in range(self.mobe_parts[short])]
        factors = [self.mobe_factor(B) for B, _ in names]
        return self.mobe_factor(f"{short}_A"), factors, [getattr(self, W) for _, W in names]

    def mobe_factor(self, name):
        """A factor of all experts, or the bases: a parameter, or several as one quantised factor."""
        quantised = self.mobe_quantised.get(name)
        if quantised is None:
            return getattr(self, name)
        data, columns, bits, group = quantised
        return Quantised(getattr(self, data), getattr(self, part_name(name, "scale")), columns, bits, group)


def matrices(name):
    """The property that takes the place of the parameter `name` of an experts class."""

    def get(self):
        shorts = self.mobe_replaced[name]
        return ExpertMatrices(lambda expert: ExpertMatrix(self, shorts, expert), self.mobe_shapes[name])

    return property(get)


@cache
def factorised_class(experts_class, names):
    # The undecorated forward is transformers' eager one. The others need tensors.
    forward = getattr(experts_class.forward, "__wrapped__", experts_class.forward)
    replaced = {name: matrices(name) for name in names}
    own = {"__module__": experts_class.__module__, "forward": in_step(forward), **replaced}
    return type(experts_class.__name__, (Factorised, experts_class), own)


def is_experts(module):
    own = module._parameters
    down = own.get("down_proj")
    up = own.get("gate_up_proj") if own.get("gate_up_proj") is not None else own.get("up_proj")
    return down is not None and up is not None and down.dim() == up.dim() == 3 and "gate_proj" not in own


def factorise(experts, sizes, method, std):
    """Replaces parameters of a layer's experts by factors. sizes: {short: an entry of `mobe.factors` in config.json}."""
    fused = experts._parameters.get("gate_up_proj")
    first, down = fused if fused is not None else experts.up_proj, experts.down_proj
    outputs = 2 if fused is not None else 1
    # Llama 4 does not say it.
    turned = first.shape[1] != outputs * down.shape[2] or first.shape[2] != down.shape[1]
    transposed = getattr(experts, "is_transposed", turned)
    n, (p, d) = down.shape[0], down.shape[1:] if transposed else down.shape[:0:-1]
    replaced = {
        "gate_up_proj" if fused is not None else "up_proj": PROJECTIONS[:2] if fused is not None else PROJECTIONS[1:2],
        "down_proj": PROJECTIONS[2:],
    }
    replaced = {name: shorts for name, shorts in replaced.items() if not sizes.keys().isdisjoint(shorts)}
    experts.mobe_shapes = {name: experts._parameters.pop(name).shape for name in replaced}
    experts.mobe_quantised = {}

    def register(name, shape, dtype=None, scale_group=None):
        parts = stored_parts(shape, dtype, scale_group)
        for ending, (stored_shape, stored_dtype) in parts.items():
            experts.register_parameter(part_name(name, ending), random_parameter(first, stored_shape, stored_dtype, std))
        if "scale" in parts:
            data = part_name(name, next(iter(parts)))
            experts.mobe_quantised[name] = (data, shape[-1], PACKED_BITS.get(dtype), scale_group)

    for short in (short for shorts in replaced.values() for short in shorts):
        if short not in sizes:
            register(f"{short}_dense", (n, p, d))
            continue
        rank, groups = sizes[short]["rank"], sizes[short].get("groups", 1)
        own, shared, scale_group = (sizes[short].get(key) for key in ("dtype", "bases_dtype", "scale_group"))
        register(f"{short}_A", (n, p, rank), own, scale_group)
        if method == "svd":
            register(f"{short}_V", (n, rank, d), own, scale_group)
            continue
        bases = sizes[short]["bases"] // groups
        for group in range(groups):
            B, W = shared_names(short, group, groups)
            register(B, (bases, rank, d), shared, scale_group)
            register(W, (n // groups, bases))
    # Only its dtype is used: that of the model, whatever the model is cast to.
    experts.register_buffer("mobe_dtype", first.new_empty(0), persistent=False)
    experts.mobe_replaced, experts.mobe_method = replaced, method
    experts.mobe_activation_names = {short: size["activation"] for short, size in sizes.items() if method == "mobe"}
    experts.mobe_activations = {short: ACTIVATIONS[name] for short, name in experts.mobe_activation_names.items()}
    experts.mobe_number = n
    experts.mobe_parts = {short: size.get("groups", 1) for short, size in sizes.items()}
    experts.mobe_groups = {short: n // groups for short, groups in experts.mobe_parts.items()}
    experts.mobe_transposed, experts.mobe_interleaved = transposed, not getattr(experts, "is_concatenated", True)
    # The family's own initialisation knows only the parameters that are gone.
    experts._is_hf_initialized = True
    experts.__class__ = factorised_class(type(experts), tuple(replaced))


class Hide(WeightRenaming):
    """Gives tensors of a checkpoint a name that no conversion of the family knows."""

    def __init__(self, names):
        super().__init__("mobe_tensor", "mobe_tensor")
        self.names, self.numbers = names, {name: number for number, name in enumerate(names)}

    def rename_source_key(self, source_key):
        number = self.numbers.get(source_key)
        if number is None:
            return source_key, None
        self._was_used = True
        return f"mobe_tensor_{number}", source_key

    def reverse_transform(self):
        return Show(self.names)


class Show(WeightRenaming):
    """Gives hidden tensors their name in the model, whatever the family's conversions put before it."""

    def __init__(self, names):
        super().__init__("mobe_tensor", "mobe_tensor")
        self.names = names

    def rename_source_key(self, source_key):
        match = re.search(r"mobe_tensor_(\d+)$", source_key)
        if match is None:
            return source_key, None
        self._was_used = True
        return self.names[int(match[1])], source_key

    def reverse_transform(self):
        return Hide(self.names)


def stored_names(experts, layout):
    """Pairs of a tensor's name in the checkpoint, after the prefix, and its name in the experts module."""
    for name, parameter in experts.named_parameters(recurse=False):
        short, _, factor = name.partition("_")
        ending, _, factor = factor.rpartition("_")
        numbers = range(parameter.shape[0])
        projection = f"{short}_proj"
        if short in ("B", "W"):
            yield name, name
        elif factor in ("A", "V"):
            stored = (factor if experts.mobe_method == "svd" else "weight") + (ending and f"_{ending}")
            yield from ((f"experts.{e}.{projection}.{stored}", f"{name}.{e}.weight") for e in numbers)
        elif factor == "dense":
            alone = next((it["name"] for it in layout if it["projections"] == [projection]), None)
            if alone and "{e}" not in alone:
                yield alone, name
            else:
                stored = alone or "experts.{e}." + projection + ".weight"
                yield from ((stored.replace("{e}", str(e)), f"{name}.{e}.weight") for e in numbers)


def find_experts(model, prefixes):
    """Returns {layer: (name, module)}. If several modules of a layer hold experts, the one is taken that is named most like the prefix."""
    found = {}
    for name, module in model.named_modules():
        if is_experts(module):
            found.setdefault(layer_of(name), []).append((name, module))

    def likeness(name, prefix):
        return (Counter(name.split(".")) & Counter(f"{prefix}experts".split("."))).total()

    missing = sorted(prefixes.keys() - found.keys())
    if missing:
        raise ValueError(f"{type(model).__name__} has no experts in layers {missing}, which are factorised in the checkpoint")
    return {layer: max(found[layer], key=lambda it: likeness(it[0], prefix)) for layer, prefix in prefixes.items()}


class NativeModel:
    """Goes before a family's model class in the bases of the class that is loaded."""

    # Which experts run depends on the tokens.
    _can_compile_fullgraph = False

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        mobe = config.mobe
        text = config.get_text_config(decoder=True)
        std = getattr(text, "initializer_range", None) or 0.02
        sizes = {}
        for part in mobe["factors"]:
            for layer in part["layers"]:
                own = {projection.removesuffix("_proj"): part for projection in part["projections"]}
                sizes.setdefault(layer, {}).update(own)
        prefixes = {layer: mobe["prefix"].replace("{layer}", str(layer)) for layer in sizes}
        names = []
        for layer, (path, experts) in find_experts(self, prefixes).items():
            factorise(experts, sizes[layer], mobe["method"], std)
            stored = stored_names(experts, mobe.get("experts") or [])
            names += [(prefixes[layer] + on_disk, f"{path}.{name}") for on_disk, name in stored]
        self.mobe_names = names
        # Multi-token-prediction modules may be stored as layers past the last one.
        last = text.num_hidden_layers
        past = rf"(^|\.)layers\.({'|'.join(str(last + extra) for extra in range(8))})\."
        self._keys_to_ignore_on_load_unexpected = {*(self._keys_to_ignore_on_load_unexpected or ()), past}

    def mobe_conversions(self, family):
        """The conversions of names and tensors at loading: ours, around the family's."""
        stored, inside = zip(*self.mobe_names, strict=True)
        stacks = [
            WeightConverter(f"{short}_{factor}.*.weight", f"{short}_{factor}", [MergeModulelist(0)])
            for short in PROJECTIONS
            for factor in ("A", "V", "dense", "scale_A", "packed_A", "scale_V", "packed_V")
        ]
        return [Hide(stored), *stacks, *family, Show(inside)]

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        load_config = replace(load_config, weight_mapping=model.mobe_conversions(load_config.weight_mapping or []))
        family = type(model).__bases__[1]
        loaded = family._load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs)
        for module in model.modules():
            for name in ("gate_up_proj", "up_proj", "down_proj") if isinstance(module, Factorised) else ():
                # transformers decodes packed integers in the dtype of their scales, whatever dtype is asked for.
                if name in module._parameters:
                    parameter = module._parameters[name]
                    parameter.data = parameter.data.to(module.mobe_dtype.dtype)
            for name in module.mobe_quantised if isinstance(module, Factorised) else ():
                factor = module.mobe_factor(name)
                # Loading made parameters of floats, which scales and fp8 codes are, trainable.
                factor.data.requires_grad_(False), factor.scale.requires_grad_(False)
        return loaded

    def save_pretrained(self, *args, **kwargs):
        if getattr(self, "_weight_conversions", None) is None:
            family = get_model_conversion_mapping(self, add_legacy=False)
            self._weight_conversions = self.mobe_conversions([it for it in family if not isinstance(it, PrefixChange)])
        return super().save_pretrained(*args, **kwargs)


class NativeConfig:
    """Goes before a family's config class: the config of a native checkpoint."""

    def to_diff_dict(self):
        # For config.json. Inside transformers the model keeps the type of its family, by which it is known there.
        architecture = native_name((self.mobe["source_architectures"] or ["ForCausalLM"])[0])
        # On a hub, names are of the form `repository--module.Class`.
        auto_map = {auto: name.split("--")[-1] for auto, name in self.auto_map.items()}
        return super().to_diff_dict() | {
            "model_type": MODEL_TYPE,
            "architectures": [architecture],
            "auto_map": auto_map,
        }

    def save_pretrained(self, save_directory, *args, **kwargs):
        super().save_pretrained(save_directory, *args, **kwargs)
        for file in [self.mobe_file, *get_relative_import_files(self.mobe_file)]:
            shutil.copyfile(file, os.path.join(save_directory, os.path.basename(file)))


def native_name(architecture):
    """Qwen3MoeForCausalLM -> Qwen3MoBEForCausalLM, MixtralForCausalLM -> MixtralMoBEForCausalLM"""
    return re.sub(r"(?=For[A-Z]\w*$)", "MoBE", re.sub("Moe|MoE", "", architecture, count=1), count=1)


@cache
def native_config_class(family, file):
    # By a name of its own no auto class finds the family's dense model, which would have random experts.
    own = {"__module__": family.__module__, "__init__": family.__init__, "mobe_file": file}
    return type(family.__name__.removesuffix("Config") + "MoBEConfig", (NativeConfig, family), own)


@cache
def native_class(family):
    # By its name and module transformers finds the conversions of the family's tensors.
    return type(family.__name__, (NativeModel, family), {"__module__": family.__module__})


class MoBEConfig(PretrainedConfig):
    """Makes the config of a native checkpoint, an instance of the family's class."""

    model_type = MODEL_TYPE

    @classmethod
    def family(cls, model_type):
        return transformers.CONFIG_MAPPING[SAME_MODEL.get(model_type, model_type)]

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        mobe = config_dict["mobe"]
        if mobe["format_version"] > 2:
            raise ValueError(f"format_version {mobe['format_version']} of a native checkpoint is newer than this file")
        family = cls.family(mobe["source_model_type"])
        own = native_config_class(family, sys.modules[cls.__module__].__file__)
        return own.from_dict({**config_dict, "model_type": family.model_type}, **kwargs)


class MoBEForCausalLM:
    """Loads a native checkpoint into its family's class, whichever of the auto classes asks for it."""

    @classmethod
    def family(cls, config):
        for architecture in config.mobe["source_architectures"] or []:
            found = getattr(transformers, architecture, None)
            if found is not None and isinstance(config, found.config_class):
                return found
        base = next(it for it in type(config).__mro__ if it.__module__.startswith("transformers.") and it is not type(config))
        for auto in AUTO_CLASSES:
            if base in getattr(transformers, auto)._model_mapping:
                return getattr(transformers, auto)._model_mapping[base]
        raise ValueError(f"transformers {transformers.__version__} has no class for {config.mobe['source_architectures']}")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config, **kwargs):
        if kwargs.get("tp_plan") or kwargs.get("distributed_config"):
            raise ValueError("native MoBE checkpoints have no plan for tensor parallelism; expand them first (mobe expand)")
        family = native_class(cls.family(config))
        return family.from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config, **kwargs):
        return native_class(cls.family(config))._from_config(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class=None):
        """The model that is loaded is of another class, which saves its files itself."""
