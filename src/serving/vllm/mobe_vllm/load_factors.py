"""Takes the tensors of factorised layers out of the stream that vLLM loads, and puts them into the parameters of method.py.

On a rank of several (tensor parallelism) A and dense gate_proj and up_proj keep their rows, dense down_proj its columns, that the rank holds;
B, α and V are whole on every rank. With expert parallelism a rank keeps its experts' A and α.
"""

from dataclasses import dataclass
from typing import Callable

import torch
from safetensors import SafetensorError

from .mobe_factors import layer_of, part_name, shared_names, stored_parts

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Place:
    """Where a stored tensor goes. shape: of the whole tensor in the file. parameters: their names in the model.

    dtype: that the tensor must have, None for any float. put: takes the tensor; None if it is of experts of another rank.
    """

    shape: tuple
    parameters: tuple
    dtype: object
    put: Callable | None


class FactorLoader:
    """model: the model that is loaded. quantisation: its MoBEQuantisation. folder: for messages."""

    def __init__(self, model, quantisation, folder):
        self.folder = folder
        self.loaded = set()
        self.places = {}
        native = quantisation.native
        # Tensors of factorised layers that another rank of a pipeline has.
        self.prefixes = tuple(native.layer_prefix(layer) for layer in native.layers)
        names = {id(module): name for name, module in model.named_modules()}
        for number, (_, layer) in quantisation.layers.items():
            own = places_of(layer, names[id(layer)], native)
            self.places |= {native.layer_prefix(number) + name: place for name, place in own.items()}
        self.missing = dict.fromkeys(name for name, place in self.places.items() if place.put)

    def others(self, weights):
        """Stores the tensors of experts of factorised layers, and yields the others. weights: pairs of a name and a tensor."""
        for name, tensor in self.read(weights):
            place = self.places.get(name)
            if place is not None:
                self.check(name, tensor, place)
                if place.put:
                    place.put(tensor)
                    self.loaded.update(place.parameters)
                    self.missing.pop(name, None)
            elif not self.is_of_experts(name):
                yield name, tensor
            elif layer_of(name) in self.layers_here():
                raise ValueError(f"{name} in {self.folder} is not expected in a factorised layer: {self.unexpected(name)}")

    def read(self, weights):
        """The pairs as vLLM reads them. Its message on a damaged file names neither file nor folder."""
        try:
            yield from weights
        except SafetensorError as error:
            raise ValueError(
                f"a file of tensors in {self.folder} is damaged ({error}): copy the checkpoint again; `mobe verify` says which file"
            ) from error

    def layers_here(self):
        return {layer_of(name) for name in self.places}

    def is_of_experts(self, name):
        prefix = next((prefix for prefix in self.prefixes if name.startswith(prefix)), None)
        return prefix is not None and name.removeprefix(prefix).startswith(("experts.", "B_", "W_"))

    def unexpected(self, name):
        if "scale" in name or "packed" in name or "zero_point" in name:
            return (
                "its experts keep a quantisation of the source in a projection without factors, which mobe-vllm does not decode; "
                "factorise that projection too, or compress without --keep-quantized"
            )
        return "the checkpoint is not the one that its config.json describes; check it with `mobe verify`"

    def check(self, name, tensor, place):
        if tuple(tensor.shape) != tuple(place.shape):
            raise ValueError(
                f"{name} in {self.folder} has the shape {tuple(tensor.shape)} and should have {tuple(place.shape)}: "
                "the checkpoint is not the one that its config.json describes; check it with `mobe verify`"
            )
        if tensor.dtype not in FLOATS if place.dtype is None else tensor.dtype != place.dtype:
            expected = "a float" if place.dtype is None else str(place.dtype).removeprefix("torch.")
            # Factors have the dtypes of config.json; only a projection without factors may have kept the source's.
            kind = "scale" if place.parameters[0].endswith("_dense") else "factor"
            stored = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{name} in {self.folder} is {stored} and should be {expected}: {self.unexpected(kind)}")

    def check_complete(self):
        """Raises ValueError if a tensor of the factors was not there."""
        if self.missing:
            first, more = next(iter(self.missing)), len(self.missing) - 1
            rest = f" and {more} more tensors of factors are" if more else " is"
            raise ValueError(f"{first}{rest} missing in {self.folder}: copy the checkpoint again, or check it with `mobe verify`")


