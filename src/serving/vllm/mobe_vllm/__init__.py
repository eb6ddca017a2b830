"""vLLM plugin: native checkpoints of mobe-stream stay A, B and α in memory."""


def register():
    """Is called by vLLM in each of its processes, before it reads a model's config. May be called twice."""
    from .architectures import register_architectures
    from .native_config import register_config

    register_config()
    register_architectures()
