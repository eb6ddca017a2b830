"""The model classes of native checkpoints: `models.Qwen3MoeForCausalLM` is made of vLLM's Qwen3MoeForCausalLM.

Each is vLLM's own class, whose quantisation config is wrapped before its layers are built (quantisation.py) and whose factors are taken
out of the stream of tensors that it loads (load_factors.py).
"""

from functools import cache


def __getattr__(name):
    from vllm import ModelRegistry

    source = ModelRegistry.models.get(name)
    if source is None or name.startswith("__"):
        raise AttributeError(f"vLLM has no architecture {name}")
    return native_class(source.load_model_cls(), name)


@cache
def native_class(base, name):
    from .load_factors import FactorLoader
    from .native_format import read_native_format
    from .plain_weights import check_plain_weights
    from .quantisation import MoBEQuantisation
    from .settings import kernel_wanted, workspace_bytes

    class Native(base):
        def __init__(self, *, vllm_config, prefix=""):
            native = read_native_format(vllm_config.model_config.hf_config.mobe)
            bound, kernel = workspace_bytes(vllm_config.additional_config), kernel_wanted(vllm_config.additional_config)
            quantisation = MoBEQuantisation(native, vllm_config.quant_config, bound, kernel)
            # The layers ask it for their methods when they are built.
            vllm_config.quant_config = quantisation
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            quantisation.check_layers(name, vllm_config.parallel_config.pipeline_parallel_size > 1)
            self.mobe, self.mobe_folder = quantisation, vllm_config.model_config.model

        def load_weights(self, weights):
            loader = FactorLoader(self, self.mobe, self.mobe_folder)
            loaded = super().load_weights(loader.others(weights))
            loader.check_complete()
            if loaded is None:
                return None
            check_plain_weights(self, loaded, self.mobe_folder)
            return loaded | loader.loaded

    Native.__name__ = Native.__qualname__ = name
    Native.__module__ = __name__
    return Native
