"""Trains boosted trees with XGBoost on the rows that a Tidegate worker opened.

Reads the same variables and writes the same files as `../keras/train.py`, whose first lines say which.
Trees need neither normalisation nor filled gaps: a missing value is NaN and takes the branch that was
learned for it, a category is the position of its level.

On several machines (`num_nodes`) each trains on its share of the rows, all grow the same trees together, and the
first one writes them.
"""

import contextlib
import csv
import json
import os
import pathlib

import numpy as np
import onnx
import xgboost
import xgboost.collective
import xgboost.tracker
from onnxmltools import convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType

TREES = int(os.environ.get("TREES", "200"))
DEPTH = int(os.environ.get("DEPTH", "4"))
LEARNING_RATE = float(os.environ.get("LEARNING_RATE", "0.05"))
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
    outcomes = np.array([row[position].lower() in ("1", "1.0", "true") for row in rows], dtype=np.int32)
    return matrix, outcomes


@contextlib.contextmanager
def together():
    """Joins the machines of the job, where there are several; gives which one this is, and how many there are."""
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield rank, count
        return
    first, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank == 0:
        tracker = xgboost.tracker.RabitTracker(n_workers=count, host_ip=first, port=port, sortby="task")
        tracker.start()
    settings = {"dmlc_tracker_uri": first, "dmlc_tracker_port": port, "dmlc_task_id": f"{rank:04}", "dmlc_retry": 20}
    with xgboost.collective.CommunicatorContext(**settings):
        yield rank, count
    if rank == 0:
        tracker.wait_for()


class Tell(xgboost.callback.TrainingCallback):
    """Appends one JSON object to the metrics file after every tenth tree."""

    def after_iteration(self, model, epoch, evals_log):
        # Of several machines the first one speaks.
        if (epoch + 1) % 10 == 0 and os.environ.get("RANK", "0") == "0":
            figures = {f"{part}_{name}": round(float(values[-1]), 6) for part, all_ in evals_log.items() for name, values in all_.items()}
            print(f"tree {epoch + 1}: {figures}", flush=True)
            with open(os.environ["TIDEGATE_METRICS"], "a") as file:
                file.write(json.dumps({"tree": epoch + 1, **figures}) + "\n")
        return False


def main():
    target = os.environ["TIDEGATE_TARGET"]
    header, rows = read(os.environ["TIDEGATE_INPUT_TRAIN"])
    features = describe(header, rows, target)
    parts = [encode(header, rows, features, target)]
    if folder := os.environ.get("TIDEGATE_INPUT_VALIDATION"):
        parts.append(encode(*read(folder), features, target))
    model = xgboost.XGBClassifier(
        n_estimators=TREES,
        max_depth=DEPTH,
        learning_rate=LEARNING_RATE,
        subsample=0.8,
        colsample_bytree=0.8,
        tree_method="hist",
        random_state=SEED,
        n_jobs=os.cpu_count(),
        eval_metric=["logloss", "auc"],
        callbacks=[Tell()],
    )
    with together() as (rank, count):
        shares = [(rows[rank::count], outcomes[rank::count]) for rows, outcomes in parts]
        print(f"machine {rank + 1} of {count}: {len(shares[0][0])} rows", flush=True)
        model.fit(*shares[0], eval_set=shares, verbose=False)
    if rank > 0:
        return

    # The converter writes the labels first and the probabilities [N, 2] second.
    converted = convert_xgboost(model, initial_types=[("features", FloatTensorType([None, len(features)]))], target_opset=15)
    output = pathlib.Path(os.environ["TIDEGATE_OUTPUT"])
    onnx.save(converted, str(output / "model.onnx"))
    (output / "schema.json").write_text(json.dumps({"features": features, "target": target}))


if __name__ == "__main__":
    main()
