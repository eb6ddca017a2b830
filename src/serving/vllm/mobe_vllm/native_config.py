"""The config of a native checkpoint: that of its family, as if the source was loaded, with the section `mobe`.

vLLM treats many families by their model_type, and copies configs to other processes, so it gets the family's own class.
"""

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .architectures import native_architecture
from .native_format import read_native_format, read_source
from .settings import check_version

MODEL_TYPE = "mobe"


def register_config():
    AutoConfig.register(MODEL_TYPE, MoBEConfig, exist_ok=True)


class MoBEConfig(PretrainedConfig):
    """Makes the config of a native checkpoint. No instance of this class is made of one."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        import vllm

        check_version(vllm.__version__)
        mobe = config_dict.get("mobe")
        read_native_format(mobe)
        family_type, architectures = read_source(mobe)
        family = family_config(family_type)
        sources = architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(family_type)]
        architecture = native_architecture(sources)
        if architecture is None:
            raise ValueError(
                f"this vLLM has no class of its own for {sources[0] or family_type}, so it cannot serve a native checkpoint of it: "
                "make standard weights with `mobe expand`"
            )
        # The classes in auto_map are those of the modelling file for transformers.
        own = {key: value for key, value in config_dict.items() if key != "auto_map"}
        source_type = {"model_type": family_type, "architectures": [architecture]}
        return family.from_dict({**own, **source_type}, **kwargs)


def family_config(model_type):
    """The class of a family's config: vLLM's, else that of transformers, else one that takes all entries as they are."""
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    if model_type in _CONFIG_REGISTRY:
        return _CONFIG_REGISTRY[model_type]
    return CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else PretrainedConfig