def places_of(layer, path, native):
    """{name of a tensor after the layer's prefix: Place}. layer: RoutedExperts with a MoBEMethod, at `path` in the model."""
    method = layer.quant_method
    moe = layer.moe_config
    tp, rank, p, d = moe.tp_size, moe.tp_rank, method.rows, method.columns
    rows = slice(rank * p, (rank + 1) * p)
    # The places on this rank of the experts that it has.
    own = {number: place for place, number in enumerate(method.numbers)}
    places = {}

    def whole(name):
        return getattr(layer, name).data

    def stacked(stored, name, shape, dtype, span=slice(None)):
        """A tensor for each expert, of which the rank keeps the rows `span`."""
        for number in range(method.total):
            place = own.get(number)
            put = place is not None and (lambda tensor, place=place: whole(name)[place].copy_(tensor[span]))
            places[stored.replace("{e}", str(number))] = Place(shape, (f"{path}.{name}",), dtype, put or None)

    def factor(short, letter, stored, shape, sizes, span=slice(None)):
        for ending, (part, dtype) in stored_parts(shape, sizes.dtype, sizes.scale_group).items():
            suffix = f"_{ending}" if ending else ""
            name = part_name(f"{short}_{letter}", ending)
            stacked(f"experts.{{e}}.{short}_proj.{stored}{suffix}", name, part, dtype_of(ending, dtype), span)

    for short in method.shorts:
        sizes = method.sizes.get(short)
        if sizes is None:
            continue
        factor(short, "A", "weight" if sizes.shared else "A", (p * tp, sizes.rank), sizes, rows)
        if not sizes.shared:
            factor(short, "V", "V", (sizes.rank, d), sizes)
            continue
        m, size = sizes.bases // sizes.groups, method.total // sizes.groups
        members = method.members(sizes)
        for group in range(sizes.groups):
            B, W = shared_names(short, group, sizes.groups)
            here = members.get(group)
            for ending, (part, dtype) in stored_parts((m, sizes.rank, d), sizes.bases_dtype, sizes.scale_group).items():
                name = part_name(B, ending)
                put = (lambda tensor, name=name: whole(name).copy_(tensor)) if here else None
                # The name in the file is the parameter's.
                places[name] = Place(part, (f"{path}.{name}",), dtype_of(ending, dtype), put)
            chosen = [number - group * size for number in here or []]
            put = (lambda tensor, W=W, chosen=chosen: whole(W).copy_(tensor[chosen])) if here else None
            places[W] = Place((size, m), (f"{path}.{W}",), None, put)

    for entry, shorts in dense_tensors(method, native.experts):
        add_dense(places, entry, shorts, method, own, path, whole, rows, tp)
    return places


def dtype_of(ending, dtype):
    """Scales may be stored in any float."""
    return None if ending == "scale" else dtype


def dense_tensors(method, layout):
    """The tensors of projections without factors: (an entry as in `mobe.experts`, [short names of its projections, in order])."""
    found = {}
    for short in (short for short in method.shorts if short not in method.sizes):
        projection = f"{short}_proj"
        entry = next((it for it in layout if projection in it["projections"]), None)
        others = [it.removesuffix("_proj") for it in entry["projections"]] if entry else [short]
        if entry is None or any(other in method.sizes for other in others):
            # The source has it in one tensor with a factorised one, so it is stored apart.
            found[short] = ({"name": f"experts.{{e}}.{projection}.weight"}, [short])
        else:
            found[entry["name"]] = (entry, others)
    return found.values()


def add_dense(places, entry, shorts, method, own, path, whole, rows, tp):
    """Adds the Places of a dense tensor of one expert or of all, which may hold several projections. own: {number: place on this rank}"""
    p, d, count = method.rows * tp, method.columns, len(shorts)
    outputs, inputs = (d, p) if shorts == ["down"] else (p * count, d)
    shape = (inputs, outputs) if entry.get("transposed") else (outputs, inputs)

    def parts(tensor):
        """(…, *shape) -> (short, the part of this rank (…, outputs, inputs)) of each projection"""
        tensor = tensor.mT if entry.get("transposed") else tensor
        for place, short in enumerate(shorts):
            part = tensor[..., place::count, :] if entry.get("interleaved") else tensor.chunk(count, -2)[place]
            yield short, part[..., rows] if short == "down" else part[..., rows, :]

    parameters = tuple(f"{path}.{short}_dense" for short in shorts)

    def put_one(tensor, place):
        for short, part in parts(tensor):
            whole(f"{short}_dense")[place].copy_(part)

    def put_all(tensor):
        for short, part in parts(tensor):
            whole(f"{short}_dense").copy_(part[method.numbers])

    if "{e}" not in entry["name"]:
        places[entry["name"]] = Place((method.total, *shape), parameters, None, put_all)
        return
    for number in range(method.total):
        place = own.get(number)
        put = place is not None and (lambda tensor, place=place: put_one(tensor, place))
        places[entry["name"].replace("{e}", str(number))] = Place(shape, parameters, None, put or None)
