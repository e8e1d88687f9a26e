"""Converts a JAX function to an ONNX model: traces it, translates each equation of its jaxpr, optimizes the graph."""

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
from export.rules.shape import filled

InputSpec = tuple[str, Sequence[int | str]]
"""Element type and shape of an input, such as `("uint8", ("batch", 64, 64, 3))`; a size given by name is symbolic."""

Key = tuple[int, ...]
"""Identifies an equation: its index in its jaxpr, preceded by the indices of the equations that call that jaxpr."""

type Origin = tuple[Key, int, tuple[int, ...]]
"""Identifies a value: the key of its equation, its index among the equation's results, and its layout in the graph."""

# Primitives that call a jaxpr and change nothing in the forward pass.
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
_IGNORED = ("debug_callback", "debug_print", "shape_assertion")
_DTYPES = tuple(
    np.dtype(name) for name in ("bool", "float32", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
)
# A module under a transformation, such as `jvp(Net)` in `jvp(Net)/Conv`.
_TRANSFORMED = re.compile(r"\w+\(([^()]*)\)")


def to_onnx(fn: Callable[..., Any], inputs: Mapping[str, InputSpec]) -> onnx.ModelProto:
    """Converts a function of arrays to an ONNX model that computes the same values.

    The function is traced once, as by `jax.jit`. Arrays that it closes over become constants of the model, and whatever
    follows from constants alone is computed during the export.

    The model uses operator set 17 and IR version 8, which old and new runtimes read. Its nodes are named after the
    modules of the function. Batch normalisation with fixed statistics is folded into the layers beside it. Values of
    half precision (bfloat16, float16) are computed in float32.

    Results may differ from JAX in seven cases. Runtimes may ignore a NaN among the operands of a maximum, minimum,
    argmax, argmin or max pooling, where JAX returns the NaN or its position. In a top-k, a NaN counts as infinity; JAX
    orders it by its sign bit, which ONNX cannot read. Max pooling of nothing but minus infinity is the lowest float32
    in onnxruntime, which also makes negative zeros positive where it selects between values, and treats negative and
    positive zeros as equal in a top-k. A linear resize keeps a NaN to the pixels around it, where JAX spreads it along
    rows and columns. A sum of floats over all pixels or over a window is a mean times a number, so that a sum of whole
    numbers may be off by a rounding error.

    Args:
      fn: a function that takes one array for each input, in order, and returns an array, which the model names
        `output`, or a dict of arrays by name.
      inputs: for each input, by name, its element type and its shape. A size is an integer, or the name of a symbolic
        size, which may differ from call to call; the same name means the same size everywhere.

    Returns:
      The model. Write it with `onnx.save`.

    Raises:
      UnsupportedError: the function uses a primitive, a variant of a primitive, an element type, or a symbolic size in
        a way that has no translation. The message names the module and what to change. Errors that the function raises
        itself are passed on.

    Examples:
      ```python
      def classify(image):
          return {"logits": model.apply(variables, image, train=False)}

      model_proto = export.to_onnx(classify, {"image": ("uint8", ("batch", 64, 64, 3))})
      onnx.save(model_proto, "classifier.onnx")
      ```
    """
    return build_graph(fn, inputs).to_model()


def build_graph(fn: Callable[..., Any], inputs: Mapping[str, InputSpec]) -> Graph:
    """Returns the optimized graph of a function, whose `origins` are of type `Origin`.

    Takes the arguments of `to_onnx`, and raises its errors.
    """
    types = input_types(inputs)
    jaxpr, result = _trace(fn, types)
    if set(result) & set(types):
        raise UnsupportedError(
            f"inputs and outputs share names: {sorted(set(result) & set(types))}; rename the outputs"
        )

    # Interpret the jaxpr with the graph's inputs as operands: each equation adds its nodes.
    graph = Graph({name: ValueType(exported_dtype(kind.dtype), kind.shape) for name, kind in types.items()})
    translator = _Translator(graph)
    builder = translator.builder
    tensors = [Tensor(name, kind.shape, kind.dtype, identity(len(kind.shape))) for name, kind in graph.inputs.items()]
    values = translator.run(jaxpr.jaxpr, jaxpr.consts, tensors)

    # Store the outputs in JAX's order of axes. JAX sorts the keys of the dict that the function returned.
    for name, value in zip(sorted(result), values, strict=True):
        tensor = builder.as_tensor(in_exported_dtype(value))
        stored = builder.in_layout(tensor, identity(len(tensor.shape)))
        graph.outputs[name] = (stored, ValueType(tensor.dtype, tensor.shape))

    passes.run(graph)
    return graph


def evaluate(fn: Callable[..., Any], inputs: Mapping[str, InputSpec], feed: Sequence[Any]) -> dict[Key, list[Any]]:
    """Runs a function equation by equation and returns the results of each equation by its key.

    Args:
      fn: the function.
      inputs: types of its inputs, as for `to_onnx`, without symbolic sizes.
      feed: one array for each input, in order.
    """
    jaxpr, _ = _trace(fn, input_types(inputs))
    recorder = _Recorder()
    recorder.run(jaxpr.jaxpr, jaxpr.consts, [np.asarray(array) for array in feed])
    return recorder.results


def _trace(fn: Callable[..., Any], types: Mapping[str, ValueType]) -> tuple[Any, dict[str, Any]]:
    """Returns the jaxpr of a function and the types of its outputs by name.

    Raises:
      UnsupportedError: the function cannot be traced with symbolic sizes, but could with numbers.
    """
    try:
        # Accelerators would multiply constants in bfloat16 by default.
        with jax.default_matmul_precision("highest"):
            return jax.make_jaxpr(lambda *arrays: name_outputs(fn(*arrays)), return_shape=True)(*abstract(types))
    except Exception as error:
        if not (isinstance(error, jex.InconclusiveDimensionOperation) or _works_with_numbers(fn, types)):
            raise
        reason = str(error).partition("\n")[0]
        raise UnsupportedError(
            f"the function needs the number that a symbolic size stands for: {reason}; give the size as a number"
        ) from error


def _works_with_numbers(fn: Callable[..., Any], types: Mapping[str, ValueType]) -> bool:
    """Returns whether a function that fails with symbolic sizes can be traced with numbers in their place."""
    # Functions may need an even size or one that three divides.
    for number in (4, 3):
        sizes = {
            name: tuple(dim if isinstance(dim, int) else number for dim in kind.shape) for name, kind in types.items()
        }
        numbers = {name: ValueType(kind.dtype, sizes[name]) for name, kind in types.items()}
        with contextlib.suppress(Exception):
            jax.eval_shape(lambda *arrays: name_outputs(fn(*arrays)), *abstract(numbers))
            return numbers != types
    return False


def input_types(inputs: Mapping[str, InputSpec]) -> dict[str, ValueType]:
    """Returns the types of the inputs, in which the same name is the same symbolic size.

    Raises:
      UnsupportedError: JAX would convert an input to another type, such as int64 to int32 without `jax_enable_x64`.
    """
    scope = jax.export.SymbolicScope()
    types = {}
    for name, (dtype, shape) in inputs.items():
        known = jax.dtypes.canonicalize_dtype(dtype)
        if known != np.dtype(dtype):
            raise UnsupportedError(f"jax converts the {dtype} input {name!r} to {known}; declare it as {known}")
        dims = jax.export.symbolic_shape(", ".join(map(str, shape)), scope=scope) if shape else ()
        types[name] = ValueType(np.dtype(dtype), tuple(dims))
    return types


def abstract(types: Mapping[str, ValueType]) -> list[Any]:
    """Returns shape-and-dtype structs of these types, to trace a function with."""
    struct: Any = jax.ShapeDtypeStruct
    return [struct(kind.shape, kind.dtype) for kind in types.values()]


def name_outputs(result: Any) -> dict[str, Any]:
    """Returns what a function returned as a dict of arrays by name.

    Raises:
      UnsupportedError: the result is neither an array nor a dict of arrays by name.
    """
    named = result if isinstance(result, dict) else {"output": result}
    if not all(isinstance(name, str) and hasattr(array, "shape") for name, array in named.items()):
        raise UnsupportedError("the function must return an array or a dict of arrays by name")
    return named


class _Interpreter:
    """Runs a jaxpr and the jaxprs that it calls; subclasses define what an equation computes (`_compute`)."""

    def run(
        self, jaxpr: jex.Jaxpr, constants: Sequence[Any], operands: Sequence[Value], path: str = "", key: Key = ()
    ) -> list[Value]:
        """Returns the values of the jaxpr's outputs.

        Args:
          jaxpr: the jaxpr.
          constants: arrays that it closes over.
          operands: values of its inputs.
          path: path of its caller in the module tree, without a slash at the end.
          key: key of the equation that calls it.
        """
        values: dict[Any, Value] = dict(zip(jaxpr.invars, operands, strict=True))
        values |= {var: _as_numpy(array) for var, array in zip(jaxpr.constvars, constants, strict=True)}

        def read(atom: Any) -> Value:
            return values[atom] if isinstance(atom, jex.Var) else np.asarray(atom.val, atom.aval.dtype)

        for number, eqn in enumerate(jaxpr.eqns):
            inner = "/".join(part for part in (path, _module_path(eqn)) if part)
            results = self._enter(eqn, [read(atom) for atom in eqn.invars], inner, (*key, number))
            values |= zip(eqn.outvars, results, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _enter(self, eqn: Any, operands: list[Value], path: str, key: Key) -> Sequence[Value]:
        name = eqn.primitive.name
        if name in _IGNORED:
            return []
        if name in _CALLS:
            called = next(eqn.params[param] for param in ("call_jaxpr", "jaxpr", "call") if param in eqn.params)
            return self.run(getattr(called, "jaxpr", called), getattr(called, "consts", ()), operands, path, key)
        return self._compute(eqn, operands, path, key)

    def _compute(self, eqn: Any, operands: list[Value], path: str, key: Key) -> Sequence[Value]:
        raise NotImplementedError


class _Recorder(_Interpreter):
    """Computes all values and keeps them.

    Attributes:
      results: the results of each equation by its key.
    """

    def __init__(self) -> None:
        self.results: dict[Key, list[Any]] = {}

    def _compute(self, eqn: Any, operands: list[Value], path: str, key: Key) -> Sequence[Value]:
        self.results[key] = _bind(eqn, operands)
        return self.results[key]


class _Translator(_Interpreter):
    """Computes what follows from constants, and adds all other values to a graph."""

    def __init__(self, graph: Graph):
        self.builder = Builder(graph, self._call)

    def _compute(self, eqn: Any, operands: list[Value], path: str, key: Key) -> Sequence[Value]:
        if _is_constant(eqn, operands):
            return _bind(eqn, operands)
        if eqn.primitive.name == "call_hi_primitive":
            expanded = _expand(eqn)
            return self.run(expanded.jaxpr, expanded.consts, operands, path, key)
        self.builder.path = f"{path}/" if path else ""
        results = self._translate(eqn, [in_exported_dtype(operand) for operand in operands])
        for i, value in enumerate(results):
            if isinstance(value, Tensor):
                self.builder.graph.origins.setdefault(value.name, (key, i, value.layout))
        self.builder.path = ""
        return results

    def _translate(self, eqn: Any, operands: list[Value]) -> Sequence[Value]:
        """Applies the rule of an equation's primitive, once its types are known to be supported."""
        primitive, builder = eqn.primitive.name, self.builder
        arrays = (*operands, *(var.aval for var in eqn.outvars))
        if any(map(_is_key, arrays)):
            raise UnsupportedError(
                f"cannot export random numbers of a symbolic size or from a computed key (the primitive {primitive!r} "
                f"at {builder.where()}); draw none, as Dropout with deterministic=True, or give the size as a number"
            )
        dtypes = {exported_dtype(array.dtype) for array in arrays}
        for dtype in dtypes.difference(_DTYPES):
            raise UnsupportedError(
                f"cannot export {dtype} (the primitive {primitive!r} at {builder.where()}); build the module in float32"
            )
        # Without elements there is nothing to compute, and runtimes refuse many operators of none.
        if eqn.outvars and all(0 in var.aval.shape for var in eqn.outvars):
            return [filled(builder, var.aval, 0) for var in eqn.outvars]
        if primitive not in RULES:
            raise UnsupportedError(
                f"cannot export the primitive {primitive!r} at {builder.where()}; "
                "write that part of the module with other operations, or add a rule in export/rules"
            )
        # Rules assume that sizes can be compared. Symbolic ones may not, which surfaces as any of these errors.
        try:
            results = RULES[primitive](builder, eqn, *operands)
        except (jex.InconclusiveDimensionOperation, NotImplementedError, OverflowError, TypeError, ValueError) as error:
            raise UnsupportedError(
                f"cannot export the primitive {primitive!r} at {builder.where()} for these shapes and types: "
                f"{str(error).partition(chr(10))[0]}; write that part of the module with other operations"
            ) from error
        values = [results] if isinstance(results, Tensor | np.ndarray) else results
        # Rules compute constants of half precision in float32; equations of constants alone need the type of the jaxpr.
        return [
            value.astype(var.aval.dtype) if isinstance(value, np.ndarray) else value
            for value, var in zip(values, eqn.outvars, strict=True)
        ]

    def _call(self, called: Any, operands: Sequence[Value]) -> list[Value]:
        """Translates a jaxpr that an equation contains, such as the body of a loop, at the path of the equation."""
        path, graph = self.builder.path, self.builder.graph
        before = set(graph.origins)
        # The rule got constants of half precision in float32. The jaxpr must compute with them in its own type.
        narrowed = [
            operand.astype(var.aval.dtype) if isinstance(operand, np.ndarray) else operand
            for operand, var in zip(operands, called.jaxpr.invars, strict=True)
        ]
        values = self.run(called.jaxpr, called.consts, narrowed, path.removesuffix("/"))
        # Keys count from the start of this jaxpr here, so these origins would name other equations.
        for name in set(graph.origins) - before:
            del graph.origins[name]
        self.builder.path = path
        return [in_exported_dtype(value) for value in values]


def _module_path(eqn: Any) -> str:
    """Returns the path of the module that an equation is from, without transformations, as in `jvp(Net)/Conv`."""
    stack = str(eqn.source_info.name_stack)
    while (plain := _TRANSFORMED.sub(r"\1", stack)) != stack:
        stack = plain
    return "/".join(part for part in stack.split("/") if part)


def in_exported_dtype(value: Value) -> Value:
    """Returns an array in the type it is exported in, and a tensor as it is."""
    return value.astype(exported_dtype(value.dtype)) if isinstance(value, np.ndarray) else value


def _expand(eqn: Any) -> Any:
    """Returns the jaxpr that defines a high-level primitive of jax.numpy."""
    primitive = eqn.params["_prim"]

    def definition(*operands: Any) -> Any:
        return jax.tree.leaves(primitive.expand(*jax.tree.unflatten(primitive.in_tree, operands)))

    return jax.make_jaxpr(definition)(*(var.aval for var in eqn.invars))


def _is_constant(eqn: Any, operands: Sequence[Any]) -> bool:
    """Returns whether an equation's results follow from constants: no operand is a tensor, and no size symbolic."""
    if eqn.primitive.name == "dim_as_value" or any(isinstance(operand, Tensor) for operand in operands):
        return False
    return all(isinstance(dim, int) for var in eqn.outvars for dim in var.aval.shape)


def _bind(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Computes the results of an equation whose operands are all arrays."""
    results = eqn.primitive.bind(*operands, **eqn.params)
    results = results if eqn.primitive.multiple_results else [results]
    return [_as_numpy(array) for array in results]


def _as_numpy(array: Any) -> Any:
    """Returns an array as NumPy's, except random keys, for which NumPy has no type."""
    return array if _is_key(array) else np.asarray(array)


def _is_key(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.extended)
