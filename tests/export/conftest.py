"""Fixtures of the exporter's tests: export a function, run the model, and compare it with the function."""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from runs import PICTURES, make_run

import export


@dataclass(frozen=True)
class Exported:
    """An exported model whose values were compared with its function's."""

    proto: onnx.ModelProto

    @property
    def ops(self) -> Counter[str]:
        return Counter(node.op_type for node in self.proto.graph.node)

    @property
    def names(self) -> list[str]:
        return [node.name for node in self.proto.graph.node]

    def nodes(self, op: str) -> list[onnx.NodeProto]:
        return [node for node in self.proto.graph.node if node.op_type == op]

    def attribute(self, op: str, name: str):
        (node,) = self.nodes(op)
        return next(onnx.helper.get_attribute_value(field) for field in node.attribute if field.name == name)

    def constant(self, name: str) -> np.ndarray:
        return next(numpy_helper.to_array(array) for array in self.proto.graph.initializer if array.name == name)


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray], *, optimize: bool) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feed), strict=True))


def run_by_definition(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs ONNX's reference implementation in NumPy: slow, but without a runtime's approximations."""
    names = [output.name for output in model.graph.output]
    return dict(zip(names, ReferenceEvaluator(model).run(None, feed), strict=True))


RUNNERS = (partial(run, optimize=False), partial(run, optimize=True))


def reference(fn, feed: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Runs JAX, compiled without optimization, which more than halves the time of these tests."""
    lowered = jax.jit(fn).lower(*feed.values())
    result = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})(*feed.values())
    return result if isinstance(result, dict) else {"output": result}


def draw_feed(inputs, batch: int) -> dict[str, np.ndarray]:
    """Draws random arrays for inputs as `to_onnx` takes them."""
    random, feed = np.random.default_rng(1), {}
    for name, (dtype, shape) in inputs.items():
        sizes = [batch if isinstance(dim, str) else dim for dim in shape]
        noise = random.normal(size=sizes) if dtype == "float32" else random.integers(0, 256, sizes)
        feed[name] = noise.astype(dtype)
    return feed


@pytest.fixture(scope="session")
def by_definition():
    """Runners for `exported` that tell a wrong model from the approximations of onnxruntime."""
    return (run_by_definition,)


@pytest.fixture(scope="session")
def own_error():
    """own_error(module, variables, shape): the largest difference of JAX's float32 results from its float64 result.

    JAX runs compiled with and without optimization, and eagerly. A normalisation of nearly equal values magnifies
    their rounding errors, most of all if it computes the variance as the difference of two means.
    """

    def measure(module, variables, shape, dtype="uint8", batch=3) -> float:
        feed = draw_feed({"x": (dtype, shape)}, batch)
        fn = lambda x: module.apply(variables, x)  # noqa: E731
        results = [jax.jit(fn)(*feed.values()), reference(fn, feed)["output"], fn(*map(jnp.asarray, feed.values()))]
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
            exact = np.asarray(module.clone(dtype=jnp.float64).apply(wide, jnp.asarray(feed["x"])))
        assert exact.dtype == np.float64
        return float(max(np.abs(exact - result).max() for result in results) / np.abs(exact).max())

    return measure


@pytest.fixture(scope="session", params=["symbolic", pytest.param("static", marks=pytest.mark.slow)])
def exported(request):
    """exported(fn, *shapes): the model, compared with fn in onnxruntime with its optimizations on and off."""

    def export_and_compare(
        fn, *shapes, dtype="float32", tolerance=1e-5, batches=(3,), as_float32=False, runners=RUNNERS
    ) -> Exported:
        if request.param == "static":
            shapes = [tuple(batches[0] if isinstance(dim, str) else dim for dim in shape) for shape in shapes]
            batches = batches[:1]
        inputs = {f"x{i}": (dtype, shape) for i, shape in enumerate(shapes)}
        proto = export.to_onnx(fn, inputs)
        onnx.checker.check_model(proto, full_check=True)
        for batch in batches:
            feed = draw_feed(inputs, batch)
            expected = reference(fn, feed)
            for runner in runners:
                found = runner(proto, feed)
                assert set(found) == set(expected)
                for name, value in expected.items():
                    value = np.asarray(value.astype(jnp.float32) if as_float32 else value)
                    assert found[name].dtype == value.dtype
                    assert found[name].shape == value.shape
                    bound = tolerance * max(1e-6, _largest(value))
                    np.testing.assert_allclose(found[name], value, rtol=0, atol=bound)
        return Exported(proto)

    return export_and_compare


def _largest(array: np.ndarray) -> float:
    finite = np.abs(array.astype(np.float64))[np.isfinite(array)]
    return float(finite.max(initial=0))


@pytest.fixture(scope="session")
def filled():
    """filled(module, *inputs): random variables, with batch statistics far from their initial values."""

    def fill(module, *inputs, **options):
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **options))
        random = np.random.default_rng(2)

        def draw(path, leaf):
            noise = random.normal(size=leaf.shape) / max(1, np.prod(leaf.shape[:-1])) ** 0.5
            name = path[-1].key
            if name == "var":
                noise = random.uniform(0.3, 2.0, leaf.shape)
            elif name in ("scale", "mean", "bias"):
                noise = random.normal(size=leaf.shape) + (name == "scale")
            return noise.astype(leaf.dtype)

        return jax.tree_util.tree_map_with_path(draw, shapes)

    return fill


@pytest.fixture(scope="session", name="run")
def trained_run(tmp_path_factory):
    """The folder of a run that is not exported yet, or again and again."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def file(run):
    """The model exported from `run`."""
    return export.export_workdir(run)


@pytest.fixture(scope="session")
def explained(run, tmp_path_factory):
    """The model exported from `run` with the outputs `features` and `heatmap`."""
    path = tmp_path_factory.mktemp("explained") / "more.onnx"
    return export.export_workdir(run, path, features=True, heatmap=True)


@pytest.fixture(scope="session")
def pictured(tmp_path_factory):
    """The folder of a run that was exported with real pictures."""
    run = make_run(tmp_path_factory.mktemp("pictured"))
    export.export_workdir(run, pictures=PICTURES)
    return run
