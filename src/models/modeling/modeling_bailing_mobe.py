"""Ling ("Bailing"), 1 and 2: the dense models, and the classes that load native checkpoints of them.

transformers has no class for Ling, so this is the whole model. Attention and MLP are of the usual kind under names of their
own. Experts, rotary embeddings, masks, caches and the loop over the layers are transformers' GLM-4-MoE, which differs from
Ling in nothing there.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn
from transformers.configuration_utils import PretrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.glm4_moe.modeling_glm4_moe import (
    Glm4MoeExperts,
    Glm4MoeForCausalLM,
    Glm4MoeMLP,
    Glm4MoeModel,
    Glm4MoeRMSNorm,
    Glm4MoeRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from .modeling_mobe import MoBEConfig, MoBEForCausalLM


class BailingMoeConfig(PretrainedConfig):
    """Ling's keys; these are what its own configuration assumes for absent ones."""

    model_type = "bailing_moe"
    keys_to_ignore_at_inference = ["past_key_values"]
    # Where it exists, transformers moves rope_theta, rope_scaling and partial_rotary_factor into it.
    rope_parameters = None
    # The names by which GLM's experts know them.
    attribute_map = {"num_local_experts": "num_experts"}
    defaults = {
        "attention_dropout": 0.1,
        "first_k_dense_replace": 0,
        "head_dim": None,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 16384,
        "norm_head": False,
        "norm_topk_prob": True,
        "num_shared_experts": 0,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "use_bias": True,
        "use_cache": True,
        "use_qkv_bias": False,
    }

    def __init__(self, **kwargs):
        settings = {**self.defaults, **kwargs}
        if not settings["head_dim"] and "hidden_size" in settings:
            settings["head_dim"] = settings["hidden_size"] // settings["num_attention_heads"]
        super().__init__(**settings)


class BailingMoeV2Config(BailingMoeConfig):
    model_type = "bailing_moe_v2"
    defaults = {
        **BailingMoeConfig.defaults,
        "attention_dropout": 0.0,
        "max_position_embeddings": 32768,
        "n_group": 8,
        "num_shared_experts": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 600000.0,
        "routed_scaling_factor": 1.0,
        "topk_group": 4,
        "use_bias": False,
        "use_qk_norm": True,
    }

    def __init__(self, **kwargs):
        # transformers gives a config class without a constructor of its own one that passes this class's over.
        super().__init__(**kwargs)


class BailingAttention(nn.Module):
    """Grouped-query attention from one fused matrix: `query_key_value` ((heads + 2·kv_heads)·head_dim, d)."""

    is_causal = True

    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer_idx = config, layer
        self.head_dim = config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.num_key_value_groups = self.heads // self.kv_heads
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, rows, bias=config.use_qkv_bias)
        self.dense = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=config.use_bias)
        if getattr(config, "use_qk_norm", False):
            self.query_layernorm = Glm4MoeRMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.key_layernorm = Glm4MoeRMSNorm(self.head_dim, eps=config.rms_norm_eps)
        else:
            self.query_layernorm = self.key_layernorm = nn.Identity()

    def forward(
        self, hidden_states, position_embeddings, attention_mask=None, cache=None, past_key_values=None, **kwargs
    ):
        heads = self.query_key_value(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        query, key, value = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        query, key = apply_rotary_pos_emb(self.query_layernorm(query), self.key_layernorm(key), *position_embeddings)
        # Older versions of transformers call it past_key_values.
        cache = past_key_values if cache is None else cache
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        implementation = self.config._attn_implementation
        attend = eager_attention_forward if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            **kwargs,
        )
        return self.dense(output.flatten(-2)), weights


