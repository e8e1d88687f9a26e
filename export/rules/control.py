"""Control flow: loops of known length are unrolled; all branches are computed and one is selected.

Some runtimes lack ONNX's Loop and If, and the passes could not look into their bodies.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np

from export.builder import Builder, Value
from export.rules.elementwise import select
from export.rules.registry import require, rule
from export.rules.shape import concatenate_parts, filled, slice_axis

_MOST_STEPS = 1024
"""Longest loop that is unrolled; longer ones would make graphs that take a runtime minutes to load."""


@rule("scan")
def scan(builder: Builder, eqn: Any, *operands: Value) -> list[Value]:
    """Adds one copy of the body for each step; a scan without carry becomes one vmapped body."""
    # Operands are constants of the body, the initial carry, and arrays that are scanned along their first axis.
    params, body = eqn.params, eqn.params["jaxpr"]
    length = params["length"]
    shared, carried, _ = (len(group) for group in params["ft_in"].unpack())
    if carried == 0:
        return builder.call(_vectorized(eqn, shared), list(operands))
    require(isinstance(length, int), builder, eqn, "a symbolic number of steps")
    require(length <= _MOST_STEPS, builder, eqn, f"more than {_MOST_STEPS} steps")

    # Unroll. Each step returns the next carry, and one row of each stacked result.
    fixed, carry, columns = operands[:shared], list(operands[shared : shared + carried]), operands[shared + carried :]
    rows = []
    for step in reversed(range(length)) if params["reverse"] else range(length):
        scanned = [_row(builder, column, step) for column in columns]
        results = builder.call(body, [*fixed, *carry, *scanned])
        carry, row = results[: len(carry)], results[len(carry) :]
        rows.append(row)

    # Stack the rows in the order of the array, whatever the direction of the loop.
    if params["reverse"]:
        rows.reverse()
    stacked = [_stack(builder, var.aval, list(column)) for var, column in _columns(eqn, len(carry), rows)]
    return [*carry, *stacked]


def _vectorized(eqn: Any, shared: int) -> Any:
    """Returns the jaxpr of the body for all steps at once."""
    axes = (None,) * shared + (0,) * (len(eqn.invars) - shared)
    function = jax.vmap(jex.jaxpr_as_fun(eqn.params["jaxpr"]), in_axes=axes, axis_size=eqn.params["length"])
    struct: Any = jax.ShapeDtypeStruct
    return jax.make_jaxpr(function)(*(struct(var.aval.shape, var.aval.dtype) for var in eqn.invars))


def _columns(eqn: Any, carried: int, rows: list[list[Value]]) -> list[tuple[Any, tuple[Value, ...]]]:
    """Pairs each stacked result with its rows; a loop without steps has no rows."""
    outvars = eqn.outvars[carried:]
    return list(zip(outvars, zip(*rows, strict=True) if rows else ((),) * len(outvars), strict=True))


def _row(builder: Builder, value: Value, step: int) -> Value:
    if isinstance(value, np.ndarray):
        return np.asarray(value[step])
    return builder.reshape(slice_axis(builder, value, 0, step, step + 1), value.shape[1:])


def _stack(builder: Builder, aval: Any, rows: list[Value]) -> Value:
    arrays = [row for row in rows if isinstance(row, np.ndarray)]
    if len(arrays) == len(rows):
        return np.stack(arrays) if arrays else filled(builder, aval, 0)
    raised = [builder.reshape(builder.as_tensor(row), (1, *row.shape)) for row in rows]
    return concatenate_parts(builder, aval, raised, 0)


@rule("while")
def loop(builder: Builder, eqn: Any, *operands: Value) -> list[Value]:
    """Adds copies of the body until the condition is false; it must follow from constants."""
    params = eqn.params
    tests, bodies = params["cond_nconsts"], params["body_nconsts"]
    test, body, carry = operands[:tests], operands[tests : tests + bodies], list(operands[tests + bodies :])
    for _ in range(_MOST_STEPS + 1):
        (proceed,) = builder.call(params["cond_jaxpr"], [*test, *carry])
        require(isinstance(proceed, np.ndarray), builder, eqn, "a number of steps that depends on the inputs")
        if not proceed:
            return carry
        carry = builder.call(params["body_jaxpr"], [*body, *carry])
    require(False, builder, eqn, f"more than {_MOST_STEPS} steps")
    raise AssertionError


@rule("cond")
def branch(builder: Builder, eqn: Any, index: Value, *operands: Value) -> list[Value]:
    """Computes all branches and selects the results of one; an index out of range is clamped, as in JAX."""
    branches = eqn.params["branches"]
    if isinstance(index, np.ndarray):
        return builder.call(branches[int(np.clip(index, 0, len(branches) - 1))], list(operands))
    cases = zip(*(builder.call(body, list(operands)) for body in branches), strict=True)
    results = []
    for var, values in zip(eqn.outvars, cases, strict=True):
        selection = SimpleNamespace(outvars=[var], primitive=eqn.primitive, params={})
        results.append(select(builder, selection, index, *values))
    return results
