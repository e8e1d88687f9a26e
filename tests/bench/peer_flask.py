"""The original system, which this one replaces: Flask, a Keras network, one `predict` per picture.

`PYTHON tests/bench/peer_flask.py PORT`, with an interpreter that has flask, tensorflow and Pillow. The network has the
original's layers, with untrained weights.
"""

import base64
import io
import logging
import sys

import numpy as np
from flask import Flask, jsonify, request
from PIL import Image
from tensorflow import keras
from tensorflow.keras import layers

CLASSES = [f"class {i}" for i in range(200)]


def build() -> keras.Model:
    """Builds the original network, with 758,224 parameters."""
    inputs = x = keras.Input((64, 64, 3))
    for _ in range(4):
        x = convolve(x, 2, 32)
    x = layers.AveragePooling2D(2)(x)
    for width in (64, 128):
        x = layers.SpatialDropout2D(0.1)(x)
        x = convolve(x, 3, width)
        for _ in range(2):
            x = layers.Conv2D(width // 2, 1, padding="same")(x)
            x = convolve(x, 3, width)
            x = convolve(x, 1, width)
        x = layers.AveragePooling2D(2)(x)
    x = layers.GlobalAveragePooling2D()(x)
    for width, dropout in ((600, 0.35), (400, 0.2)):
        x = layers.LeakyReLU()(layers.BatchNormalization()(layers.Dense(width)(x)))
        x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(200, activation="softmax")(x))


def convolve(x: keras.KerasTensor, kernel: int, channels: int) -> keras.KerasTensor:
    x = layers.Conv2D(channels, kernel, padding="same")(x)
    return layers.LeakyReLU()(layers.BatchNormalization()(x))


app = Flask(__name__)
model = build()


@app.post("/predict")
def predict():
    try:
        data = base64.b64decode(request.get_json()["image"])
        picture = Image.open(io.BytesIO(data)).convert("RGB").resize((64, 64))
        probabilities = model.predict(np.asarray(picture)[None] / 255.0, verbose=0)[0]
        best = probabilities.argsort()[-3:][::-1]
        top = [{"class": CLASSES[i], "prob": float(probabilities[i])} for i in best]
        return jsonify({"predicted_class": top[0]["class"], "top_predictions": top})
    except Exception as error:
        return jsonify({"error": str(error)}), 400


if __name__ == "__main__":
    assert model.count_params() == 758_224, model.count_params()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app.run(port=int(sys.argv[1]), threaded=True)
