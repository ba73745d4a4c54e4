"""Makes keras.onnx, keras.csv: a dense network as Keras 3 exports it, with the probabilities it gives.

    pip install keras==3.15.1 tensorflow-cpu==2.21.0 tf2onnx==1.17.0 onnx==1.23.2 onnxruntime==1.32.0
    python make_keras.py

Missing values are filled and numbers normalised inside the graph, as the model contract asks.
"""

import csv
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import keras
import numpy
import onnxruntime

keras.utils.set_random_seed(1)
random = numpy.random.default_rng(1)
rows = random.normal(50.0, 20.0, (400, 4)).astype(numpy.float32)
target = (rows[:, 0] + rows[:, 1] > 100.0).astype(numpy.float32)
rows[random.random(rows.shape) < 0.2] = numpy.nan


@keras.saving.register_keras_serializable()
class Fill(keras.layers.Layer):
    """Puts the mean of a column in the place of a missing value, and normalises."""

    def __init__(self, mean, scale, **options):
        super().__init__(**options)
        self.mean, self.scale = numpy.float32(mean), numpy.float32(scale)

    def call(self, values):
        filled = keras.ops.where(keras.ops.isnan(values), self.mean, values)
        return (filled - self.mean) * self.scale


features = keras.Input((4,), name="features")
values = Fill(numpy.nanmean(rows, axis=0), 1.0 / numpy.nanstd(rows, axis=0))(features)
values = keras.layers.Dense(8, activation="relu")(values)
model = keras.Model(features, keras.layers.Dense(1, activation="sigmoid")(values))
model.compile("adam", "binary_crossentropy")
model.fit(rows, target, epochs=5, verbose=0)
folder = os.path.dirname(os.path.abspath(__file__))
path = os.path.join(folder, "keras.onnx")
model.export(path, format="onnx", verbose=False)

session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
(given,) = session.get_inputs()
(probabilities,) = session.run(None, {given.name: rows[:40]})
with open(os.path.join(folder, "keras.csv"), "w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    for row, probability in zip(rows[:40], probabilities[:, 0]):
        writer.writerow([repr(float(value)) for value in row] + [repr(float(probability))])
print(given.shape, session.get_outputs()[0].shape, file=sys.stderr)
