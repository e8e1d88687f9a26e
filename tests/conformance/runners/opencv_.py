"""OpenCV's DNN module, with its own engine on the CPU."""

import cv2
from common import main


def open_model(path, outputs):
    def run(images):
        network = cv2.dnn.readNetFromONNX(path)  # it fixes the size of the batch at the first run
        network.setInput(images, "image")
        return network.forward("logits")

    return run


main(open_model)
