"""DeepSeek-V2, DeepSeek-V3 and Kimi-K2 with experts that share bases.

Everything but the MoE blocks is transformers' DeepSeek-V2 or V3. Kimi-K2 is DeepSeek-V3's architecture under its own
`model_type`.
"""

from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2ForCausalLM, DeepseekV2Model
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3ForCausalLM, DeepseekV3Model

from .mobe_experts import MoBEPreTrained, Router, record_router_logits, replace_moe_blocks


class DeepseekV2MoBEConfig(DeepseekV2Config):
    """Has `num_B`, `activation` and `mobe` beside DeepSeek-V2's keys."""

    # The source's plans split fused experts, which are not here.
    base_model_tp_plan = None
    base_model_ep_plan = None


class DeepseekV3MoBEConfig(DeepseekV3Config):
    """Has `num_B`, `activation` and `mobe` beside DeepSeek-V3's keys."""

    base_model_tp_plan = None
    base_model_ep_plan = None


class KimiK2MoBEConfig(DeepseekV3MoBEConfig):
    model_type = "kimi_k2"


class DeepseekV2MoBEModel(MoBEPreTrained, DeepseekV2Model):
    config_class = DeepseekV2MoBEConfig
    _can_record_outputs = record_router_logits(DeepseekV2Model._can_record_outputs)

    def __init__(self, config):
        super().__init__(config)
        limited = config.topk_method == "group_limited_greedy"
        replace_moe_blocks(
            self,
            config,
            config.n_routed_experts,
            lambda: Router(
                config,
                config.n_routed_experts,
                score="softmax",
                groups=(config.n_group, config.topk_group, 1) if limited else None,
                scale=config.routed_scaling_factor,
            ),
        )
        self.post_init()


class DeepseekV3MoBEModel(MoBEPreTrained, DeepseekV3Model):
    config_class = DeepseekV3MoBEConfig
    _can_record_outputs = record_router_logits(DeepseekV3Model._can_record_outputs)

    def __init__(self, config):
        super().__init__(config)
        replace_moe_blocks(
            self,
            config,
            config.n_routed_experts,
            lambda: Router(
                config,
                config.n_routed_experts,
                score="sigmoid",
                groups=(config.n_group, config.topk_group, 2),
                bias="e_score_correction_bias",
                normalise=config.norm_topk_prob,
                scale=config.routed_scaling_factor,
            ),
        )
        self.ignore_prediction_layers(config)
        self.post_init()


class DeepseekV2MoBEForCausalLM(MoBEPreTrained, DeepseekV2ForCausalLM):
    config_class = DeepseekV2MoBEConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = DeepseekV2MoBEModel(config)
        self.post_init()


class DeepseekV3MoBEForCausalLM(MoBEPreTrained, DeepseekV3ForCausalLM):
    config_class = DeepseekV3MoBEConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = DeepseekV3MoBEModel(config)
        self.ignore_prediction_layers(config)
        self.post_init()


class KimiK2MoBEForCausalLM(DeepseekV3MoBEForCausalLM):
    config_class = KimiK2MoBEConfig
