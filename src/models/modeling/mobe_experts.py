"""A Mixture-of-Experts block whose experts share bases (MoBE, arXiv 2508.05257), for inference and fine-tuning.

    gate_proj of expert e:  W_e (p, d) = A_e (p, r) · F_e (r, d),   F_e = f(Σ_k α_ek B_k)

with f one of BASES_ACTIVATIONS. The bases B and the coefficients α belong to the layer, A_e to the expert. Which layers and
projections are factorised is said by `mobe` in config.json; all others are dense, as in the source model. Letters:
n experts, m bases, g groups, d hidden size, p an expert's rows (`moe_intermediate_size`), r rank, t tokens.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

BASES_ACTIVATIONS = {
    "silu": F.silu,
    "tanh": torch.tanh,
    "gelu": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "none": nn.Identity(),
}


class Transposed(nn.Linear):
    """Multiplies by its weight from the right: (t, p) · (p, r)."""

    def forward(self, x):
        return x @ self.weight


class Expert(nn.Module):
    """What one expert has to itself: A (p, r) of each factorised projection, the whole matrix of each dense one."""

    def __init__(self, hidden_size, rows, ranks):
        super().__init__()
        self.gate_proj = nn.Linear(ranks.get("gate_proj", hidden_size), rows, bias=False)
        self.up_proj = nn.Linear(ranks.get("up_proj", hidden_size), rows, bias=False)
        # A factorised down_proj is W (d, p) = (A·F)ᵀ, so that its bases have the shape of the other projections'.
        rank = ranks.get("down_proj")
        self.down_proj = Transposed(rank, rows, bias=False) if rank else nn.Linear(rows, hidden_size, bias=False)


class Router(nn.Module):
    """Chooses `top_k` experts a token.

    score: "softmax" or "sigmoid", in f32. float32: whether the logits are, too.
    groups: (number, kept, top), or None: only experts of the `kept` best groups are eligible; a group is worth the sum
    of its `top` best scores. bias: the name of a buffer (n,) added to the scores for choosing alone, or None.
    """

    def __init__(self, config, experts, *, score, float32=True, groups=None, bias=None, normalise=False, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, config.hidden_size))
        self.top_k = config.num_experts_per_tok
        self.score, self.float32, self.groups, self.bias = score, float32, groups, bias
        self.normalise, self.scale = normalise, scale
        if bias:
            self.register_buffer(bias, torch.zeros(experts, dtype=torch.float32))

    def forward(self, x):
        """x: (t, d) -> logits (t, n), weights (t, top_k) in f32, expert numbers (t, top_k)."""
        dtype = torch.float32 if self.float32 else x.dtype
        logits = F.linear(x.to(dtype), self.weight.to(dtype))
        scores = logits.float().softmax(-1) if self.score == "softmax" else logits.float().sigmoid()
        eligible = scores + getattr(self, self.bias) if self.bias else scores
        if self.groups:
            eligible = self.within_best_groups(eligible)
        chosen = eligible.topk(self.top_k, dim=-1, sorted=False).indices
        weights = scores.gather(1, chosen)
        if self.normalise:
            # The models' own guard against a sum of 0.
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return logits, weights * self.scale, chosen

    def within_best_groups(self, scores):
        number, kept, top = self.groups
        grouped = scores.unflatten(-1, (number, -1))
        best = grouped.topk(top, dim=-1).values.sum(-1).topk(kept, dim=-1, sorted=False).indices
        outside = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(1, best, False)
        return grouped.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(1)


class MoBEBlock(nn.Module):
    """Router, routed experts and shared experts of one layer; (batch, sequence, d) -> the same shape.

    Its tensors, for gate_proj of a factorised layer: `B_gate` (m, r, d), `W_gate` (n, m), which is α, and
    `experts.{e}.gate_proj.weight` (p, r), which is A. With g > 1 groups `B_gate_{i}` (m/g, r, d) and `W_gate_{i}`
    (n/g, m/g) instead; expert e belongs to group ⌊e / (n/g)⌋.
    """

    def __init__(self, config, layer, experts, router, shared_experts=None):
        super().__init__()
        mobe = getattr(config, "mobe", None) or {}
        self.factorised = mobe["projections"] if layer in mobe.get("layers", ()) else []
        self.groups = mobe.get("groups", 1)
        self.group_experts = experts // self.groups
        self.act_fn = ACT2FN[config.hidden_act]
        self.gate = router
        ranks = {}
        if self.factorised:
            rank, bases = mobe["rank"], config.num_B // self.groups
            self.bases_activation = BASES_ACTIVATIONS[config.activation]
            ranks = dict.fromkeys(self.factorised, rank)
            for projection in self.factorised:
                for group in range(self.groups):
                    bases_name, coefficients_name = self.factor_names(projection, group)
                    self.register_parameter(bases_name, nn.Parameter(torch.empty(bases, rank, config.hidden_size)))
                    self.register_parameter(coefficients_name, nn.Parameter(torch.empty(self.group_experts, bases)))
        self.experts = nn.ModuleList(
            Expert(config.hidden_size, config.moe_intermediate_size, ranks) for _ in range(experts)
        )
        self.shared_experts = shared_experts

    def factor_names(self, projection, group):
        suffix = projection.removesuffix("_proj") + (f"_{group}" if self.groups > 1 else "")
        return f"B_{suffix}", f"W_{suffix}"

    def mix(self, projection, expert):
        """F = f(Σ_k α_k B_k) of one expert, (r, d)."""
        group, row = divmod(expert, self.group_experts)
        bases, coefficients = (getattr(self, name) for name in self.factor_names(projection, group))
        return self.bases_activation((coefficients[row] @ bases.flatten(1)).unflatten(0, bases.shape[1:]))

    def expert_forward(self, number, x):
        """x: (t, d) -> (t, d), by one routed expert. F is made anew each time: kept, it would be as large as W."""
        expert = self.experts[number]

        def project(projection):
            narrow = F.linear(x, self.mix(projection, number)) if projection in self.factorised else x
            return getattr(expert, projection)(narrow)

        hidden = expert.down_proj(self.act_fn(project("gate_proj")) * project("up_proj"))
        return hidden @ self.mix("down_proj", number) if "down_proj" in self.factorised else hidden

    def forward(self, hidden_states):
        x = hidden_states.flatten(0, -2)
        _, weights, chosen = self.gate(x)
        routed = torch.zeros_like(x, dtype=weights.dtype)
        for number in chosen.unique().tolist():
            token, choice = torch.where(chosen == number)
            output = self.expert_forward(number, x[token]) * weights[token, choice, None]
            routed = routed.index_add(0, token, output.to(routed.dtype))
        result = routed.to(x.dtype).view_as(hidden_states)
        return result if self.shared_experts is None else result + self.shared_experts(hidden_states)


class MoBEPreTrained:
    """Goes before a transformers class in a model's bases and overrides what that assumes about its experts."""

    # Which experts run depends on the tokens.
    _can_compile_fullgraph = False

    def _init_weights(self, module):
        super()._init_weights(module)
        std = getattr(self.config, "initializer_range", 0.02)
        if isinstance(module, (MoBEBlock, Router)):
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, std=std)
            for buffer in module.buffers(recurse=False):
                nn.init.zeros_(buffer)

    def ignore_prediction_layers(self, config):
        """Multi-token-prediction modules are stored as layers past the last one; to be called before `post_init`."""
        first, number = config.num_hidden_layers, getattr(config, "num_nextn_predict_layers", None) or 1
        indices = "|".join(str(first + extra) for extra in range(number))
        self._keys_to_ignore_on_load_unexpected = [rf"^model\.layers\.({indices})\."]


def replace_moe_blocks(model, config, experts, router):
    """Gives a MoBEBlock to every layer to which transformers gave routed experts. router: makes one layer's Router."""
    for number, layer in enumerate(model.layers):
        if hasattr(layer.mlp, "experts"):
            shared_experts = getattr(layer.mlp, "shared_experts", None)
            layer.mlp = MoBEBlock(config, number, experts, router(), shared_experts)


def record_router_logits(recorded):
    """`_can_record_outputs` of a transformers class, with our Router where it records router logits."""
    recorder = recorded.get("router_logits")
    return {**recorded, "router_logits": replace(recorder, target_class=Router, index=0)} if recorder else recorded
