"""OpenCV's DNN module with its built-in engine, on the CPU."""

import cv2
from common import main


def open_model(path, outputs):
    def run(images):
        # OpenCV fixes the batch size at the first run.
        network = cv2.dnn.readNetFromONNX(path)
        network.setInput(images, "image")
        return network.forward("logits")

    return run


main(open_model)
