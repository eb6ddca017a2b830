"""The method of a layer whose routed experts are factors: its parameters, and how vLLM runs it.

Parameters of a layer on one rank, named as in mobe_factors.py. n experts, p rows of gate_proj and columns of down_proj that the rank holds:

    gate_A (n, p, r)                     or gate_A and gate_scale_A, or gate_packed_A and gate_scale_A
    B_gate (m, r, d), W_gate (n, m)      with groups B_gate_0, W_gate_0, …; only groups that have experts on the rank
    gate_V (n, r, d)                     with `svd`, instead of these two
    gate_dense (n, p, d), down_dense (n, d, p)      a projection without factors
"""

from itertools import count

import torch
from vllm.model_executor.layers.fused_moe.config import FUSED_MOE_UNQUANTIZED_CONFIG
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.utils.torch_utils import direct_register_custom_op

from .experts import GATED, UNGATED, Dense, Experts, Own, Shared, run_all, run_in_use
from .mobe_factors import ACTIVATIONS, PACKED_BITS, Quantised, part_name, shared_names, stored_parts

# The methods of loaded layers by a key of their own: operators take no objects.
METHODS = {}
KEYS = count()


def routed_experts(x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, key: str) -> torch.Tensor:
    return METHODS[key].run(x, topk_weights, topk_ids)


def routed_experts_shape(x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, key: str) -> torch.Tensor:
    return torch.empty_like(x)


# An operator of its own: which experts are rebuilt depends on data, so Dynamo must not look inside.
direct_register_custom_op(op_name="mobe_routed_experts", op_func=routed_experts, fake_impl=routed_experts_shape)


