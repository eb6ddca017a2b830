"""Qwen3-MoE with experts that share bases. Everything but the MoE blocks is transformers' Qwen3-MoE."""

from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeForCausalLM, Qwen3MoeModel

from .mobe_experts import MoBEPreTrained, Router, record_router_logits, replace_moe_blocks


class Qwen3MoBEConfig(Qwen3MoeConfig):
    """Has `num_B`, `activation` and `mobe` beside Qwen3-MoE's keys."""

    # The source's plans split fused experts, which are not here.
    base_model_tp_plan = None
    base_model_ep_plan = None


class Qwen3MoBEModel(MoBEPreTrained, Qwen3MoeModel):
    config_class = Qwen3MoBEConfig
    _can_record_outputs = record_router_logits(Qwen3MoeModel._can_record_outputs)

    def __init__(self, config):
        super().__init__(config)
        replace_moe_blocks(
            self,
            config,
            config.num_experts,
            lambda: Router(config, config.num_experts, score="softmax", float32=False, normalise=config.norm_topk_prob),
        )
        self.post_init()


class Qwen3MoBEForCausalLM(MoBEPreTrained, Qwen3MoeForCausalLM):
    config_class = Qwen3MoBEConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = Qwen3MoBEModel(config)
        self.post_init()
