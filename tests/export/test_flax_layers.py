"""Every layer of flax.linen, in the variants that its arguments allow."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from jaxcnn.models import layers


@pytest.fixture(autouse=True)
def lenient_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


VECTOR, SEQUENCE, MAP, VOLUME = ("batch", 6), ("batch", 5, 6), ("batch", 7, 6, 4), ("batch", 4, 5, 4, 2)
PADDINGS = ["SAME", "VALID", "CIRCULAR", "REFLECT", "SAME_LOWER", 1, ((2, 0), (1, 3))]
norm = functools.partial(nn.BatchNorm, use_running_average=True)


def conv_cases():
    for padding in PADDINGS:
        yield f"Conv-{padding}", nn.Conv(5, (3, 2), padding=padding), MAP
        yield f"Conv-strided-{padding}", nn.Conv(5, (3, 3), strides=2, padding=padding), MAP
    yield "Conv-causal", nn.Conv(5, (3,), padding="CAUSAL"), SEQUENCE
    yield "Conv-dilated", nn.Conv(5, (3, 3), kernel_dilation=(2, 1)), MAP
    yield "Conv-input-dilated", nn.Conv(5, (3, 3), input_dilation=(2, 3), padding=((1, 0), (2, 1))), MAP
    yield "Conv-input-dilated-strided", nn.Conv(5, (3, 3), strides=2, input_dilation=2, padding=((1, 1), (0, 2))), MAP
    yield "Conv-grouped", nn.Conv(6, (3, 3), feature_group_count=2), MAP
    yield "Conv-depthwise", nn.Conv(8, (3, 3), feature_group_count=4, strides=2), MAP
    yield "Conv-pointwise", nn.Conv(8, (1, 1), use_bias=False), MAP
    yield "Conv-masked", nn.Conv(5, (3,), mask=np.triu(np.ones((3, 6, 5), np.float32))), SEQUENCE
    yield "Conv-1d", nn.Conv(5, (3,)), SEQUENCE
    yield "Conv-3d", nn.Conv(5, (3, 2, 3)), VOLUME
    yield "Conv-no-batch", nn.Conv(5, (3, 3)), (7, 6, 4)
    yield "Conv-two-batches", nn.Conv(5, (3, 3)), ("batch", 2, 7, 6, 4)
    yield "ConvLocal", nn.ConvLocal(5, (3, 3)), MAP
    yield "ConvLocal-strided", nn.ConvLocal(5, (2, 3), strides=2, padding="VALID"), MAP
    yield "ConvLocal-1d", nn.ConvLocal(5, (3,), kernel_dilation=2), SEQUENCE


def transposed_cases():
    for padding in ("SAME", "VALID", "CIRCULAR", 1, ((2, 0), (1, 3))):
        for strides in (1, 2, (3, 2)):
            strides_ = (strides, strides) if isinstance(strides, int) else strides
            yield f"ConvTranspose-{padding}-{strides}", nn.ConvTranspose(5, (3, 3), strides_, padding=padding), MAP
    yield "ConvTranspose-short", nn.ConvTranspose(5, (1, 2), (3, 3), padding="VALID"), MAP
    yield "ConvTranspose-dilated", nn.ConvTranspose(5, (3, 3), (2, 2), kernel_dilation=(2, 2)), MAP
    yield "ConvTranspose-kernel", nn.ConvTranspose(5, (3, 2), (2, 2), transpose_kernel=True), MAP
    yield "ConvTranspose-1d", nn.ConvTranspose(5, (4,), (2,)), SEQUENCE
    yield "ConvTranspose-3d", nn.ConvTranspose(3, (2, 2, 2), (2, 2, 2)), VOLUME
    yield "ConvTranspose-no-batch", nn.ConvTranspose(5, (3, 3), (2, 2)), (7, 6, 4)


def dense_cases():
    yield "Dense", nn.Dense(5), VECTOR
    yield "Dense-static", nn.Dense(5), (6,)
    yield "Dense-map", nn.Dense(5, use_bias=False), MAP
    yield "DenseGeneral", nn.DenseGeneral((2, 3)), SEQUENCE
    yield "DenseGeneral-axes", nn.DenseGeneral((2, 3), axis=(1, 3)), MAP
    yield "DenseGeneral-batch", nn.DenseGeneral(3, axis=-1, batch_dims=(0,)), (3, 5, 6)
    yield "Einsum", nn.Einsum((4, 6, 3), "btd,ndh->btnh", use_bias=False), SEQUENCE
    yield "Einsum-bias", nn.Einsum((6, 3), "...d,dh->...h"), SEQUENCE
    yield "PReLU", nn.PReLU(), MAP
    yield "Dropout", nn.Dropout(0.5, deterministic=True), MAP
    yield (
        "Sequential",
        nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3), functools.partial(nn.softmax, axis=-1)]),
        VECTOR,
    )


def norm_cases():
    for shape in (VECTOR, SEQUENCE, MAP):
        rank = len(shape)
        yield f"BatchNorm-{rank}", norm(), shape
        yield f"LayerNorm-{rank}", nn.LayerNorm(), shape
        yield f"RMSNorm-{rank}", nn.RMSNorm(), shape
        yield f"GroupNorm-{rank}", nn.GroupNorm(num_groups=2), shape
    yield "BatchNorm-axis", norm(axis=1), MAP
    yield "BatchNorm-plain", norm(use_bias=False, use_scale=False), MAP
    yield "LayerNorm-axes", nn.LayerNorm(reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3)), MAP
    yield "LayerNorm-slow", nn.LayerNorm(use_fast_variance=False), MAP
    yield "LayerNorm-plain", nn.LayerNorm(use_bias=False, use_scale=False), MAP
    yield "GroupNorm-size", nn.GroupNorm(num_groups=None, group_size=2), MAP
    yield "GroupNorm-slow", nn.GroupNorm(num_groups=4, use_fast_variance=False, use_scale=False), MAP
    yield "InstanceNorm", nn.InstanceNorm(), MAP
    yield "InstanceNorm-1d", nn.InstanceNorm(), SEQUENCE
    yield "WeightNorm", nn.WeightNorm(nn.Dense(5)), VECTOR
    yield "WeightNorm-conv", nn.WeightNorm(nn.Conv(5, (3, 3))), MAP


def rnn_cases():
    for cell in (nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.SimpleCell, nn.MGUCell):
        yield f"RNN-{cell.__name__}", nn.RNN(cell(4)), (3, 5, 6)
    yield "RNN-ConvLSTMCell", nn.RNN(nn.ConvLSTMCell(3, (3, 3))), (2, 3, 4, 4, 2)
    yield "Bidirectional", nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.GRUCell(4))), (3, 5, 6)
    yield "RNN-symbolic", nn.RNN(nn.GRUCell(4)), SEQUENCE


CASES = {
    name: (module, shape)
    for cases in (conv_cases, transposed_cases, dense_cases, norm_cases, rnn_cases)
    for name, module, shape in cases()
}


@pytest.mark.parametrize("name", CASES)
def test_layer(exported, filled, name):
    module, shape = CASES[name]
    variables = filled(module, jnp.zeros([2 if isinstance(dim, str) else dim for dim in shape]))
    exported(lambda x: module.apply(variables, x), shape)


def test_spectral_norm(exported, filled):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.SpectralNorm(nn.Dense(5))(x, update_stats=False)

    variables = filled(Net(), jnp.zeros((1, 6)))
    exported(lambda x: Net().apply(variables, x), VECTOR)


PRODUCTS = ["Fp8DotGeneral", "Fp8DotGeneralOp", "Fp8DirectDotGeneralOp", "NANOOFp8DotGeneralOp"]


@pytest.mark.filterwarnings("ignore:The Fp8DotGeneralOp is deprecated")
@pytest.mark.parametrize("product", PRODUCTS)
def test_products_in_8_bits(exported, filled, product):
    module = nn.Dense(5, dot_general_cls=getattr(nn, product))
    exported(lambda x: module.apply(module.init(jax.random.key(0), x), x), (3, 6))


def test_einsum_in_8_bits(exported):
    module, kernel = nn.Fp8Einsum(), np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    exported(lambda x: module.init_with_output(jax.random.key(0), "bd,dh->bh", x, kernel)[0], (3, 6))


def test_batch_statistics_of_the_batch_itself(exported, filled):
    module = nn.BatchNorm(use_running_average=False)
    variables = filled(module, jnp.zeros((1, 7, 6, 4)))
    exported(lambda x: module.apply(variables, x, mutable=["batch_stats"])[0], MAP)


def test_embed(exported, filled):
    module = nn.Embed(256, 5)
    variables = filled(module, jnp.zeros((1, 6), jnp.uint8))
    exported(lambda x: module.apply(variables, x), VECTOR, dtype="uint8")
    exported(lambda x: module.apply(variables, x, method="attend"), ("batch", 3, 5))
    small = nn.Embed(3, 5)
    exported(lambda x: small.apply(filled(small, jnp.zeros((1,), jnp.uint8)), x % 4), VECTOR, dtype="uint8")


ATTENTION = {
    "MultiHeadDotProductAttention": nn.MultiHeadDotProductAttention(num_heads=2, deterministic=True),
    "MultiHeadAttention": nn.MultiHeadAttention(num_heads=3, qkv_features=12, out_features=5, deterministic=True),
    "MultiHeadAttention-normalised": nn.MultiHeadAttention(num_heads=2, normalize_qk=True, dropout_rate=0.1),
    "SelfAttention": nn.SelfAttention(num_heads=2, deterministic=True, use_bias=False),
}


@pytest.mark.filterwarnings("ignore:SelfAttention will be deprecated")
@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("mask", [None, "causal", "padding"])
def test_attention(exported, filled, name, mask):
    module = ATTENTION[name]

    def attend(variables, x):
        masks = {
            None: lambda: None,
            "causal": lambda: nn.make_causal_mask(x[..., 0]),
            "padding": lambda: nn.combine_masks(
                nn.make_attention_mask(x[..., 0] > -0.3, x[..., 0] > -0.3), nn.make_causal_mask(x[..., 0])
            ),
        }
        return module.apply(variables, x, mask=masks[mask](), deterministic=True)

    variables = filled(module, jnp.zeros((1, 5, 6)), deterministic=True)
    exported(lambda x: attend(variables, x), SEQUENCE)


def test_attention_functions(exported):
    heads = ("batch", 5, 2, 3)
    exported(nn.dot_product_attention, heads, heads, heads)
    exported(nn.dot_product_attention_weights, heads, heads)
    exported(lambda q: nn.dot_product_attention(q, q, q, bias=jnp.ones((1, 2, 5, 5)) * 0.1), heads)


NOT_LAYERS = {
    "Module": "the base class of layers",
    "RNNCellBase": "the base class of recurrent cells",
}
TESTED_ALONE = {"SpectralNorm": test_spectral_norm, "Fp8Einsum": test_einsum_in_8_bits, "Embed": test_embed}


def layers_in(value):
    """Names of all layers in a layer, itself included."""
    if isinstance(value, list | tuple):
        return {name for layer in value for name in layers_in(layer)}
    if not isinstance(value, nn.Module):
        return set()
    inside = [getattr(value, field.name) for field in dataclasses.fields(value) if field.name != "parent"]
    return {type(value).__name__} | layers_in(inside)


def test_no_layer_is_left_out():
    tested = layers_in([module for module, _ in CASES.values()]) | layers_in(list(ATTENTION.values()))
    public = {name for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, nn.Module)}
    assert public - tested - {*PRODUCTS, *TESTED_ALONE} == NOT_LAYERS.keys()


POOLS = {"max": nn.max_pool, "avg": nn.avg_pool, "min": nn.pooling.min_pool}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    ("shape", "window", "strides"),
    [
        (SEQUENCE, (3,), (2,)),
        (MAP, (3, 2), None),
        (VOLUME, (2, 2, 2), (2, 2, 2)),
        ((7, 6, 4), (2, 2), (2, 2)),
        (("batch", 2, 7, 6, 4), (2, 2), (2, 2)),
    ],
)
@pytest.mark.parametrize("padding", ["SAME", "VALID", "wide"])
def test_pool(exported, pool, shape, window, strides, padding):
    padding = tuple((1, 0) for _ in window) if padding == "wide" else padding
    if len(shape) == 5 and len(window) == 2 and not isinstance(padding, str):
        pytest.skip("Flax takes explicit padding with one batch axis only")
    exported(lambda x: POOLS[pool](x, window, strides, padding), shape)


def test_general_pool(exported):
    exported(lambda x: nn.pool(x, 1.0, jax.lax.mul, (2, 2), (1, 1), "VALID"), MAP)
    exported(lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False), MAP)


class Block(nn.Module):
    features: int = 6

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.relu(nn.Dense(self.features)(x)) + x
        return (y, None) if _ is not None else y


def scanned(x):
    layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
    return layers()(x, jnp.zeros(3))[0]


TRANSFORMS = {
    "jit": lambda x: nn.jit(Block)()(x),
    "remat": lambda x: nn.remat(Block)()(x),
    "checkpoint": lambda x: nn.checkpoint(Block)()(x),
    "scan": scanned,
    "remat_scan": lambda x: nn.remat_scan(Block, lengths=(2, 2))()(x),
    "vmap": lambda x: nn.vmap(Block, variable_axes={"params": None}, split_rngs={"params": False}, in_axes=1)()(x),
    "vmap-split": lambda x: nn.vmap(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=1, out_axes=1
    )()(x),
    "BatchApply": lambda x: nn.BatchApply(Block())(x),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(exported, filled, name):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return TRANSFORMS[name](x)

    variables = filled(Net(), jnp.zeros((2, 5, 6)))
    exported(lambda x: Net().apply(variables, x), SEQUENCE)


def test_branches_of_modules(exported, filled):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            head, tail = Block(name="head"), nn.Dense(6, name="tail")
            if self.is_initializing():
                head(x), tail(x)
            x = nn.cond(x.sum() > 0, lambda _, y: head(y), lambda _, y: tail(y), self, x)
            return nn.switch((x.max() > 1).astype(jnp.int32), [lambda _, y: head(y), lambda _, y: y * 2], self, x)

    variables = filled(Net(), jnp.zeros((2, 5, 6)))
    exported(lambda x: Net().apply(variables, x), SEQUENCE)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(y, y)
        y = nn.LayerNorm()(x)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(y)))


class VisionTransformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), strides=4)(x.astype(jnp.float32) / 255)
        x = x.reshape(x.shape[0], -1, 8)
        token = self.param("token", nn.initializers.zeros, (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 8)), x], axis=1)
        x = x + self.param("position", nn.initializers.zeros, (1, x.shape[1], 8))
        for _ in range(2):
            x = Attention()(x)
        return nn.Dense(5)(nn.LayerNorm()(x)[:, 0])


class Excite(nn.Module):
    @nn.compact
    def __call__(self, x):
        s = nn.silu(nn.Dense(2)(x.mean((1, 2), keepdims=True)))
        return x * nn.sigmoid(nn.Dense(x.shape[-1])(s))


class MBConv(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.silu(norm()(nn.Conv(16, (1, 1), use_bias=False)(x)))
        y = nn.silu(norm()(nn.Conv(16, (3, 3), feature_group_count=16, use_bias=False)(y)))
        return x + norm()(nn.Conv(x.shape[-1], (1, 1), use_bias=False)(Excite()(y)))


class MobileNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.hard_swish(norm()(nn.Conv(8, (3, 3), strides=2, use_bias=False)(x.astype(jnp.float32) / 127.5 - 1)))
        x = MBConv()(MBConv()(x))
        return nn.Dense(5)(x.mean((1, 2)))


class ConvNext(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Conv(8, (4, 4), strides=4, padding="VALID")(x.astype(jnp.float32) / 255))
        for _ in range(2):
            y = nn.LayerNorm()(nn.Conv(8, (7, 7), feature_group_count=8)(x))
            y = nn.Dense(8)(nn.gelu(nn.Dense(32)(y), approximate=False))
            x = x + y * self.param(f"gamma{_}", nn.initializers.ones, (8,))
        return nn.Dense(5)(nn.LayerNorm()(x.mean((1, 2))))


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32) / 255
        a = nn.relu(nn.GroupNorm(2)(nn.Conv(8, (3, 3))(x)))
        b = nn.relu(nn.Conv(8, (3, 3))(nn.max_pool(a, (2, 2), (2, 2))))
        up = nn.ConvTranspose(8, (2, 2), (2, 2))(b)
        larger = jax.image.resize(b, a.shape, "bilinear")
        return nn.Conv(3, (1, 1))(jnp.concatenate([a, up, larger], axis=-1))


class DenseNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3))(x.astype(jnp.float32) / 255)
        for _ in range(3):
            y = nn.Conv(4, (3, 3))(nn.relu(norm()(x)))
            x = jnp.concatenate([x, y], axis=-1)
        x = nn.avg_pool(nn.relu(norm()(x)), (2, 2), (2, 2))
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), strides=4)(x.astype(jnp.float32) / 255).reshape(x.shape[0], -1, 8)
        y = nn.Dense(16)(nn.LayerNorm()(x).swapaxes(1, 2))
        x = x + nn.Dense(16)(nn.gelu(y)).swapaxes(1, 2)
        return nn.Dense(5)(nn.RMSNorm()(x).mean(1))


NETWORKS = [VisionTransformer, MobileNet, ConvNext, UNet, DenseNet, Mixer]


@pytest.mark.parametrize("batch", ["batch", 3])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_network(exported, filled, network, batch):
    variables = filled(network(), jnp.zeros((1, 16, 16, 3), jnp.uint8))
    ops = exported(lambda x: network().apply(variables, x), (batch, 16, 16, 3), dtype="uint8").ops
    assert ops["BatchNormalization"] == 0
    assert ops["Transpose"] <= {"VisionTransformer": 14, "ConvNext": 7, "Mixer": 6, "UNet": 2}.get(network.__name__, 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_exported_in_float32(exported, filled, dtype):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (3, 3), dtype=dtype)(x.astype(dtype) / 255)
            return nn.Dense(5, dtype=dtype)(nn.relu(norm(dtype=dtype)(x)).mean((1, 2)))

    variables = filled(Net(), jnp.zeros((1, 8, 8, 3), jnp.uint8))
    model = exported(
        lambda x: Net().apply(variables, x), ("batch", 8, 8, 3), dtype="uint8", tolerance=0.03, as_float32=True
    )
    assert model.ops["Cast"] == 1


NORMS = {
    "ours": layers.LayerNorm,
    "fast": nn.LayerNorm,
    "slow": functools.partial(nn.LayerNorm, use_fast_variance=False),
}


def optimized(model, folder):
    """Returns the operators that onnxruntime makes of a model."""
    session = ort.SessionOptions()
    session.optimized_model_filepath, session.log_severity_level = str(folder / "optimized.onnx"), 4
    ort.InferenceSession(model.SerializeToString(), session, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_onnxruntime_fuses_layer_norm_and_gelu(exported, filled, tmp_path, norm):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(6)(layers.gelu(nn.Dense(12)(norm()(x))))

    variables = filled(Net(), jnp.zeros((1, 5, 6)))
    model = exported(lambda x: Net().apply(variables, x), SEQUENCE).proto
    assert sorted(optimized(model, tmp_path)) == ["Add", "BiasGelu", "LayerNormalization", "MatMul", "MatMul"]


PLAIN = {"plain": functools.partial(nn.LayerNorm, use_scale=False, use_bias=False)}


@pytest.mark.parametrize("norm", (NORMS | PLAIN).values(), ids=NORMS | PLAIN)
def test_onnxruntime_fuses_layer_norm_of_maps(exported, filled, tmp_path, norm):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Conv(6, (3, 3))(norm()(nn.Conv(6, (1, 1))(x)))
            return nn.Conv(6, (1, 1))(2 * norm()(y) - 1)

    variables = filled(Net(), jnp.zeros((1, 5, 4, 3)))
    model = exported(lambda x: Net().apply(variables, x), ("batch", 5, 4, 3))
    ops = optimized(model.proto, tmp_path)
    assert ops.count("LayerNormalization") == 2
    assert not {"ReduceMean", "Mul", "Add"} & set(ops)
