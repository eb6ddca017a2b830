"""The section `mobe` of a native checkpoint's config.json. Needs no other package."""

from dataclasses import dataclass

FORMAT_VERSION = 2
METHODS = ("mobe", "svd")
PROJECTIONS = ("gate", "up", "down")


@dataclass(frozen=True)
class Sizes:
    """How one projection of one layer is factorised.

    rank: r. bases: m of all groups, 0 for `svd`. dtype: that of A and V, bases_dtype that of B; None: that of the model.
    """

    rank: int
    bases: int = 0
    groups: int = 1
    activation: str = "none"
    dtype: str | None = None
    bases_dtype: str | None = None
    scale_group: int | None = None

    @property
    def shared(self):
        """Whether experts share bases."""
        return self.bases > 0


@dataclass(frozen=True)
class NativeFormat:
    """What config.json says of the factors.

    prefix: of a layer's tensors, with `{layer}` in it. layers: {number: {"gate" or "up" or "down": Sizes}}.
    experts: the source's layout of a layer's experts, a list of entries with name, projections, interleaved and transposed.
    """

    prefix: str
    layers: dict
    experts: list

    def layer_prefix(self, layer):
        return self.prefix.replace("{layer}", str(layer))


def broken(what):
    return ValueError(f"config.json: {what}; the checkpoint is damaged, make it again with `mobe compress`")


def required(entry, key, kind, where):
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise broken(f"{where}.{key} is {value!r}")
    return value


def read_native_format(mobe):
    """The section as a NativeFormat. Raises ValueError in one line."""
    if not isinstance(mobe, dict):
        raise broken('model_type is "mobe", but there is no section `mobe`')
    version = required(mobe, "format_version", int, "mobe")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"config.json: mobe.format_version is {version}, and this mobe-vllm reads version {FORMAT_VERSION}: "
            "install the mobe-vllm of the mobe that wrote the checkpoint"
        )
    method = required(mobe, "method", str, "mobe")
    if method not in METHODS:
        raise ValueError(f'config.json: mobe.method is "{method}", and this mobe-vllm knows {" and ".join(METHODS)}: `mobe expand` it')
    prefix = required(mobe, "prefix", str, "mobe")
    layers = {}
    for number, entry in enumerate(required(mobe, "factors", list, "mobe")):
        where = f"mobe.factors[{number}]"
        if not isinstance(entry, dict):
            raise broken(f"{where} is {entry!r}")
        sizes = read_sizes(entry, method, where)
        for layer in required(entry, "layers", list, where):
            if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
                raise broken(f"{where}.layers has {layer!r}")
            for projection in required(entry, "projections", list, where):
                short = str(projection).removesuffix("_proj")
                if short not in PROJECTIONS:
                    raise broken(f"{where}.projections has {projection!r}")
                layers.setdefault(layer, {})[short] = sizes
    if not layers:
        raise broken("mobe.factors has no layers")
    if "{layer}" not in prefix:
        raise broken(f"mobe.prefix is {prefix!r}")
    return NativeFormat(prefix, layers, read_layout(required(mobe, "experts", list, "mobe")))


def read_source(mobe):
    """(model_type, list of architectures) of the source; the list may be empty."""
    architectures = [] if mobe.get("source_architectures") is None else required(mobe, "source_architectures", list, "mobe")
    if not all(isinstance(it, str) for it in architectures):
        raise broken(f"mobe.source_architectures is {architectures!r}")
    return required(mobe, "source_model_type", str, "mobe"), architectures


def read_layout(experts):
    for number, entry in enumerate(experts):
        where = f"mobe.experts[{number}]"
        if not isinstance(entry, dict):
            raise broken(f"{where} is {entry!r}")
        required(entry, "name", str, where)
        required(entry, "projections", list, where)
    return experts


def read_sizes(entry, method, where):
    rank = required(entry, "rank", int, where)
    if rank < 1:
        raise broken(f"{where}.rank is {rank}")
    # Stored only of quantised factors.
    dtypes = {key: required(entry, key, str, where) for key in ("dtype", "bases_dtype") if entry.get(key) is not None}
    if dtypes:
        dtypes["scale_group"] = required(entry, "scale_group", int, where)
        if dtypes["scale_group"] < 1:
            raise broken(f"{where}.scale_group is {dtypes['scale_group']}")
    if method == "svd":
        return Sizes(rank=rank, **dtypes)
    bases, groups = required(entry, "bases", int, where), required({"groups": 1, **entry}, "groups", int, where)
    if bases < 1 or groups < 1 or bases % groups:
        raise broken(f"{where} has {bases} bases in {groups} groups")
    return Sizes(rank=rank, bases=bases, groups=groups, activation=required(entry, "activation", str, where), **dtypes)