class MoBEMethod(FusedMoEMethodBase):
    """name: of the layer. sizes: {"gate" or "up" or "down": Sizes} of what is factorised. shared: the MoBEQuantisation."""

    def __init__(self, moe, name, sizes, shared):
        super().__init__(moe)
        self.name, self.sizes, self.shared = name, sizes, shared
        self.key = f"{name}#{next(KEYS)}"
        self.experts = self.workspace = None
        # The fused kernel, and the most pairs of tokens and experts that it computes (quantisation.py).
        self.run_few, self.most_pairs = None, 0

    def maybe_roundup_sizes(self, hidden_size, intermediate_size_per_partition, act_dtype, moe_parallel_config):
        return hidden_size, intermediate_size_per_partition

    def get_fused_moe_quant_config(self, layer):
        return FUSED_MOE_UNQUANTIZED_CONFIG

    def create_weights(self, layer, num_experts, hidden_size, intermediate_size_per_partition, params_dtype, **extra):
        self.check(layer)
        self.dtype = params_dtype
        self.shorts = ("gate", "up", "down") if self.moe.is_act_and_mul else ("up", "down")
        unknown = self.sizes.keys() - set(self.shorts)
        if unknown:
            raise ValueError(f"{self.name}: {sorted(unknown)} is factorised, but these experts have {self.shorts} only")
        self.rows = p = intermediate_size_per_partition
        self.columns = d = hidden_size
        self.total = self.moe.num_logical_experts
        # The numbers, among all, of the experts of this rank.
        self.numbers = local_numbers(layer.expert_map, self.total)
        n = len(self.numbers)

        def register(name, shape, dtype=None, scale_group=None):
            for ending, (stored_shape, stored_dtype) in stored_parts(shape, dtype, scale_group).items():
                values = torch.empty(stored_shape, dtype=stored_dtype or params_dtype)
                layer.register_parameter(part_name(name, ending), torch.nn.Parameter(values, requires_grad=False))

        for short in self.shorts:
            sizes = self.sizes.get(short)
            if sizes is None:
                register(f"{short}_dense", (n, d, p) if short == "down" else (n, p, d))
                continue
            register(f"{short}_A", (n, p, sizes.rank), sizes.dtype, sizes.scale_group)
            if not sizes.shared:
                register(f"{short}_V", (n, sizes.rank, d), sizes.dtype, sizes.scale_group)
                continue
            m = sizes.bases // sizes.groups
            for group, members in self.members(sizes).items():
                B, W = shared_names(short, group, sizes.groups)
                register(B, (m, sizes.rank, d), sizes.bases_dtype, sizes.scale_group)
                register(W, (len(members), m))

    def check(self, layer):
        """Raises ValueError for what the plugin does not do."""
        activation = self.moe.activation.value
        reasons = {
            "its experts have biases": self.moe.has_bias,
            f"its activation is {activation}": activation not in GATED | UNGATED,
            "its activation is clamped (swiglu_limit)": self.moe.swiglu_limit is not None or layer.swiglu_limit is not None,
            "shared experts run among the routed ones": layer.expert_map_manager.num_fused_shared_experts > 0,
            "it has redundant experts (EPLB)": self.moe.num_experts != self.moe.num_logical_experts,
        }
        for reason, holds in reasons.items():
            if holds:
                raise ValueError(f"{self.name}: {reason}, which mobe-vllm does not compute; `mobe expand` the checkpoint")
        for short, sizes in self.sizes.items():
            if sizes.activation not in ACTIVATIONS:
                raise ValueError(f"{self.name}: {short}_proj has the activation {sizes.activation!r}; install a newer mobe-vllm")
            if sizes.shared and self.moe.num_logical_experts % sizes.groups:
                raise ValueError(f"{self.name}: {self.moe.num_logical_experts} experts are not divisible by {sizes.groups} groups")

    def members(self, sizes):
        """{group: numbers of its experts on this rank}, of groups that have some."""
        size = self.total // sizes.groups
        found = {}
        for number in self.numbers:
            found.setdefault(number // size, []).append(number)
        return found

    def factor(self, layer, name, columns, dtype, scale_group):
        """A parameter, or the parts of a quantised factor as one."""
        parts = {ending: getattr(layer, part_name(name, ending)).data for ending in stored_parts((columns,), dtype, scale_group)}
        if "scale" not in parts:
            return parts[""]
        scale = parts.pop("scale")
        return Quantised(next(iter(parts.values())), scale, columns, PACKED_BITS.get(dtype), scale_group)

    def projection(self, layer, short):
        sizes = self.sizes.get(short)
        if sizes is None:
            return Dense(getattr(layer, f"{short}_dense").data)
        A = self.factor(layer, f"{short}_A", sizes.rank, sizes.dtype, sizes.scale_group)
        if not sizes.shared:
            return Own(A, self.factor(layer, f"{short}_V", self.columns, sizes.dtype, sizes.scale_group))
        parts, first = [], 0
        for group, members in self.members(sizes).items():
            B, W = shared_names(short, group, sizes.groups)
            bases = self.factor(layer, B, self.columns, sizes.bases_dtype, sizes.scale_group)
            parts.append((first, bases, getattr(layer, W).data))
            first += len(members)
        return Shared(A, tuple(parts), sizes.activation)

    def process_weights_after_loading(self, layer):
        projections = {short: self.projection(layer, short) for short in self.shorts}
        self.experts = Experts(self.name, projections, self.moe.activation.value, self.dtype)
        self.expert_map = layer.expert_map
        self.on_input = layer.apply_router_weight_on_input
        METHODS[self.key] = self
        self.shared.layer_is_loaded()

    def apply(self, layer, x, topk_weights, topk_ids, shared_experts, shared_experts_input):
        """x: (t, d), topk_weights and topk_ids: (t, k) -> (t, d), which vLLM adds up over ranks."""
        return torch.ops.vllm.mobe_routed_experts(x, topk_weights, topk_ids, self.key)

    def run(self, x, topk_weights, topk_ids):
        ids = topk_ids if self.expert_map is None else self.expert_map[topk_ids.long()]
        if self.on_input:
            # vLLM does so for one expert a token only.
            x, topk_weights = x * topk_weights.to(x.dtype), torch.ones_like(topk_weights)
        # By shapes alone: the same way is taken before a CUDA graph is recorded, which compiles the kernel, and while it is.
        if 0 < topk_ids.numel() <= self.most_pairs:
            run = self.run_few
        else:
            run = run_all if is_captured(x) else run_in_use
        return run(self.experts, x, topk_weights, ids, self.workspace)


def is_captured(x):
    """Whether a CUDA graph is recorded, in which nothing may depend on data."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def local_numbers(expert_map, total):
    """expert_map: (total), the place of an expert on this rank or -1; None if the rank has all -> numbers of the rank's experts, ascending"""
    if expert_map is None:
        return list(range(total))
    places = expert_map.tolist()
    numbers = [number for number in range(total) if places[number] >= 0]
    if [places[number] for number in numbers] != list(range(len(numbers))):
        raise ValueError("vLLM places the experts of this rank in another order than theirs, which mobe-vllm does not know")
    return numbers
