"""What XLA is asked for on a CPU, and what it can do there."""

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

CPU_OPTIONS: dict[str, bool | int] = {
    "xla_cpu_experimental_onednn_custom_call": True,  # convolutions and products by oneDNN
    "xla_cpu_prefer_vector_width": 512,
}
"""Options of XLA for the steps of a run on a CPU. What is set in XLA_FLAGS goes before them."""


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` with `compiler_options()`. Unlike there, the backend is not started before the first call."""

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
    """Those of `CPU_OPTIONS` that this XLA knows and that the user has not set; none unless the backend is a CPU."""
    if jax.default_backend() != "cpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in CPU_OPTIONS.items() if name not in flags and _is_known(name, value)}


@functools.cache
def has_onednn(dtype: str) -> bool:
    """Whether convolutions in this type, `float32` or `bfloat16`, are computed by oneDNN.

    In bfloat16 that is so on processors with instructions for it (AVX512-BF16, AMX). On others XLA hands oneDNN a
    float32 copy, which is slower than to compute in float32 throughout.
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
    except Exception as error:  # jaxlib's class for it is not public
        if "No such compile option" in str(error):
            return False
        raise
    return True
