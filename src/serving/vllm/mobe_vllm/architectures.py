"""The architectures of native checkpoints: one for each architecture of vLLM, with the prefix MoBE.

vLLM imports a model's class when a checkpoint needs it. Its class is made in models.py.
"""

PREFIX = "MoBE"


def register_architectures():
    from vllm import ModelRegistry

    try:
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    except ImportError:
        # Another version of vLLM, which serves other models as before. A native checkpoint tells of the version (native_config.py).
        MODELS_CONFIG_MAP = {}
    for architecture in list(ModelRegistry.get_supported_archs()):
        if not architecture.startswith(PREFIX):
            ModelRegistry.register_model(PREFIX + architecture, f"{__package__}.models:{architecture}")
    # vLLM adapts its settings to a model by the name of its architecture.
    for architecture, settings in list(MODELS_CONFIG_MAP.items()):
        MODELS_CONFIG_MAP.setdefault(PREFIX + architecture, settings)


def native_architecture(sources):
    """The registered architecture for the first of the source's architectures that vLLM has, or None."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    return next((PREFIX + source for source in sources if PREFIX + source in known), None)