class Router(nn.Module):
    """Chooses `top_k` experts a token: Ling 1 by softmax, Ling 2 by sigmoid, a bias and groups of experts."""

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))
        self.top_k = config.num_experts_per_tok
        self.second = config.model_type == "bailing_moe_v2"
        # A single expert's weight is left as it is, by both versions.
        self.normalise = self.top_k > 1 and (self.second or config.norm_topk_prob)
        self.scale = config.routed_scaling_factor if self.second else 1.0
        if self.second:
            self.groups, self.kept_groups = config.n_group, config.topk_group
            self.register_buffer("expert_bias", torch.zeros(config.num_experts, dtype=torch.float32))

    def forward(self, x):
        """x: (t, d) -> logits (t, n), weights (t, top_k) in f32, expert numbers (t, top_k)."""
        dtype = torch.float32 if self.second else x.dtype
        logits = F.linear(x.to(dtype), self.weight.to(dtype))
        scores = logits.float().sigmoid() if self.second else logits.float().softmax(-1)
        eligible = self.within_best_groups(scores + self.expert_bias) if self.second else scores
        chosen = eligible.topk(self.top_k, dim=-1, sorted=False).indices
        weights = scores.gather(1, chosen)
        if self.normalise:
            # The models' own guard against a sum of 0.
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return logits, weights * self.scale, chosen

    def within_best_groups(self, scores):
        """A group is worth the sum of its two best scores."""
        grouped = scores.unflatten(-1, (self.groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.kept_groups, dim=-1, sorted=False).indices
        outside = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(1, best, False)
        return grouped.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(1)


class BailingMoE(nn.Module):
    """Router, routed experts and shared experts of one layer; (batch, sequence, d) -> the same shape."""

    def __init__(self, config):
        super().__init__()
        self.gate = Router(config)
        self.experts = Glm4MoeExperts(config)
        rows = config.moe_intermediate_size * (config.num_shared_experts or 0)
        self.shared_experts = Glm4MoeMLP(config, intermediate_size=rows) if rows else None

    def forward(self, hidden_states):
        x = hidden_states.flatten(0, -2)
        _, weights, chosen = self.gate(x)
        result = self.experts(x, chosen, weights).view_as(hidden_states)
        return result if self.shared_experts is None else result + self.shared_experts(hidden_states)


class BailingDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config, layer):
        super().__init__()
        self.attention = BailingAttention(config, layer)
        self.mlp = BailingMoE(config) if layer >= config.first_k_dense_replace else Glm4MoeMLP(config)
        self.input_layernorm = Glm4MoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Glm4MoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states, **kwargs):
        hidden_states = hidden_states + self.attention(self.input_layernorm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class NormalisedHead(nn.Linear):
    """An output layer (vocabulary, d) with columns scaled to length 1 (`norm_head`), stored as they were trained."""

    def forward(self, x):
        # The length of a column divides the feature instead: a copy of the weight would be large.
        return super().forward((x / (self.weight.float().norm(dim=0) + 1e-7)).to(x.dtype))


class BailingPreTrained:
    """Goes before a class of GLM in the bases and overrides what that assumes about its model."""

    config_class = BailingMoeConfig
    _no_split_modules = ["BailingDecoderLayer"]
    # GLM's name its own router.
    _keep_in_fp32_modules_strict = None
    _input_embed_layer = "word_embeddings"
    _can_record_outputs = {
        **Glm4MoeModel._can_record_outputs,
        "hidden_states": BailingDecoderLayer,
        "attentions": BailingAttention,
        "router_logits": replace(Glm4MoeModel._can_record_outputs["router_logits"], target_class=Router),
    }

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Router):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            for bias in module.buffers(recurse=False):
                nn.init.zeros_(bias)

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        # Experts are stored one by one.
        mapping = [*(load_config.weight_mapping or []), *get_checkpoint_conversion_mapping("qwen2_moe")]
        load_config = replace(load_config, weight_mapping=mapping)
        return Glm4MoeModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs)

    def ignore_prediction_layers(self, config):
        """Multi-token-prediction modules are stored as layers past the last one."""
        first, number = config.num_hidden_layers, getattr(config, "num_nextn_predict_layers", None) or 1
        indices = "|".join(str(first + extra) for extra in range(number))
        self._keys_to_ignore_on_load_unexpected = {rf"^model\.layers\.({indices})\."}


class BailingMoeModel(BailingPreTrained, Glm4MoeModel):
    def __init__(self, config):
        # GLM's own constructor is passed over: it makes GLM's layers.
        super(Glm4MoeModel, self).__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(BailingDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = Glm4MoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Glm4MoeRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.ignore_prediction_layers(config)
        self.post_init()

    def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        return super().forward(inputs_embeds=inputs_embeds, **kwargs)


class BailingMoeForCausalLM(BailingPreTrained, Glm4MoeForCausalLM):
    _tied_weights_keys = {"lm_head.weight": "model.word_embeddings.weight"}

    def __init__(self, config):
        super(Glm4MoeForCausalLM, self).__init__(config)
        self.model = BailingMoeModel(config)
        self.vocab_size = config.vocab_size
        head = NormalisedHead if getattr(config, "norm_head", False) else nn.Linear
        self.lm_head = head(config.hidden_size, config.vocab_size, bias=False)
        self.ignore_prediction_layers(config)
        self.post_init()
        # Not sooner: transformers 4 refuses names of buffers when it initialises a model, not when it loads one.
        self._keep_in_fp32_modules_strict = {"expert_bias"}


class BailingMoeV2ForCausalLM(BailingMoeForCausalLM):
    config_class = BailingMoeV2Config


class BailingMoBEConfig(MoBEConfig):
    families = {it.model_type: it for it in (BailingMoeConfig, BailingMoeV2Config)}

    @classmethod
    def family(cls, model_type):
        return cls.families[model_type]


class BailingMoBEForCausalLM(MoBEForCausalLM):
    @classmethod
    def family(cls, config):
        second = config.model_type == BailingMoeV2Config.model_type
        return BailingMoeV2ForCausalLM if second else BailingMoeForCausalLM
