"""What TensorBoard reads of a finished run."""

import io

import numpy as np
from log_lines import train_record
from PIL import Image
from recorded_runs import CONFIG
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from jaxcnn.metrics import score, summarize
from jaxcnn.run.metrics_log import open_log
from jaxcnn.run.tensorboard import draw_confusion, write_summary


def test_settings_metrics_and_confusion_are_read_by_tensorboard(tmp_path):
    logits = np.float32([[2, 0], [2, 0], [0, 2], [0, 2]])
    outcomes = score(logits, np.int32([0, 1, 1, 1]), np.ones(4, bool))
    evaluation = summarize([outcomes], classes=2)
    write_summary(tmp_path, CONFIG, evaluation, step=7)
    events = EventAccumulator(str(tmp_path)).Reload()
    (top1,) = events.Scalars("final/top1")
    assert (top1.step, top1.value) == (7, 0.75)
    (image,) = events.Images("validation/confusion")
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert pixels.shape == (512, 512)
    assert (pixels[0, 0], pixels[0, -1]) == (0, 255)
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["optim.learning_rate"].number_value == 0.1
    assert settings["model.widths"].string_value == "(4,)"
    assert settings["augment.flip"].bool_value is False


def test_many_classes_have_a_pixel_each():
    assert draw_confusion(np.eye(1000, dtype=np.int64)).size == (1000, 1000)


def test_augmented_pictures_are_read_by_tensorboard(tmp_path):
    pictures = np.zeros((5, 8, 8, 3), np.uint8)
    pictures[:, :, :, 0] = 10 * np.arange(1, 6)[:, None, None]
    with open_log(tmp_path) as log:
        log.write_pictures(pictures, step=0)
        log.write(train_record(1, loss=2.5))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == [2.5]
    (image,) = events.Images("train/augmented")
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    # Two rows of three, each pixel enlarged.
    assert pixels.shape == (16 * 22, 24 * 22, 3)
    assert pixels[::176, ::176].tolist() == [[[10, 0, 0], [20, 0, 0], [30, 0, 0]], [[40, 0, 0], [50, 0, 0], [0, 0, 0]]]


def test_a_process_that_does_not_write_shows_no_pictures(tmp_path):
    with open_log(tmp_path, writes=False) as log:
        log.write_pictures(np.zeros((1, 8, 8, 3), np.uint8), step=0)
    assert list(tmp_path.iterdir()) == []
