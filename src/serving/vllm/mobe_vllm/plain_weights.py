"""Finds weights beside the factors that are missing in a checkpoint.

vLLM 0.32 leaves out of its own check every layer with a method that prepares weights after loading, and each linear layer and embedding has
one. What is missing there would be computed with whatever the memory holds.
"""

from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

PLAIN = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)


def check_plain_weights(model, loaded, folder):
    """Raises ValueError if a plain matrix of the model is not among the names that were loaded."""
    plain = {id(getattr(it, "weight", None)) for it in model.modules() if isinstance(getattr(it, "quant_method", None), PLAIN)}
    # A matrix may have several names, of which one is loaded.
    found = {id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False) if name in loaded}
    missing = [name for name, parameter in model.named_parameters() if id(parameter) in plain - found]
    if missing:
        rest = f" and {len(missing) - 1} more weights are" if len(missing) > 1 else " is"
        raise ValueError(
            f"{missing[0]}, as vLLM calls it,{rest} missing in {folder}: copy the checkpoint again, or check it with `mobe verify`"
        )
