"""MoBE as a quantisation of routed experts, around the quantisation that everything else has."""

from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, resolve_quant_method

from .method import MoBEMethod
from .mobe_factors import layer_of
from .settings import WORKSPACE_SETTING
from .workspace import Workspace

# vLLM shows the messages of its own loggers only.
logger = init_logger("vllm.mobe")


class MoBEQuantisation(QuantizationConfig):
    """native: a NativeFormat. base: the quantisation config of what is not factorised, or None. bound: of the workspace, in bytes.

    kernel: whether the fused kernel is wanted.
    """

    def __init__(self, native, base, bound, kernel):
        super().__init__()
        self.native, self.base, self.bound, self.kernel = native, base, bound, kernel
        # {layer: (name, RoutedExperts)} of the layers whose experts are factors here.
        self.layers = {}
        if base is not None:
            self.packed_modules_mapping = base.packed_modules_mapping

    def __getattr__(self, name):
        # Models ask quantisation configs for attributes of their own, such as weight_block_size.
        base = self.__dict__.get("base")
        if base is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(base, name)

    def get_name(self):
        return "mobe" if self.base is None else self.base.get_name()

    def get_supported_act_dtypes(self):
        import torch

        return [torch.bfloat16, torch.float16, torch.float32] if self.base is None else self.base.get_supported_act_dtypes()

    @classmethod
    def get_min_capability(cls):
        return 70

    @staticmethod
    def get_config_filenames():
        return []

    @classmethod
    def from_config(cls, config):
        raise NotImplementedError("it is made of the section `mobe` of the model's config")

    def get_cache_scale_mapper(self):
        return (self.base or super()).get_cache_scale_mapper()

    def get_checkpoint_weight_mapper(self):
        return (self.base or super()).get_checkpoint_weight_mapper()

    def apply_vllm_mapper(self, hf_to_vllm_mapper):
        if self.base is not None:
            self.base.apply_vllm_mapper(hf_to_vllm_mapper)

    def get_quant_method(self, layer, prefix):
        number = layer_of(prefix)
        if isinstance(layer, RoutedExperts) and number in self.native.layers:
            if number in self.layers:
                raise ValueError(f"{prefix}: layer {number} has several experts modules, so its factors cannot be placed; `mobe expand` it")
            if type(layer) is not RoutedExperts:
                raise ValueError(f"{prefix}: vLLM's {type(layer).__name__} computes experts in a way of its own; `mobe expand` the checkpoint")
            self.layers[number] = (prefix, layer)
            return MoBEMethod(layer.moe_config, prefix, self.native.layers[number], self)
        if self.base is not None:
            return resolve_quant_method(self.base, layer, prefix)
        return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None

    def check_layers(self, architecture, pipelined):
        """Raises ValueError if the model has no routed experts where there are factors. pipelined: it may have only a part of the layers."""
        missing = sorted(self.native.layers.keys() - self.layers.keys())
        if missing and not pipelined:
            raise ValueError(
                f"vLLM's {architecture} has no routed experts (FusedMoE) in layers {missing}, which are factorised in the checkpoint: "
                "make standard weights with `mobe expand`"
            )

    def layer_is_loaded(self):
        """Makes the workspace when the last layer has its tensors."""
        methods = [layer.quant_method for _, layer in self.layers.values()]
        if any(method.experts is None for method in methods):
            return
        workspace = Workspace([method.experts for method in methods], self.bound, WORKSPACE_SETTING)
        for method in methods:
            method.workspace = workspace
        logger.info("%s", describe(self.layers, workspace))
        if self.kernel:
            self.use_kernel(methods)

    def use_kernel(self, methods):
        """Gives each layer that the fused kernel can compute the number of tokens up to which it does."""
        # Without the setting, Triton is not imported.
        from .fused_experts import most_tokens, run_fused, why_not

        reasons = {}
        for method in methods:
            k = method.moe.experts_per_token
            method.most_pairs = k * most_tokens(method.experts, k, method.workspace)
            method.run_few = run_fused
            if not method.most_pairs:
                reason = why_not(method.experts) or "rebuilding experts is faster, or the workspace is too small for it, even for one token"
                reasons.setdefault(reason, method.name)
        for reason, name in reasons.items():
            logger.warning("MoBE: the fused kernel is not used for %s: %s", name, reason)
        tokens = sorted({method.most_pairs // method.moe.experts_per_token for method in methods if method.most_pairs})
        if tokens:
            count = sum(method.most_pairs > 0 for method in methods)
            few = f"{tokens[0]}" if len(tokens) == 1 else f"{tokens[0]} to {tokens[-1]}"
            logger.info("MoBE: the fused kernel computes steps of up to %s tokens, in %d of %d layers", few, count, len(methods))


def describe(layers, workspace):
    """One line: the bytes that stay in memory."""
    held = {"A and V": 0, "B": 0, "α": 0, "dense projections": 0}
    for _, layer in layers.values():
        for name, parameter in layer.named_parameters(recurse=False):
            short, _, factor = name.partition("_")
            if short not in ("gate", "up", "down", "B", "W"):
                # vLLM keeps biases of the router here, too.
                continue
            kind = {"B": "B", "W": "α"}.get(short) or ("dense projections" if factor == "dense" else "A and V")
            held[kind] += parameter.numel() * parameter.element_size()
    parts = ", ".join(f"{kind} {show(size)}" for kind, size in held.items() if size)
    return (
        f"MoBE: experts of {len(layers)} layers take {show(sum(held.values()))} on this rank ({parts}); the workspace takes "
        f"{show(workspace.bytes)}, {show(workspace.buffer.numel())} of it for rebuilt experts, at least {min(workspace.chunks.values())} at a time"
    )


def show(size):
    return f"{size / 2**20:.1f} MiB"
