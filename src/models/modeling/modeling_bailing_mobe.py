"""Ling ("Bailing"), 1 and 2, with experts that may share bases.

transformers has no class for Ling, so this is the whole model; without `mobe` in config.json all experts are dense.
Attention and MLP are of the usual kind under names of their own; rotary embeddings, masks, caches and the loop over the
layers are transformers' GLM-4-MoE, which differs from Ling in nothing there.
"""

from torch import nn
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.glm4_moe.modeling_glm4_moe import (
    Glm4MoeForCausalLM,
    Glm4MoeMLP,
    Glm4MoeModel,
    Glm4MoeRMSNorm,
    Glm4MoeRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from .mobe_experts import MoBEBlock, MoBEPreTrained, Router, record_router_logits


class BailingMoBEConfig(PretrainedConfig):
    """Ling's keys; these are what its own configuration assumes for absent ones."""

    model_type = "bailing_moe"
    keys_to_ignore_at_inference = ["past_key_values"]
    # Where it exists, transformers moves rope_theta, rope_scaling and partial_rotary_factor into it.
    rope_parameters = None
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


class BailingV2MoBEConfig(BailingMoBEConfig):
    model_type = "bailing_moe_v2"
    defaults = {
        **BailingMoBEConfig.defaults,
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


class BailingDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config, layer):
        super().__init__()
        self.attention = BailingAttention(config, layer)
        self.mlp = self.moe(config, layer) if layer >= config.first_k_dense_replace else Glm4MoeMLP(config)
        self.input_layernorm = Glm4MoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Glm4MoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    @staticmethod
    def moe(config, layer):
        # A single expert's weight is left as it is, by both versions.
        several = config.num_experts_per_tok > 1
        if config.model_type == "bailing_moe_v2":
            router = Router(
                config,
                config.num_experts,
                score="sigmoid",
                groups=(config.n_group, config.topk_group, 2),
                bias="expert_bias",
                normalise=several,
                scale=config.routed_scaling_factor,
            )
        else:
            normalise = several and config.norm_topk_prob
            router = Router(config, config.num_experts, score="softmax", float32=False, normalise=normalise)
        shared_rows = config.moe_intermediate_size * (config.num_shared_experts or 0)
        shared_experts = Glm4MoeMLP(config, intermediate_size=shared_rows) if shared_rows else None
        return MoBEBlock(config, layer, config.num_experts, router, shared_experts)

    def forward(self, hidden_states, **kwargs):
        hidden_states = hidden_states + self.attention(self.input_layernorm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class NormalisedHead(nn.Linear):
    """An output layer (vocabulary, d) with columns scaled to length 1 (`norm_head`), stored as they were trained."""

    def forward(self, x):
        # The length of a column divides the feature instead: a copy of the weight would be large.
        return super().forward((x / (self.weight.float().norm(dim=0) + 1e-7)).to(x.dtype))


class BailingPreTrained(MoBEPreTrained):
    config_class = BailingMoBEConfig
    _no_split_modules = ["BailingDecoderLayer"]
    # GLM's name its own router.
    _keep_in_fp32_modules_strict = None
    _input_embed_layer = "word_embeddings"
    _can_record_outputs = record_router_logits(
        {
            **Glm4MoeModel._can_record_outputs,
            "hidden_states": BailingDecoderLayer,
            "attentions": BailingAttention,
        }
    )


class BailingMoBEModel(BailingPreTrained, Glm4MoeModel):
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


class BailingMoBEForCausalLM(BailingPreTrained, Glm4MoeForCausalLM):
    _tied_weights_keys = {"lm_head.weight": "model.word_embeddings.weight"}

    def __init__(self, config):
        super(Glm4MoeForCausalLM, self).__init__(config)
        self.model = BailingMoBEModel(config)
        self.vocab_size = config.vocab_size
        head = NormalisedHead if getattr(config, "norm_head", False) else nn.Linear
        self.lm_head = head(config.hidden_size, config.vocab_size, bias=False)
        self.ignore_prediction_layers(config)
        self.post_init()
        # Not sooner: transformers 4 refuses names of buffers when it initialises a model, not when it loads one.
        self._keep_in_fp32_modules_strict = {"expert_bias"}


class BailingV2MoBEForCausalLM(BailingMoBEForCausalLM):
    config_class = BailingV2MoBEConfig
