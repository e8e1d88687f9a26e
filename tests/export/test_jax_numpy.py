"""Functions of jax.numpy, jax.lax, jax.image and jax.scipy, on floats, int32 and uint8."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from jax import lax
from jax.scipy import special

import export
from export.verify import verify


@pytest.fixture(autouse=True)
def lenient_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


VECTOR, SEQUENCE, MAP = ("batch", 6), ("batch", 5, 6), ("batch", 4, 6, 3)
HALF = np.array([1.5, -2], jnp.bfloat16)
W = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)


def ints(x):
    return jnp.round(x * 5).astype(jnp.int32)


def edges(x):
    sizes = jnp.where(x < np.inf, np.array([0, 0, np.inf, np.inf, 5.5, 2.5], np.float32), x)
    return sizes * np.array([1, -1] * 3, np.float32)


UNARY = (
    "abs absolute acos acosh arccos arcsin arcsinh arctan arctanh asin asinh atan atanh cbrt ceil cos cosh deg2rad "
    "degrees exp exp2 expm1 fabs floor i0 isfinite isinf isnan isneginf isposinf log log10 log1p log2 logical_not "
    "nan_to_num negative positive rad2deg radians reciprocal rint round sign signbit sin sinc sinh sqrt square tan "
    "tanh trunc spacing modf frexp"
).split()
REFUSED = {"i0", "spacing"}

ELEMENTWISE = {
    **{name: getattr(jnp, name) for name in UNARY if name not in REFUSED},
    "acosh": lambda x: jnp.acosh(jnp.abs(x) + 1),
    "arccosh": lambda x: jnp.arccosh(jnp.abs(x) + 1),
    "modf": lambda x: jnp.modf(x)[0],
    "frexp": lambda x: dict(zip("me", jnp.frexp(x), strict=True)),
    "copysign": lambda x: jnp.copysign(x, x[..., ::-1]),
    "ldexp": lambda x: jnp.ldexp(x, 3),
    "bitcast": lambda x: lax.bitcast_convert_type(jnp.concatenate([x, x * 0, -x * 0, x * 1e38]), jnp.uint32),
    "bitcast-edges": lambda x: lax.bitcast_convert_type(edges(x), jnp.uint32),
    "signbit-edges": lambda x: jnp.signbit(edges(x)),
    "copysign-edges": lambda x: jnp.copysign(x, edges(x)),
    "bitcast-back": lambda x: lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.int32) + (1 << 20), jnp.float32),
    "float8": lambda x: (x * 100).astype(jnp.float8_e4m3fn).astype(jnp.float32),
    "float8-tiny": lambda x: (x / 100).astype(jnp.float8_e4m3fn).astype(jnp.float32),
    "float8-infinite": lambda x: (x * 3e4).astype(jnp.float8_e5m2).astype(jnp.float32),
    "float8-scale": lambda x: edges(x).astype(jnp.float8_e8m0fnu).astype(jnp.float32),
    "cube": lambda x: x**3,
    "reciprocal-power": lambda x: (jnp.abs(x) + 1) ** -2,
    "power": lambda x: (jnp.abs(x) + 0.1) ** x,
    "rsqrt": lambda x: lax.rsqrt(jnp.abs(x) + 0.1),
    "logistic": lax.logistic,
    "erf": lax.erf,
    "erfc": lax.erfc,
    "erfc-tails": lambda x: jnp.log(lax.erfc(x * 3)),
    "erfc-product": lambda x: jnp.log(jnp.abs(x) * lax.erfc(jnp.abs(x) * 4)),
    "erf_inv": lambda x: lax.erf_inv(jnp.tanh(x)),
    "lgamma": lambda x: lax.lgamma(jnp.abs(x) + 0.5),
    "lgamma-edges": lambda x: lax.lgamma(edges(x)),
    "lgamma-large": lambda x: lax.lgamma(jnp.floor(x) * 1e37),
    "digamma-edges": lambda x: lax.digamma(edges(x)),
    "digamma-poles": lambda x: lax.digamma(jnp.floor(x * 0 - np.array([0, 1, 2, 3, 10, 1e30], np.float32))),
    "digamma": lambda x: lax.digamma(jnp.abs(x) + 0.5),
    "logit": lambda x: special.logit(jax.nn.sigmoid(x)),
    "expit": special.expit,
    "xlogy": lambda x: special.xlogy(jnp.abs(x), jnp.abs(x) + 1),
    "entr": lambda x: special.entr(jnp.abs(x)),
    "log_ndtr": lambda x: special.log_ndtr(x),
    "log_ndtr-tail": lambda x: special.log_ndtr(x - 6),
    "ndtr": lambda x: special.ndtr(x),
    "atan2": lambda x: jnp.arctan2(x, x[..., ::-1]),
    "atan2-edges": lambda x: jnp.arctan2(edges(x)[:, :, None], edges(x)[:, None, :]),
    "atan2-signs": lambda x: jnp.signbit(jnp.arctan2(edges(x)[:, :, None], edges(x)[:, None, :])),
    "hypot": lambda x: jnp.hypot(x, x[..., ::-1]),
    "logaddexp": lambda x: jnp.logaddexp(x, x[..., ::-1]),
    "logaddexp2": lambda x: jnp.logaddexp2(x, x[..., ::-1]),
    "clip": lambda x: jnp.clip(x, -0.5, 0.5),
    "clip-low": lambda x: jnp.clip(x, min=0.1),
    "clip-arrays": lambda x: jnp.clip(x, W[0], W[0] + 1),
    "maximum": lambda x: jnp.maximum(x, 0.3),
    "minimum": lambda x: jnp.minimum(x, x[..., ::-1]),
    "fmax": lambda x: jnp.fmax(x, 0.3),
    "where": lambda x: jnp.where(x > 0, x, -x),
    "where-bytes": lambda x: jnp.where(x > 0, jnp.uint8(3), jnp.uint8(250)),
    "where-bool": lambda x: jnp.where(x > 0, x < 1, x < -1),
    "where-int": lambda x: jnp.where(x > 0, ints(x), 7),
    "select": lambda x: jnp.select([x > 1, x > 0], [x, x * 2], 5.0),
    "piecewise": lambda x: jnp.piecewise(x, [x < 0, x >= 1], [lambda y: -y, lambda y: y * 2, 0.5]),
    "heaviside": lambda x: jnp.heaviside(x, 0.5),
    "float_power": lambda x: jnp.float_power(jnp.abs(x), 1.5),
    "mod": lambda x: jnp.mod(x, 0.7),
    "fmod": lambda x: jnp.fmod(x, 0.7),
    "remainder": lambda x: jnp.remainder(x, -0.7),
    "floor_divide": lambda x: jnp.floor_divide(x, 0.7),
    "divmod": lambda x: jnp.divmod(x, 0.7)[1],
    "divide-zeros": lambda x: x / np.array([0.0, -0.0, 0.0, 0.0, -0.0, 0.0], np.float32),
    "round-decimals": lambda x: jnp.round(x, 2),
    "round-away": lambda x: lax.round(jnp.round(x * 4) / 2, lax.RoundingMethod.AWAY_FROM_ZERO),
    "nextafter-less": lambda x: x <= 0,
    "isclose": lambda x: jnp.isclose(x, x + 1e-9),
    "interp": lambda x: jnp.interp(x, jnp.array([-1.0, 0.0, 2.0]), jnp.array([3.0, 1.0, 4.0])),
    "polyval": lambda x: jnp.polyval(jnp.array([1.0, -2.0, 0.5]), x),
    "digitize": lambda x: jnp.digitize(x, jnp.array([-1.0, 0.0, 1.0])),
    "searchsorted": lambda x: jnp.searchsorted(jnp.array([-1.0, 0.0, 1.0]), x),
    "searchsorted-nan": lambda x: jnp.searchsorted(jnp.array([-1.0, 0.0, 1.0]), jnp.sqrt(x), method="compare_all"),
    "searchsorted-in-nan": lambda x: jnp.searchsorted(jnp.sort(jnp.sqrt(x[0])), x, side="right"),
    "int-cast": lambda x: (x * 3).astype(jnp.int32),
    "byte-cast": lambda x: (x * 200).astype(jnp.uint8),
    "int8-cast": lambda x: (x * 200).astype(jnp.int8),
    "bool-cast": lambda x: jnp.round(x).astype(bool),
    "reduce_precision": lambda x: lax.reduce_precision(x, 8, 7),
    "bfloat16": lambda x: x.astype(jnp.bfloat16).astype(jnp.float32) * 0,
    "optimization_barrier": lambda x: lax.optimization_barrier(x) + 1,
    "custom_jvp": lambda x: jax.nn.relu(x) + 1,
    "checkpoint": lambda x: jax.checkpoint(jnp.sin)(x),
    "stop_gradient": lambda x: lax.stop_gradient(x) + 1,
    "complex-free-fft": lambda x: x @ W,
}

INTEGER = {
    "add": lambda x: x + x[..., ::-1],
    "sub": lambda x: x - x[..., ::-1],
    "mul": lambda x: x * 7,
    "neg": lambda x: -x,
    "neg-twice": lambda x: jnp.negative(jnp.negative(x)),
    "neg-thrice": lambda x: jnp.negative(-jnp.negative(x)),
    "abs": jnp.abs,
    "sign": jnp.sign,
    "square": jnp.square,
    "floor_divide": lambda x: x // 7,
    "floor_divide-negative": lambda x: x // jnp.where(x > 3, 5, 3).astype(x.dtype),
    "mod": lambda x: x % 7,
    "rem": lambda x: lax.rem(x, jnp.full_like(x, 7)),
    "div": lambda x: lax.div(x, jnp.full_like(x, 7)),
    "div-computed": lambda x: lax.div(x, x[..., ::-1] % 7),
    "div-computed-unsigned": lambda x: lax.div(x.astype(jnp.uint32), (x[..., ::-1] % 7).astype(jnp.uint32)),
    "rem-computed": lambda x: lax.rem(x, x[..., ::-1] % 7 - x % 7),
    "mod-computed": lambda x: x % (x[..., ::-1] % 5),
    "floor_divide-computed": lambda x: 100 // (x % 3),
    "div-zero": lambda x: lax.div(x, np.array([0, 1, 3, 0, 2, 5], x.dtype) + jnp.zeros_like(x)),
    "rem-zero": lambda x: lax.rem(x, jnp.full_like(x, 0)),
    "div-lowest": lambda x: lax.div(x * 0 + np.iinfo(x.dtype).min, x % 2 - 1),
    "rem-lowest": lambda x: lax.rem(x * 0 + np.iinfo(x.dtype).min, x % 2 - 1),
    "div-lowest-constant": lambda x: lax.div(x * 0 + np.iinfo(x.dtype).min, jnp.full_like(x, ~0)),
    "pow": lambda x: x**3,
    "maximum": lambda x: jnp.maximum(x, 20),
    "minimum": lambda x: jnp.minimum(x, x[..., ::-1]),
    "clip": lambda x: jnp.clip(x, 3, 90),
    "equal": lambda x: x == 3,
    "not_equal": lambda x: x != x[..., ::-1],
    "less": lambda x: x < x[..., ::-1],
    "greater_equal": lambda x: x >= 60,
    "and": lambda x: x & 12,
    "or": lambda x: x | 12,
    "xor": lambda x: x ^ x[..., ::-1],
    "not": lambda x: ~x,
    "shift_left": lambda x: x << 2,
    "shift_right": lambda x: x >> 2,
    "shift_right_logical": lambda x: lax.shift_right_logical(x, jnp.full_like(x, 2)),
    "shift_right-unsigned": lambda x: lax.shift_right_arithmetic(
        x.astype(jnp.uint32) * jnp.uint32(3 << 24), (x % 40).astype(jnp.uint32)
    ),
    "population_count": lax.population_count,
    "where": lambda x: jnp.where(x > 5, x, 5),
    "where-leaky": lambda x: jnp.where(x >= 0, x, x * 2),
    "sum": lambda x: x.sum(-1),
    "sum-wraps": lambda x: (x.astype(jnp.int32) + (1 << 30)).sum(-1),
    "sum-unsigned-wraps": lambda x: (x.astype(jnp.uint32) + jnp.uint32(1 << 31)).sum(1),
    "prod": lambda x: (x % 3 + 1).prod(-1),
    "prod-wraps": lambda x: (x * 2 + 12345).prod(-1),
    "prod-unsigned-wraps": lambda x: (x.astype(jnp.uint32) * 2 + 12345).prod(1),
    "prod-axes-wraps": lambda x: (jnp.stack([x] * 3, 1) * 2 + 123).prod((1, 2)),
    "prod-of-nothing": lambda x: x[:, :0].prod(-1),
    "max": lambda x: x.max(1),
    "min": lambda x: x.min(-1),
    "argmax": lambda x: x.argmax(-1),
    "sort": lambda x: jnp.sort(x, axis=-1),
    "argsort": lambda x: jnp.argsort(x, axis=-1),
    "cumsum": lambda x: jnp.cumsum(x, axis=1),
    "concatenate": lambda x: jnp.concatenate([x, x + 1], axis=1),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2))),
    "take": lambda x: jnp.take(x, jnp.array([1, 0]), axis=1),
    "float": lambda x: x.astype(jnp.float32) / 3,
    "mean": lambda x: x.astype(jnp.float32).mean(-1),
    "matmul": lambda x: x.astype(jnp.int32) @ jnp.arange(12, dtype=jnp.int32).reshape(6, 2),
    "or-along": lambda x: jnp.bitwise_or.reduce(x, axis=-1),
    "and-along": lambda x: jnp.bitwise_and.reduce(x | 64, axis=1),
    "xor-along": lambda x: jnp.bitwise_xor.reduce(x, axis=-1),
    "or-along-all": lambda x: lax.reduce(x, np.zeros((), x.dtype), lax.bitwise_or, (0, 1)),
    "or-of-nothing": lambda x: jnp.bitwise_or.reduce(x[:, :0], axis=1),
    "and-of-nothing": lambda x: jnp.bitwise_and.reduce(x[:, :0], axis=1),
    "any": lambda x: (x > 100).any(-1),
    "any-of-nothing": lambda x: (x[:, :0] > 100).any(-1),
    "all-of-nothing": lambda x: (x[:, :0] > 100).all(-1),
    "all": lambda x: (x > 2).all(-1),
    "cast-int8": lambda x: x.astype(jnp.int8),
    "cast-uint32": lambda x: x.astype(jnp.uint32) * 3,
    "cast-int16": lambda x: x.astype(jnp.int16) * 300,
    "cast-bool": lambda x: x.astype(bool),
    "cast-float8": lambda x: x.astype(jnp.float8_e4m3fn).astype(jnp.float32),
    "cast-float8-infinite": lambda x: (x * 300).astype(jnp.float8_e5m2).astype(jnp.float32),
    "identity": lambda x: x,
    "transpose": lambda x: x.T,
    "true_divide": lambda x: x / 2,
    "flip": lambda x: jnp.flip(x, 1),
    "one_hot": lambda x: jax.nn.one_hot(x, 5),
    "at-subtract": lambda x: x.at[:, np.array([0, 2, 2])].subtract(x[:, :1]),
    "bit-count": lambda x: jnp.bitwise_count(x),
    "clz": lax.clz,
}

REDUCTIONS = {
    **{
        name: getattr(jnp, name)
        for name in (
            "sum mean max min prod var std argmax argmin any all ptp median nansum nanmean nanmax nanmin "
            "nanargmax nanstd amax amin count_nonzero average"
        ).split()
    },
    "logsumexp": jax.nn.logsumexp,
    "norm": jnp.linalg.norm,
    "quantile": lambda x, axis: jnp.quantile(x, 0.3, axis=axis),
    "percentile": lambda x, axis: jnp.percentile(x, jnp.array([20.0, 80.0]), axis=axis),
    "sum-keepdims": lambda x, axis: x.sum(axis, keepdims=True),
    "cumsum": jnp.cumsum,
    "cumprod": jnp.cumprod,
    "cummax": lambda x, axis: lax.cummax(x, axis % x.ndim),
    "cummin": lambda x, axis: lax.cummin(x, axis % x.ndim),
    "cumsum-reverse": lambda x, axis: lax.cumsum(x, axis % x.ndim, reverse=True),
    "cumlogsumexp": lambda x, axis: lax.cumlogsumexp(x, axis % x.ndim),
    "cumlogsumexp-edges": lambda x, axis: lax.cumlogsumexp(
        jnp.stack([jnp.roll(edges(x), i, -1) for i in range(6)], 1), axis % 3 + 1
    ),
    "cumlogsumexp-nothing": lambda x, axis: lax.cumlogsumexp(jnp.where(x < 0.5, -jnp.inf, x), axis % x.ndim),
    "sort": jnp.sort,
    "sort-descending": lambda x, axis: jnp.sort(x, axis=axis, descending=True),
    "argsort": jnp.argsort,
    "argsort-descending": lambda x, axis: jnp.argsort(x, axis=axis, descending=True),
    "diff": lambda x, axis: jnp.diff(x, axis=axis),
    "flip": jnp.flip,
    "roll": lambda x, axis: jnp.roll(x, 2, axis),
    "softmax": lambda x, axis: jax.nn.softmax(x, axis),
    "repeat": lambda x, axis: jnp.repeat(x, 3, axis),
    "associative_scan": lambda x, axis: lax.associative_scan(jnp.add, x, axis=axis),
    "take_along_axis": lambda x, axis: jnp.take_along_axis(x, jnp.argsort(x, axis=axis), axis=axis),
    "top_k": lambda x, axis: lax.top_k(x.swapaxes(axis, -1), 2)[0],
    "top_k-indices": lambda x, axis: lax.top_k(x.swapaxes(axis, -1), 2)[1],
}

SHAPES = {
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "reshape-merge": lambda x: x.reshape(-1, 6),
    "reshape-ravel": jnp.ravel,
    "transpose": lambda x: x.transpose(0, 3, 1, 2),
    "transpose-batch": lambda x: x.transpose(3, 0, 2, 1),
    "moveaxis": lambda x: jnp.moveaxis(x, 1, -1),
    "reshape-columns": lambda x: x.reshape((x.shape[0], 18, 4), order="F"),
    "ravel-columns": lambda x: jnp.ravel(x, order="F"),
    "reshape-dimensions": lambda x: lax.reshape(x, (6, x.shape[0] * 12), (2, 0, 3, 1)),
    "expand": lambda x: x[:, None, ..., None],
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "broadcast": lambda x: jnp.broadcast_to(x[:, :1], x.shape) + 1,
    "tile": lambda x: jnp.tile(x, (1, 2, 1, 2)),
    "tile-batch": lambda x: jnp.tile(x, (2, 1, 1, 1)),
    "tile-known": lambda x: jnp.tile(W, (x.shape[0], 2, 1)),
    "repeat-list": lambda x: jnp.repeat(x, np.array([1, 2, 0, 3]), axis=1, total_repeat_length=6),
    "repeat-batch": lambda x: jnp.repeat(x, 2, axis=0),
    "concatenate": lambda x: jnp.concatenate([x, x * 2, jnp.zeros_like(x)], axis=-1),
    "concatenate-batch": lambda x: jnp.concatenate([x, x + 1], axis=0),
    "stack": lambda x: jnp.stack([x, -x], axis=2),
    "stack-first": lambda x: jnp.stack([x, -x]),
    "hstack": lambda x: jnp.hstack([x, x]),
    "dstack": lambda x: jnp.dstack([x, x]),
    "split": lambda x: sum(jnp.split(x, 2, axis=1)),
    "split-places": lambda x: jnp.split(x, [1, 4], axis=2)[1],
    "array_split": lambda x: dict(zip("abcd", jnp.array_split(x, 4, axis=2), strict=True)),
    "unstack": lambda x: jnp.unstack(x, axis=1)[2],
    "rot90": lambda x: jnp.rot90(x, axes=(1, 2)),
    "flip": lambda x: jnp.flip(x, (1, 2)),
    "fliplr": jnp.fliplr,
    "roll": lambda x: jnp.roll(x, (1, -2), (1, 2)),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=0.5),
    **{
        f"pad-{mode}": lambda x, mode=mode: jnp.pad(x, ((0, 0), (1, 2), (2, 1), (0, 0)), mode=mode)
        for mode in "edge reflect symmetric wrap linear_ramp maximum mean minimum median empty".split()
    },
    "pad-crop": lambda x: lax.pad(x, 0.0, ((0, 0, 0), (-1, 0, 0), (2, -1, 0), (0, 0, 0))),
    "pad-gaps": lambda x: lax.pad(x, 1.0, ((0, 0, 0), (0, 1, 2), (0, 0, 1), (0, 0, 0))),
    "index": lambda x: x[:, -1, 2],
    "index-step": lambda x: x[:, ::2, 1::3],
    "index-negative": lambda x: x[:, ::-1, -3:],
    "index-array": lambda x: x[:, np.array([2, 0, 1])],
    "index-arrays": lambda x: x[:, np.array([2, 0]), np.array([1, 5])],
    "index-mixed": lambda x: x[:, np.array([2, 0]), :, np.array([1, 2])],
    "index-matrix": lambda x: x[:, np.array([[2, 0], [1, 1]])],
    "index-mask": lambda x: x[:, np.array([True, False, True, True])],
    "index-batch": lambda x: x[0],
    "index-batch-last": lambda x: x[-1],
    "index-batch-slice": lambda x: x[:1],
    "index-batch-rest": lambda x: x[1:],
    "index-batch-half": lambda x: x[: x.shape[0] // 2],
    "eye-batch": lambda x: jnp.eye(x.shape[0]),
    "gram-batch": lambda x: jax.nn.softmax(x[:, 0, 0] @ x[:, 0, 0].T),
    "cut-to-nothing": lambda x: jnp.concatenate([x[:, :0], x], axis=1),
    "index-rows": lambda x: x[jnp.arange(x.shape[0]), jnp.argmax(x[:, :, 0, 0], -1)],
    "vmap-dynamic": lambda x: jax.vmap(lambda r: lax.dynamic_slice_in_dim(r, jnp.argmax(r[:, 0, 0]), 2))(x),
    "vmap-update": lambda x: jax.vmap(
        lambda r: lax.dynamic_update_slice_in_dim(r, r[:2] * 9, jnp.argmax(r[:, 0, 0]), 0)
    )(x),
    "vmap-roll": lambda x: jax.vmap(lambda r: jnp.roll(r, jnp.argmax(r[:, 0, 0]), 0))(x),
    "take": lambda x: jnp.take(x, np.array([[0, 3], [1, 1]]), axis=1),
    "take-clip": lambda x: jnp.take(x, np.array([0, 9]), axis=1, mode="clip"),
    "take-wrap": lambda x: jnp.take(x, np.array([0, 9]), axis=1, mode="wrap"),
    "take-fill": lambda x: jnp.take(x, np.array([0, 9]), axis=1, mode="fill", fill_value=-1.0),
    "take-computed": lambda x: jnp.take(x, ints(x[:, 0, 0, 0]) % 4, axis=1),
    "take-table": lambda x: jnp.take(W, ints(x[..., 0]) % 6, axis=0),
    "take-outside": lambda x: jnp.take(W, ints(x[..., 0]), axis=0, fill_value=0.0),
    "take-outside-bool": lambda x: jnp.take(x > 9, ints(x[..., 0]), axis=1),
    "take-outside-bool-false": lambda x: jnp.take(x > 9, ints(x[..., 0]), axis=1, fill_value=False),
    "index-outside-bool": lambda x: (x > 9).at[:, ints(x[0, :, 0, 0])].get(mode="fill"),
    "index-outside": lambda x: jnp.asarray(W)[ints(x[..., 0]) * 3],
    "index-outside-known": lambda x: x[:, 9] + x[:, -9, 5:],
    "index-outside-batch": lambda x: x[7],
    "index-outside-one": lambda x: x.at[:, np.array([9, 0]), np.array([0, 1])].get(mode="fill"),
    "index-outside-both": lambda x: x[:, ints(x[0, :3, 0, 0]) * 5, ints(x[0, 0, 0]) * 9],
    "map_coordinates": lambda x: jax.vmap(
        lambda r: jax.scipy.ndimage.map_coordinates(r[..., 0], [r[..., 1] * 4, r[..., 2] * 9], 1, mode="constant")
    )(x),
    "index-computed": lambda x: jnp.asarray(W)[ints(x[..., 0]) % 6, ints(x[..., 1]) % 6],
    "dynamic_slice": lambda x: lax.dynamic_slice_in_dim(x, ints(x[0, 0, 0, 0]), 2, axis=2),
    "dynamic_index": lambda x: lax.dynamic_index_in_dim(x, jnp.abs(ints(x[0, 0, 0, 0])), axis=2, keepdims=False),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice_in_dim(x, x[:, :, :2] * 9, ints(x[0, 0, 0, 0]), axis=2),
    "dynamic_update_slice-whole": lambda x: lax.dynamic_update_slice_in_dim(x, x * 9, ints(x[0, 0, 0, 0]), axis=2),
    "at-set": lambda x: x.at[:, 0].set(1.0),
    "at-set-block": lambda x: x.at[:, 1:3, ::2].set(x[:, 1:3, :3]),
    "at-add": lambda x: x.at[:, np.array([0, 2, 2])].add(2.0),
    "at-multiply": lambda x: x.at[:, :, 1].multiply(3.0),
    "at-computed": lambda x: jnp.zeros((6, 3)).at[ints(x[..., 0]) % 6].add(x),
    "at-computed-set": lambda x: jnp.zeros((9, 3)).at[jnp.abs(ints(x[0, :, 0, 0]))].set(1.0, mode="drop"),
    "at-outside": lambda x: x.at[:, ints(x[0, :3, 0, 0]) * 5, ints(x[0, 0, 0]) * 9].add(2.0),
    "at-vmap-twice": lambda x: jax.vmap(jax.vmap(lambda r: r.at[jnp.argmax(r[:, 0])].set(9.0)))(x),
    "segment_sum": lambda x: jax.ops.segment_sum(x[0, 0], np.array([0, 1, 0, 2, 2, 1]), num_segments=3),
    "tril": lambda x: jnp.tril(x),
    "triu": lambda x: jnp.triu(x, 1),
    "diagonal": lambda x: jnp.diagonal(x, axis1=1, axis2=2),
    "trace": lambda x: jnp.trace(x, axis1=1, axis2=2),
    "eye": lambda x: x[..., :3, :] @ jnp.eye(3),
    "arange": lambda x: x + jnp.arange(3.0),
    "arange-batch": lambda x: x + jnp.arange(x.shape[0], dtype=jnp.float32)[:, None, None, None],
    "arange-double": lambda x: jnp.arange(x.shape[0] * 2),
    "linspace": lambda x: x * jnp.linspace(0, 1, 6)[:, None],
    "meshgrid": lambda x: x + jnp.meshgrid(jnp.arange(6.0), jnp.arange(4.0))[0][..., None],
    "full": lambda x: jnp.full((x.shape[0], 2), 3.0),
    "ones_like": lambda x: jnp.ones_like(x) * 3,
    "constant": lambda x: {"z": x, "constant": jnp.arange(3.0)},
    "same": lambda x: {"a": x, "b": x, "c": x + 1},
    "mean-batch": lambda x: x.mean(0),
    "atleast": lambda x: jnp.atleast_3d(x.mean((1, 2, 3))),
    "einsum-image": lambda x: jnp.einsum("bhwc,wd->bhdc", x, W),
    "einsum-trace": lambda x: jnp.einsum("biic->bc", x[:, :, :4]),
    "einsum-outer": lambda x: jnp.einsum("bhwc,bhwd->bcd", x, x),
    "einsum-ellipsis": lambda x: jnp.einsum("...wc,wd->...cd", x, W),
    "einsum-three": lambda x: jnp.einsum("bhwc,wd,bhdc->bc", x, W, x),
    "matmul": lambda x: x.swapaxes(-1, -2) @ W,
    "matmul-bool": lambda x: (x > 1) @ (x.swapaxes(-1, -2) > 1),
    "einsum-bool": lambda x: jnp.einsum("bhwc,wd->bd", x > 1, W > 1.5),
    "matmul-self": lambda x: x @ x.swapaxes(-1, -2),
    "dot": lambda x: jnp.dot(x.swapaxes(-1, -2), W),
    "tensordot": lambda x: jnp.tensordot(x, W, axes=([2], [0])),
    "inner": lambda x: jnp.inner(x.swapaxes(-1, -2), W),
    "outer": lambda x: jnp.outer(x[0, 0, 0], x[0, 0, 1]),
    "vdot": lambda x: jnp.vdot(x, x),
    "kron": lambda x: jnp.kron(x[0, 0], W),
    "cross": lambda x: jnp.cross(x, x[..., ::-1]),
    "cov": lambda x: jnp.cov(x[0, 0]),
    "cdist": lambda x: jnp.sqrt(((x[:, :, :, None] - x[:, :, None]) ** 2).sum(-1) + 1e-6),
    "convolve": lambda x: jnp.convolve(x[0, 0, :, 0], jnp.array([1.0, 2.0, 3.0])),
    "vmap": lambda x: jax.vmap(lambda row: jnp.sort(row, axis=0).swapaxes(1, 2) @ row)(x),
    "vmap-conv": lambda x: jax.vmap(lambda row: lax.conv(row[None], np.ones((2, 4, 3, 1), np.float32), (1, 1), "SAME"))(
        x
    ),
    "nested-jit": lambda x: jax.jit(lambda y: jax.jit(jnp.tanh)(y) * 2)(x),
    "gradient": jax.grad(lambda x: jnp.sum(jnp.tanh(x) ** 2)),
    "gradient-conv": jax.grad(
        lambda x: jnp.sum(
            lax.conv_general_dilated(
                x, np.ones((3, 3, 3, 2), np.float32), (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            ** 2
        )
    ),
    "hessian-free": lambda x: jax.jvp(jnp.sin, (x,), (jnp.ones_like(x),))[1],
}

LOOPS = {
    "scan": lambda x: lax.scan(lambda c, row: (c + row, c * row), x[:, 0], x.swapaxes(0, 1))[1],
    "scan-reverse": lambda x: lax.scan(lambda c, row: (c + row, c), x[:, 0], x.swapaxes(0, 1), reverse=True)[1],
    "scan-carry": lambda x: lax.scan(lambda c, row: (jnp.tanh(c @ W + row), None), x[:, 0], x.swapaxes(0, 1))[0],
    "scan-constants": lambda x: lax.scan(lambda c, w: (jnp.tanh(c @ w), c), x, jnp.stack([W, W.T]))[0],
    "scan-nothing": lambda x: lax.scan(lambda _, __: (None, x * 2), None, None, length=3)[1],
    "scan-half-constant": lambda x: lax.scan(
        lambda c, row: (c * HALF + 1, row * c.sum().astype(row.dtype)), HALF, x.swapaxes(0, 1)
    )[1],
    "scan-half-rows": lambda x: lax.scan(
        lambda c, _: (c * HALF[1] + jnp.round(x[0, 0, 0]).astype(c.dtype), c), HALF[0], length=3
    )[1].astype(x.dtype),
    "while-half": lambda x: lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + HALF[0], c[1] * c[0].astype(x.dtype)), (HALF[1], x)
    )[1],
    "fori_loop": lambda x: lax.fori_loop(0, 3, lambda i, c: c * 2 + i, x),
    "while-counted": lambda x: lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, c[1] * 1.5), (0, x))[1],
    "cond": lambda x: lax.cond(x.sum() > 0, lambda y: y * 2, lambda y: y - 1, x),
    "cond-pytree": lambda x: lax.cond(x.sum() > 0, lambda y: {"a": y, "b": y + 1}, lambda y: {"a": -y, "b": y}, x),
    "switch": lambda x: lax.switch(ints(x[0, 0, 0]), [lambda y: y, lambda y: y * 2, lambda y: -y], x),
    "map-batch": lambda x: lax.map(lambda row: jnp.sort(row @ W, axis=0), x),
    "map-two": lambda x: lax.map(lambda rows: {"a": rows[0] * W[0], "b": rows[1].sum()}, (x, x[:, 0])),
    "map-static": lambda x: lax.map(lambda row: jnp.sort(row), x.swapaxes(0, 1)),
}

LAX = {
    "reduce": lambda x: lax.reduce(x, np.float32(-np.inf), lax.max, (1,)),
    "reduce-product": lambda x: lax.reduce(x, np.float32(1), lax.mul, (1, 2)),
    "reduce_window-min": lambda x: lax.reduce_window(x, np.float32(np.inf), lax.min, (1, 2, 2), (1, 1, 2), "SAME"),
    "reduce_window-dilated": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2), (1, 1, 1), "VALID", window_dilation=(1, 2, 2)
    ),
    "reduce_window-sum-dilated": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 2, 2), (1, 1, 1), "SAME", window_dilation=(1, 2, 2)
    ),
    "reduce_window-wide": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2), (1, 1, 1), ((0, 0), (3, 0), (0, 2))
    ),
    "reduce_window-dilated-wide": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2), (1, 1, 1), ((0, 0), (2, 0), (0, 1)), window_dilation=(1, 3, 2)
    ),
    "reduce_window-outside": lambda x: lax.reduce_window(
        x[:, :1], -jnp.inf, lax.max, (1, 2, 1), (1, 1, 1), ((0, 0), (1, 1), (0, 0)), window_dilation=(1, 2, 1)
    ),
    "reduce_window-bool": lambda x: {
        str(i): lax.reduce_window(x > 0, start, fn, (1, 2, 2), (1, 1, 2), "SAME")
        for i, (start, fn) in enumerate([(False, lax.max), (True, lax.min), (True, lax.max), (False, lax.min)])
    },
    "reduce_window-crop": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2), (1, 1, 1), ((0, 0), (-1, 1), (0, -2))
    ),
    "reduce_window-min-crop": lambda x: lax.reduce_window(
        x, jnp.inf, lax.min, (1, 2, 2), (1, 1, 1), ((0, 0), (-1, 1), (0, -2))
    ),
    "reduce_window-all": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 3), (1, 2, 2), "SAME"),
    "reduce_window-last": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3), (1, 1, 1), "SAME"),
    "reduce_window-start": lambda x: lax.reduce_window(x, 2.0, lax.add, (1, 2, 3), (1, 1, 2), "SAME"),
    "reduce_window-product": lambda x: lax.reduce_window(x, 2.0, lax.mul, (1, 2, 3), (1, 1, 2), "SAME"),
    "reduce_window-base": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 2, 2), (1, 1, 1), "VALID", base_dilation=(1, 2, 1)
    ),
    "reduce_window-two": lambda x: lax.reduce_window(x[:, 0], -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"),
    "cumulative-window": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 5, 1), (1, 1, 1), ((0, 0), (4, 0), (0, 0))),
    "select_n-integer": lambda x: lax.select_n(ints(x) % 3, x, x * 2, -x),
    "select_n-outside": lambda x: lax.select_n(np.full((5, 6), 7, np.int32), x[0], x[0] * 2, -x[0]),
    "select_n-half-constant": lambda x: (
        lax.select_n(np.zeros(2, bool), HALF, x[0, 0, :2].astype(HALF.dtype)) * HALF
    ).astype(x.dtype),
    "clamp": lambda x: lax.clamp(x[:, :1] * 0 - 0.5, x[:, :1], x[:, :1] * 0 + 0.5),
    "clamp-bool": lambda x: lax.clamp(x > 1, x > 0, x[:, ::-1] > -1),
    "batch_matmul": lambda x: lax.batch_matmul(x, x.swapaxes(1, 2)),
    "dot_general-int": lambda x: lax.dot_general(ints(x), ints(x), (((2,), (2,)), ((0,), (0,)))),
    "dot_general-mixed": lambda x: lax.dot_general(
        x, x, (((1,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32
    ),
    "iota": lambda x: x + lax.broadcasted_iota(jnp.float32, (5, 6), 1),
    "sort-two": lambda x: lax.sort((ints(x), x), dimension=2, num_keys=1)[1],
    "sort-keys": lambda x: lax.sort((ints(x) % 2, x), dimension=1, num_keys=2)[1],
    "conv-1d": lambda x: lax.conv_general_dilated(
        x, np.ones((3, 6, 2), np.float32), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "conv-negative": lambda x: lax.conv_general_dilated(
        x, np.ones((3, 6, 2), np.float32), (1,), ((-1, 2),), dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "conv-computed-kernel": lambda x: lax.conv_general_dilated(
        x, x[0, :3, :, None] * np.ones((1, 1, 2), np.float32), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "conv-patches": lambda x: lax.conv_general_dilated_patches(
        x, (3,), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "bitcast": lambda x: lax.bitcast_convert_type(jnp.float32(2.5), jnp.int32) + ints(x),
    "expand_dims": lambda x: lax.expand_dims(x, (1, 4)),
    "collapse": lambda x: lax.collapse(x, 1),
    "rng-constant": lambda x: x + jax.random.normal(jax.random.key(0), (5, 6)),
    "platform": lambda x: lax.platform_dependent(x, cpu=lambda y: y + 1, default=lambda y: y + 1),
    "approx_max_k": lambda x: lax.approx_max_k(x, 2)[0],
}

NWC = ("NWC", "WIO", "NWC")
EMPTY = {
    "pad": lambda x: lax.pad(x[:, :0], 1.0, ((0, 0, 0), (0, 1, 1), (0, 0, 2))),
    "pad-crop": lambda x: lax.pad(x, 1.0, ((0, 0, 0), (-3, -6, 1), (0, 0, 0))),
    "conv": lambda x: lax.conv_general_dilated(x, np.ones((9, 6, 2), np.float32), (1,), "VALID", dimension_numbers=NWC),
    "conv-of-padding": lambda x: lax.conv_general_dilated(
        x[:, :0], np.ones((2, 6, 2), np.float32), (1,), [(2, 2)], dimension_numbers=NWC
    ),
    "conv-of-no-channels": lambda x: lax.conv_general_dilated(
        x[..., :0], np.ones((2, 0, 2), np.float32), (1,), "SAME", dimension_numbers=NWC
    ),
    "reduce_window": lambda x: lax.reduce_window(
        x, 1.0, lax.mul, (1, 3, 2), (1, 2, 1), "VALID", window_dilation=(1, 3, 1)
    ),
    "max_pool": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 7, 1), (1, 1, 1), "VALID"),
    "max_pool-of-padding": lambda x: lax.reduce_window(
        x[:, :0], -jnp.inf, lax.max, (1, 2, 1), (1, 1, 1), ((0, 0), (1, 1), (0, 0))
    ),
    "igamma": lambda x: lax.igamma(x[:, :0], x[:, :0]),
    "max": lambda x: lax.reduce_max(x[:, :0], axes=(1,)),
    "max-bytes": lambda x: lax.reduce_max(x[:, :0].astype(jnp.int8), axes=(1,)),
    "min-bool": lambda x: lax.reduce_min(x[:, :0] > 0, axes=(1,)),
    "logsumexp": lambda x: jax.nn.logsumexp(x[:, :0], axis=1),
    "matmul": lambda x: x[..., :0] @ np.zeros((0, 4), np.float32),
    "matmul-vector": lambda x: x[:, 0, :0] @ np.zeros((0, 4), np.float32) + 1,
    "matmul-self": lambda x: x[..., :0] @ x[..., :0].swapaxes(1, 2),
    "scan": lambda x: lax.scan(lambda c, row: (c + row, c), x[:, 0], x.swapaxes(0, 1)[:0])[1],
    "scan-carry": lambda x: lax.scan(lambda c, row: (c + row, c), x[:, 0], x.swapaxes(0, 1)[:0])[0],
    "update": lambda x: lax.dynamic_update_slice_in_dim(x, x[:, :0], ints(x[0, 0, 0]), axis=1),
    "joined": lambda x: jnp.concatenate([x[:, :0].swapaxes(1, 2) @ np.ones((0, 3), np.float32), x.swapaxes(1, 2)], 2),
}


def image(shape, method, **options):
    return lambda x: jax.image.resize(x, (x.shape[0], *shape, 3), method, **options)


IMAGES = {
    f"{method}-{shape}": image(shape, method)
    for method in ("nearest", "linear", "bilinear", "cubic", "lanczos3", "lanczos5")
    for shape in ((8, 12), (2, 3), (5, 4))
} | {
    "no-antialias": image((2, 3), "bilinear", antialias=False),
    "scale_and_translate": lambda x: jax.image.scale_and_translate(
        x, (x.shape[0], 6, 6, 3), (1, 2), jnp.array([1.5, 1.0]), jnp.array([0.5, -0.5]), "linear"
    ),
    "map_coordinates": lambda x: jax.scipy.ndimage.map_coordinates(
        x[0, :, :, 0], [jnp.array([0.5, 1.2]), jnp.array([2.5, 3.1])], order=1
    ),
}


@pytest.mark.filterwarnings("ignore:invalid value|divide by zero")
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(exported, name):
    exported(ELEMENTWISE[name], VECTOR, tolerance=2e-6)


def test_no_large_integers_are_compared_in_a_cast(exported):
    # The Min of onnxruntime 1.27 compares 32 of 64 bits.
    fn = lambda x: {"int": (x * 3e9).astype(jnp.int32), "unsigned": (x * 3e9).astype(jnp.uint32)}  # noqa: E731
    assert exported(fn, VECTOR, tolerance=0).ops["Min"] == 0


def test_no_nan_is_lost_in_a_maximum(exported):
    # onnxruntime 1.17 returns the number.
    assert exported(lambda x: lax.erf_inv(x * 2), VECTOR).ops["Max"] == 0


def test_extrema_of_uint32_are_found_in_32_bits(exported):
    def fn(x):
        y = x * jnp.uint32(0x9E3779B1)
        return {
            "maximum": jnp.maximum(y, y[:, ::-1]),
            "clamp": lax.clamp(jnp.uint32(9), y, jnp.uint32(1 << 31)),
            "max": y.max(1),
            "min": y.min(0),
            "argmax": y.argmax(1),
            "cummin": lax.cummin(y[:, :2], 1),
            "window": lax.reduce_window(y, np.uint32(0), lax.max, (1, 2), (1, 2), "SAME"),
            "window-start": lax.reduce_window(y, np.uint32(1 << 31), lax.min, (1, 2), (1, 2), "SAME"),
            "sign": jnp.sign(y),
        }

    model = exported(fn, VECTOR, dtype="uint32", tolerance=0)
    # These operators compare 32 of 64 bits in onnxruntime 1.27.
    inferred = onnx.shape_inference.infer_shapes(model.proto).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in inferred}
    operands = [
        types[node.input[0]] for node in model.proto.graph.node if "Max" in node.op_type or "Min" in node.op_type
    ]
    assert set(operands) == {onnx.TensorProto.INT32}
    assert len(operands) == 10
    assert model.ops["Sign"] == 0


@pytest.mark.parametrize("kind", ["bytes", "ints"])
@pytest.mark.parametrize("name", INTEGER)
def test_integers(exported, name, kind):
    fn = INTEGER[name]
    if kind == "bytes":
        exported(fn, VECTOR, dtype="uint8")
    else:
        exported(lambda x: fn(jnp.round(x * 50).astype(jnp.int32)), VECTOR)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_along_an_axis(exported, name, axis):
    exported(lambda x: REDUCTIONS[name](x, axis=axis), SEQUENCE)


@pytest.mark.parametrize("name", SHAPES)
def test_shape(exported, name):
    exported(SHAPES[name], MAP)


@pytest.mark.parametrize("name", LOOPS)
def test_loop(exported, name):
    def fn(x):
        result = LOOPS[name](x)
        return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(result))}

    exported(fn, SEQUENCE)


@pytest.mark.parametrize("name", LAX)
def test_lax(exported, name):
    exported(LAX[name], SEQUENCE)


def test_no_nan_is_compared_in_a_sort(exported):
    def fn(x):
        some = jnp.where(x > 0.5, jnp.nan, x)
        more = jnp.where(x < -0.5, jnp.inf, some)
        return {"sorted": jnp.sort(more), "order": jnp.argsort(more, descending=True), "two": lax.top_k(some, 2)[0]}

    # onnxruntime 1.27 puts all numbers beside a NaN in any order.
    model = exported(fn, VECTOR)
    made = {name: node.op_type for node in model.proto.graph.node for name in node.output}
    assert {made[node.input[0]] for node in model.nodes("TopK")} == {"Where", "Cast"}


def test_empty_arrays(exported):
    model = exported(lambda x: {name: fn(x) for name, fn in EMPTY.items()}, SEQUENCE)
    # Old versions of onnxruntime refuse these operators without elements, or make anything of them.
    assert not {"Gemm", "MatMul", "Conv", "MaxPool", "ReduceMax", "ReduceMin", "ScatterND"} & set(model.ops)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.tensordot(x[1:, 1:], x[0], 0),
        lambda x: (x[1:, None] * x[None]).reshape(x.shape[1], -1, x.shape[0]),
        lambda x: lax.pad(x[:, 1:], 1.0, ((0, 0, 2), (0, 1, 1))),
        lambda x: {
            f"{fn.__name__}-{dtype}": fn(x[1:].astype(dtype), axes=(0,))
            for fn in (lax.reduce_max, lax.reduce_min)
            for dtype in ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32")
        },
    ],
)
def test_a_size_that_is_0_for_a_batch_of_one(tmp_path, fn):
    inputs = {"x": ("float32", ("batch", "batch"))}
    onnx.save(export.to_onnx(fn, inputs), tmp_path / "model.onnx")
    assert verify(tmp_path / "model.onnx", fn, inputs) == 0


@pytest.mark.parametrize("name", IMAGES)
def test_image(exported, name):
    exported(IMAGES[name], MAP)
