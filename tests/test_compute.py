"""The cost of a training: the operations of the layers, counted as they would be by hand."""

from jaxcnn.compute import picture_flops, pictures_by_side
from jaxcnn.config import Config, DataConfig, ModelConfig
from jaxcnn.history import RunLog


def test_operations_of_a_network_counted_by_hand():
    # Patches of 2x2 make 16x16x12 of a picture; one convolution 3x3 to 32 channels, a pooled map, one linear layer.
    # Zeros outside of the map are not multiplied: 3 * 16 - 2 rows and columns of the window fall on it.
    convolution = 2 * 46 * 46 * 12 * 32
    layer = 2 * 32 * 100
    found = picture_flops(ModelConfig(widths=(32,), blocks=(0,)), classes=100, side=32)
    assert convolution + layer < found < 1.05 * (convolution + layer)  # normalising and pooling are not much


def test_operations_do_not_depend_on_kernels_and_precision():
    config = ModelConfig(widths=(8,), blocks=(1,))
    other = ModelConfig(widths=(8,), blocks=(1,), precision="bfloat16", cpu_kernels=False)
    assert picture_flops(config, classes=3, side=16) == picture_flops(other, classes=3, side=16)


def test_pictures_are_counted_at_the_size_they_were_seen():
    config = Config(data=DataConfig(image_size=64), epochs=4, batch_size=8, resolutions=((0.0, 32), (0.5, 64)))
    log = RunLog([{"step": step, "epoch": step / 10} for step in (5.0, 10.0, 20.0, 30.0, 35.0)], [])
    assert pictures_by_side(config, log) == {32: 160, 64: 120}
    assert pictures_by_side(config, RunLog([], [])) == {}
