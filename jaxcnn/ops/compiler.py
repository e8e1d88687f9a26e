"""Options of XLA for a CPU, and whether it computes with oneDNN there."""

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

CPU_OPTIONS: dict[str, bool | int] = {
    # Convolutions and matrix products by oneDNN.
    "xla_cpu_experimental_onednn_custom_call": True,
    "xla_cpu_prefer_vector_width": 512,
}
"""Options with which a run's steps are compiled on a CPU. Options that the user sets in XLA_FLAGS take precedence."""


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` with `compiler_options()`; starts JAX's backend at the first call, not when it decorates.

    Args:
      function: what to compile.
      options: passed on to `jax.jit`.

    Returns:
      A function with the signature of `function`, and `jitted()`, which returns what `jax.jit` made.
    """

    @functools.cache
    def jitted() -> Any:
        return jax.jit(function, compiler_options=compiler_options(), **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return jitted()(*args, **kwargs)

    call.jitted = jitted  # type: ignore[attr-defined]
    return call


@functools.cache
def compiler_options() -> dict[str, bool | int]:
    """The `CPU_OPTIONS` that this XLA knows and that the user has not set; empty unless the backend is a CPU."""
    if jax.default_backend() != "cpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in CPU_OPTIONS.items() if name not in flags and _is_known(name, value)}


@functools.cache
def has_onednn(dtype: str) -> bool:
    """Whether XLA hands convolutions in a type to oneDNN on this machine. Compiles one to find out.

    In bfloat16 it does so on processors with instructions for it (AVX512-BF16, AMX). On others it hands oneDNN a
    float32 copy, which is slower than computing in float32 throughout, and counts as no here.

    Args:
      dtype: `float32` or `bfloat16`.
    """
    if jax.default_backend() != "cpu":
        return False
    arrays = [jnp.zeros(shape, dtype) for shape in ((1, 8, 8, 16, 32), (3, 3, 1, 32, 32))]
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1, 1),
        padding=((1, 1), (1, 1), (0, 0)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    lowered = jax.jit(convolve, compiler_options=compiler_options()).lower(*arrays)
    called = re.search(r"= \(?(\w+)\[.*onednn\$convolution", lowered.compile().as_text() or "")
    return called is not None and called[1] == {"float32": "f32", "bfloat16": "bf16"}[dtype]


def _is_known(name: str, value: bool | int) -> bool:
    try:
        jax.jit(jnp.negative, compiler_options={name: value}).lower(jnp.float32(0)).compile()
    except Exception as error:  # The class is not public in jaxlib.
        if "No such compile option" in str(error):
            return False
        raise
    return True
