"""Trains a dense network with Keras on the rows that a Tidegate worker opened.

The worker sets, and this script reads:

    TIDEGATE_INPUT_TRAIN        folder of CSV files with one header
    TIDEGATE_INPUT_VALIDATION   the same; may be absent
    TIDEGATE_TARGET             the column to be learned, 0 and 1
    TIDEGATE_METRICS            a file; one JSON object on each line
    TIDEGATE_OUTPUT             a folder; gets model.onnx and schema.json

Missing values, categories and normalisation are part of the model's graph, so whoever serves it hands
over the raw numbers: one float32 matrix in the order of schema.json, a category as the position of its
level, a missing value as NaN.
"""

import csv
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402

EPOCHS = int(os.environ.get("EPOCHS", "10"))
BATCH_SIZE = int(os.environ.get("BATCH_SIZE", "32"))
HIDDEN = int(os.environ.get("HIDDEN", "128"))
SEED = int(os.environ.get("SEED", "7"))


def read(folder):
    """All rows of all CSV files, by the name of the file: the header and a list of records."""
    header, rows = None, []
    for path in sorted(pathlib.Path(folder).glob("*.csv")):
        with path.open(newline="") as file:
            reader = csv.reader(file)
            first = next(reader)
            if header not in (None, first):
                raise SystemExit(f"{path.name} has another header than the file before it")
            header = first
            rows.extend(reader)
    if not rows:
        raise SystemExit(f"{folder} holds no rows")
    return header, rows


def number(text):
    """The number that a text is, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def describe(header, rows, target):
    """The features in order: numeric where every value is a number, else a category with its levels."""
    features = []
    for position, name in enumerate(header):
        if name == target:
            continue
        values = {row[position] for row in rows} - {""}
        if all(number(value) is not None for value in values):
            features.append({"name": name, "kind": "numeric"})
        else:
            features.append({"name": name, "kind": {"category": {"levels": sorted(values)}}})
    return features


def encode(header, rows, features, target):
    """The model's input matrix and the outcomes."""
    matrix = np.full((len(rows), len(features)), np.nan, dtype=np.float32)
    for column, feature in enumerate(features):
        position = header.index(feature["name"])
        if feature["kind"] == "numeric":
            known = {text: number(text) for text in {row[position] for row in rows} if text}
        else:
            levels = feature["kind"]["category"]["levels"]
            known = {level: index for index, level in enumerate(levels)}
        for index, row in enumerate(rows):
            matrix[index, column] = known.get(row[position], np.nan)
    position = header.index(target)
    outcomes = np.array([row[position].lower() in ("1", "1.0", "true") for row in rows], dtype=np.float32)
    return matrix, outcomes


class Prepare(keras.layers.Layer):
    """Fills in, normalises and spreads the raw columns, with what the training rows said."""

    def __init__(self, matrix, features, **options):
        super().__init__(trainable=False, **options)
        numeric = np.array([feature["kind"] == "numeric" for feature in features])
        known = ~np.isnan(matrix)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, matrix, 0).sum(axis=0, dtype=np.float64) / count
        spread = np.sqrt(np.where(known, (matrix - mean) ** 2, 0).sum(axis=0, dtype=np.float64) / count)
        # A category that is missing is none of its levels; a column without spread says nothing.
        self.fill = np.where(numeric, mean, -1).astype(np.float32)
        self.scale = np.where(numeric & (spread > 1e-12), 1 / np.maximum(spread, 1e-12), 0).astype(np.float32)
        levels = [
            (column, level)
            for column, feature in enumerate(features)
            if feature["kind"] != "numeric"
            for level in range(len(feature["kind"]["category"]["levels"]))
        ]
        # Column j of `pick` copies the category that level j belongs to.
        self.pick = np.zeros((len(features), len(levels)), dtype=np.float32)
        for index, (column, _) in enumerate(levels):
            self.pick[column, index] = 1
        self.level = np.array([level for _, level in levels], dtype=np.float32)

    def call(self, raw):
        ops = keras.ops
        missing = ops.isnan(raw)
        filled = ops.where(missing, self.fill, raw)
        parts = [(filled - self.fill) * self.scale, ops.cast(missing, "float32")]
        if len(self.level):
            picked = ops.matmul(ops.where(missing, -1.0, raw), self.pick)
            parts.append(ops.cast(ops.equal(picked, self.level), "float32"))
        return ops.concatenate(parts, axis=1)


class Tell(keras.callbacks.Callback):
    """Appends one JSON object to the metrics file after each epoch."""

    def on_epoch_end(self, epoch, logs=None):
        figures = {name: round(float(value), 6) for name, value in (logs or {}).items()}
        print(f"epoch {epoch + 1}: {figures}", flush=True)
        with open(os.environ["TIDEGATE_METRICS"], "a") as file:
            file.write(json.dumps({"epoch": epoch + 1, **figures}) + "\n")


def main():
    keras.utils.set_random_seed(SEED)
    target = os.environ["TIDEGATE_TARGET"]
    header, rows = read(os.environ["TIDEGATE_INPUT_TRAIN"])
    features = describe(header, rows, target)
    matrix, outcomes = encode(header, rows, features, target)
    validation = None
    if folder := os.environ.get("TIDEGATE_INPUT_VALIDATION"):
        validation = encode(*read(folder), features, target)

    raw = keras.Input((len(features),), dtype="float32", name="features")
    hidden = keras.layers.Dense(HIDDEN, activation="relu")(Prepare(matrix, features)(raw))
    probability = keras.layers.Dense(1, activation="sigmoid")(hidden)
    model = keras.Model(raw, keras.ops.reshape(probability, (-1,)))
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=[keras.metrics.AUC(name="roc_auc")])
    model.fit(
        matrix,
        outcomes,
        validation_data=validation,
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        verbose=0,
        callbacks=[Tell()],
    )

    output = pathlib.Path(os.environ["TIDEGATE_OUTPUT"])
    model.export(output / "model.onnx", format="onnx", verbose=False)
    (output / "schema.json").write_text(json.dumps({"features": features, "target": target}))


if __name__ == "__main__":
    main()
