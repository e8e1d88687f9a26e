"""Control flow: loops of known length are unrolled, of branches both are computed and one is selected."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np

from export.builder import Builder, Value
from export.rules.elementwise import select
from export.rules.registry import require, rule
from export.rules.shape import concatenate_parts, cut_axis

_MOST_STEPS = 1024
"""Longer loops would make graphs that no runtime loads in reasonable time."""


@rule("scan")
def scan(builder: Builder, eqn: Any, *operands: Value) -> list[Value]:
    """One copy of the body for each step; where the steps pass nothing on, all of them at once."""
    params, body = eqn.params, eqn.params["jaxpr"]
    length = params["length"]
    shared, carried, _ = (len(each) for each in params["ft_in"].unpack())
    if carried == 0:
        return builder.call(_vectorized(eqn, shared), list(operands))
    require(isinstance(length, int), builder, eqn, "a symbolic number of steps")
    require(length <= _MOST_STEPS, builder, eqn, f"more than {_MOST_STEPS} steps")
    fixed, carry, columns = operands[:shared], list(operands[shared : shared + carried]), operands[shared + carried :]
    rows = []
    for step in reversed(range(length)) if params["reverse"] else range(length):
        given = [_row(builder, each, step) for each in columns]
        results = builder.call(body, [*fixed, *carry, *given])
        carry, row = results[: len(carry)], results[len(carry) :]
        rows.append(row)
    if params["reverse"]:
        rows.reverse()
    stacked = [_stack(builder, var.aval, list(column)) for var, column in _columns(eqn, len(carry), rows)]
    return [*carry, *stacked]


def _vectorized(eqn: Any, shared: int) -> Any:
    """The body for all rows at once."""
    axes = (None,) * shared + (0,) * (len(eqn.invars) - shared)
    function = jax.vmap(jex.jaxpr_as_fun(eqn.params["jaxpr"]), in_axes=axes)
    stand_in: Any = jax.ShapeDtypeStruct
    return jax.make_jaxpr(function)(*(stand_in(var.aval.shape, var.aval.dtype) for var in eqn.invars))


def _columns(eqn: Any, carried: int, rows: list[list[Value]]) -> list[tuple[Any, tuple[Value, ...]]]:
    outvars = eqn.outvars[carried:]
    return list(zip(outvars, zip(*rows, strict=True) if rows else ((),) * len(outvars), strict=True))


def _row(builder: Builder, value: Value, step: int) -> Value:
    if isinstance(value, np.ndarray):
        return np.asarray(value[step])
    return builder.reshape(cut_axis(builder, value, 0, step, step + 1), value.shape[1:])


def _stack(builder: Builder, aval: Any, rows: list[Value]) -> Value:
    known = [each for each in rows if isinstance(each, np.ndarray)]
    if len(known) == len(rows):
        return np.stack(known) if known else np.zeros(aval.shape, aval.dtype)
    raised = [builder.reshape(builder.as_tensor(each), (1, *each.shape)) for each in rows]
    return concatenate_parts(builder, aval, raised, 0)


@rule("while")
def loop(builder: Builder, eqn: Any, *operands: Value) -> list[Value]:
    """As many copies of the body as the condition asks for, which must follow from constants."""
    params = eqn.params
    tests, bodies = params["cond_nconsts"], params["body_nconsts"]
    test, body, carry = operands[:tests], operands[tests : tests + bodies], list(operands[tests + bodies :])
    for _ in range(_MOST_STEPS + 1):
        (more,) = builder.call(params["cond_jaxpr"], [*test, *carry])
        require(isinstance(more, np.ndarray), builder, eqn, "a number of steps that depends on the inputs")
        if not more:
            return carry
        carry = builder.call(params["body_jaxpr"], [*body, *carry])
    require(False, builder, eqn, f"more than {_MOST_STEPS} steps")
    raise AssertionError


@rule("cond")
def branch(builder: Builder, eqn: Any, index: Value, *operands: Value) -> list[Value]:
    """The branch of that number; one that is out of range is the nearest."""
    branches = eqn.params["branches"]
    if isinstance(index, np.ndarray):
        return builder.call(branches[int(np.clip(index, 0, len(branches) - 1))], list(operands))
    cases = zip(*(builder.call(each, list(operands)) for each in branches), strict=True)
    results = []
    for var, values in zip(eqn.outvars, cases, strict=True):
        one = SimpleNamespace(outvars=[var], primitive=eqn.primitive, params={})
        results.append(select(builder, one, index, *values))
    return results
