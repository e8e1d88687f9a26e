"""From a jax function to an ONNX model: trace it, translate each equation of its jaxpr, tidy the graph."""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import onnx

from export import passes
from export.builder import Builder, Tensor, Value, identity
from export.errors import UnsupportedError
from export.graph import Graph, ValueType, exported_dtype
from export.rules import RULES

InputSpec = tuple[str, Sequence[int | str]]
"""Element type and shape of an input; a size given by name is symbolic."""

Key = tuple[int, ...]
"""An equation: its number in its jaxpr, after that of the equation that calls the jaxpr, if one does."""

type Origin = tuple[Key, int, tuple[int, ...]]
"""A value: its equation, which of the equation's results it is, and the order in which its axes are stored."""

_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "composite",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vmap_call",
    "remat",
    "remat2",
    "checkpoint",
)
_TRANSFORMED = re.compile(r"\w+\(([^()]*)\)")
_IGNORED = ("debug_callback", "debug_print", "shape_assertion")
_DTYPES = tuple(
    np.dtype(each) for each in ("bool", "float32", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
)


def to_onnx(fn: Callable[..., Any], inputs: Mapping[str, InputSpec]) -> onnx.ModelProto:
    """Converts a function of arrays to an ONNX model that computes the same, in float32.

    The function is traced once; what it closes over becomes constants, and what follows from constants alone is
    computed now. `to_onnx(lambda image: model.apply(variables, image, train=False), {"image": ("uint8",
    ("batch", 64, 64, 3))})` converts a Flax model.

    Runtimes may pass over a NaN among the elements of a max, min, argmax, argmin or max pooling, where jax gives NaN or
    its place; onnxruntime also makes negative zeros positive where it selects between values, and takes them for equal
    to positive ones in a top-k.

    Args:
      fn: called with one array for each input, in order; returns an array, which the model names `output`, or a dict
        of named arrays.
      inputs: element type and shape by name, such as `("uint8", ("batch", 64, 64, 3))`.

    Returns:
      A model of operator set 17 and IR version 8, without BatchNormalization, `auto_pad` and `value_info`.

    Raises:
      UnsupportedError: a primitive, a variant of one, or an element type that has no translation.
    """
    return build_graph(fn, inputs).to_model()


def build_graph(fn: Callable[..., Any], inputs: Mapping[str, InputSpec]) -> Graph:
    """The graph of a function's model; its `origins` are `Origin`s. Arguments and errors as of `to_onnx`."""
    types = input_types(inputs)
    jaxpr, result = _trace(fn, types)
    if set(result) & set(types):
        raise UnsupportedError(
            f"inputs and outputs share names: {sorted(set(result) & set(types))}; rename the outputs"
        )
    graph = Graph({name: ValueType(exported_dtype(kind.dtype), kind.shape) for name, kind in types.items()})
    translator = _Translator(graph)
    builder = translator.builder
    tensors = [Tensor(name, kind.shape, kind.dtype, identity(len(kind.shape))) for name, kind in graph.inputs.items()]
    values = translator.run(jaxpr.jaxpr, jaxpr.consts, tensors)
    for name, value in zip(sorted(result), values, strict=True):  # jax sorts the keys of a dict
        tensor = builder.as_tensor(in_exported_dtype(value))
        stored = builder.stored(tensor, identity(len(tensor.shape)))
        graph.outputs[name] = (stored, ValueType(tensor.dtype, tensor.shape))
    passes.run(graph)
    return graph


def evaluate(fn: Callable[..., Any], inputs: Mapping[str, InputSpec], feed: Sequence[Any]) -> dict[Key, list[Any]]:
    """Every value that a function computes of arrays of these types, step by step, by the key of its equation."""
    jaxpr, _ = _trace(fn, input_types(inputs))
    recorder = _Recorder()
    recorder.run(jaxpr.jaxpr, jaxpr.consts, [np.asarray(each) for each in feed])
    return recorder.found


def _trace(fn: Callable[..., Any], types: Mapping[str, ValueType]) -> tuple[Any, dict[str, Any]]:
    try:
        return jax.make_jaxpr(lambda *arrays: name_outputs(fn(*arrays)), return_shape=True)(*abstract(types))
    except Exception as error:
        if not (isinstance(error, jex.InconclusiveDimensionOperation) or _works_with_numbers(fn, types)):
            raise
        reason = str(error).partition("\n")[0]
        raise UnsupportedError(
            f"the function needs the number that a symbolic size stands for: {reason}; give the size as a number"
        ) from error


def _works_with_numbers(fn: Callable[..., Any], types: Mapping[str, ValueType]) -> bool:
    """Whether a function that fails with symbolic sizes is one of arrays whose sizes are numbers."""
    for number in (4, 3):  # some divide it
        sizes = {
            name: tuple(dim if isinstance(dim, int) else number for dim in kind.shape) for name, kind in types.items()
        }
        numbers = {name: ValueType(kind.dtype, sizes[name]) for name, kind in types.items()}
        with contextlib.suppress(Exception):
            jax.eval_shape(lambda *arrays: name_outputs(fn(*arrays)), *abstract(numbers))
            return numbers != types
    return False


def input_types(inputs: Mapping[str, InputSpec]) -> dict[str, ValueType]:
    """Types of the inputs; a name that recurs is the same symbolic size.

    Raises:
      UnsupportedError: an element type that jax does not compute with as it is set up.
    """
    scope = jax.export.SymbolicScope()
    types = {}
    for name, (dtype, shape) in inputs.items():
        known = jax.dtypes.canonicalize_dtype(dtype)
        if known != np.dtype(dtype):
            raise UnsupportedError(f"jax makes {known} of the {dtype} input {name!r}; give it as {known}")
        dims = jax.export.symbolic_shape(", ".join(map(str, shape)), scope=scope) if shape else ()
        types[name] = ValueType(np.dtype(dtype), tuple(dims))
    return types


def abstract(types: Mapping[str, ValueType]) -> list[Any]:
    """Stand-ins for arrays of these types, to trace with."""
    stand_in: Any = jax.ShapeDtypeStruct
    return [stand_in(kind.shape, kind.dtype) for kind in types.values()]


def name_outputs(result: Any) -> dict[str, Any]:
    """What a function returned, as named arrays.

    Raises:
      UnsupportedError: neither an array nor a dict of arrays by name.
    """
    named = result if isinstance(result, dict) else {"output": result}
    if not all(isinstance(name, str) and hasattr(each, "shape") for name, each in named.items()):
        raise UnsupportedError("the function must return an array or a dict of arrays by name")
    return named


class _Interpreter:
    """Runs a jaxpr, into the calls it makes; what an equation computes is for the classes below to say."""

    def run(
        self, jaxpr: jex.Jaxpr, constants: Sequence[Any], operands: Sequence[Value], place: str = "", key: Key = ()
    ) -> list[Value]:
        """Returns the values of the outputs; `place` is where in the module tree the jaxpr is called."""
        values: dict[Any, Value] = dict(zip(jaxpr.invars, operands, strict=True))
        values |= {var: _known(each) for var, each in zip(jaxpr.constvars, constants, strict=True)}

        def read(atom: Any) -> Value:
            return values[atom] if isinstance(atom, jex.Var) else np.asarray(atom.val, atom.aval.dtype)

        for number, eqn in enumerate(jaxpr.eqns):
            inner = "/".join(part for part in (place, _path(eqn)) if part)
            results = self._enter(eqn, [read(atom) for atom in eqn.invars], inner, (*key, number))
            values |= zip(eqn.outvars, results, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _enter(self, eqn: Any, operands: list[Value], place: str, key: Key) -> Sequence[Value]:
        name = eqn.primitive.name
        if name in _IGNORED:
            return []
        if name in _CALLS:
            called = next(eqn.params[each] for each in ("call_jaxpr", "jaxpr", "call") if each in eqn.params)
            return self.run(getattr(called, "jaxpr", called), getattr(called, "consts", ()), operands, place, key)
        return self._compute(eqn, operands, place, key)

    def _compute(self, eqn: Any, operands: list[Value], place: str, key: Key) -> Sequence[Value]:
        raise NotImplementedError


class _Recorder(_Interpreter):
    """Computes and keeps every value."""

    def __init__(self) -> None:
        self.found: dict[Key, list[Any]] = {}

    def _compute(self, eqn: Any, operands: list[Value], place: str, key: Key) -> Sequence[Value]:
        self.found[key] = _bind(eqn, operands)
        return self.found[key]


class _Translator(_Interpreter):
    """Computes what follows from constants, and adds what does not to a graph."""

    def __init__(self, graph: Graph):
        self.builder = Builder(graph, self._call)

    def _compute(self, eqn: Any, operands: list[Value], place: str, key: Key) -> Sequence[Value]:
        if _is_known(eqn, operands):
            return _bind(eqn, operands)
        if eqn.primitive.name == "call_hi_primitive":
            expanded = _expand(eqn)
            return self.run(expanded.jaxpr, expanded.consts, operands, place, key)
        self.builder.path = f"{place}/" if place else ""
        results = self._translate(eqn, [in_exported_dtype(each) for each in operands])
        for i, each in enumerate(results):
            if isinstance(each, Tensor):
                self.builder.graph.origins.setdefault(each.name, (key, i, each.layout))
        self.builder.path = ""
        return results

    def _translate(self, eqn: Any, operands: list[Value]) -> Sequence[Value]:
        primitive, builder = eqn.primitive.name, self.builder
        arrays = (*operands, *(var.aval for var in eqn.outvars))
        if any(map(_is_key, arrays)):
            raise UnsupportedError(
                f"cannot export random numbers of a symbolic size or from a computed key (the primitive {primitive!r} "
                f"at {builder.where()}); draw none, as a deterministic Dropout does, or give the size as a number"
            )
        dtypes = {exported_dtype(each.dtype) for each in arrays}
        for dtype in dtypes.difference(_DTYPES):
            raise UnsupportedError(
                f"cannot export {dtype} (the primitive {primitive!r} at {builder.where()}); build the module in float32"
            )
        if primitive not in RULES:
            raise UnsupportedError(
                f"cannot export the primitive {primitive!r} at {builder.where()}; "
                "write that part of the module with other operations, or add a rule in export/rules"
            )
        try:
            results = RULES[primitive](builder, eqn, *operands)
        except (jex.InconclusiveDimensionOperation, NotImplementedError, TypeError, ValueError) as error:
            raise UnsupportedError(
                f"cannot export the primitive {primitive!r} at {builder.where()} for these shapes and types: "
                f"{str(error).partition(chr(10))[0]}; write that part of the module with other operations"
            ) from error
        return [results] if isinstance(results, Tensor | np.ndarray) else results

    def _call(self, called: Any, operands: Sequence[Value]) -> list[Value]:
        """Translates a jaxpr that an equation contains, such as a loop's, where the equation is."""
        path, graph = self.builder.path, self.builder.graph
        known = set(graph.origins)
        # What is known was widened for the rule, but is computed with in the type that the jaxpr has for it.
        own = [
            each.astype(var.aval.dtype) if isinstance(each, np.ndarray) else each
            for each, var in zip(operands, called.jaxpr.invars, strict=True)
        ]
        values = self.run(called.jaxpr, called.consts, own, path.removesuffix("/"))
        for name in set(graph.origins) - known:
            del graph.origins[name]  # the key of a copy of a loop's body says nothing
        self.builder.path = path
        return [in_exported_dtype(each) for each in values]


def _path(eqn: Any) -> str:
    """Where the equation is in the module tree; of transformations such as `jvp(Net)/Conv` only the module is named."""
    stack = str(eqn.source_info.name_stack)
    while (plain := _TRANSFORMED.sub(r"\1", stack)) != stack:
        stack = plain
    return "/".join(part for part in stack.split("/") if part)


def in_exported_dtype(value: Value) -> Value:
    """A constant in the type it is exported in."""
    return value.astype(exported_dtype(value.dtype)) if isinstance(value, np.ndarray) else value


def _expand(eqn: Any) -> Any:
    """The jaxpr that a primitive of jax.numpy is defined by."""
    primitive = eqn.params["_prim"]

    def definition(*operands: Any) -> Any:
        return jax.tree.leaves(primitive.expand(*jax.tree.unflatten(primitive.in_tree, operands)))

    return jax.make_jaxpr(definition)(*(var.aval for var in eqn.invars))


def _is_known(eqn: Any, operands: Sequence[Any]) -> bool:
    """Whether the values follow from constants alone: no tensor, and no symbolic size in shape or value."""
    if eqn.primitive.name == "dim_as_value" or any(isinstance(each, Tensor) for each in operands):
        return False
    return all(isinstance(dim, int) for var in eqn.outvars for dim in var.aval.shape)


def _bind(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """The values of an equation whose operands are all known."""
    results = eqn.primitive.bind(*operands, **eqn.params)
    results = results if eqn.primitive.multiple_results else [results]
    return [_known(each) for each in results]


def _known(array: Any) -> Any:
    """A known array as NumPy's, but for random keys, which NumPy has no type for."""
    return array if _is_key(array) else np.asarray(array)


def _is_key(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.extended)
