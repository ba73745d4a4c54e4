"""Runs a model in ONNX Runtime as the model contract says, and compares its probabilities with ours.

    python onnx_agreement.py MODEL.onnx SCHEMA.json ROWS.csv EXPECTED.csv

ROWS.csv holds records as text under a header; they are encoded here by schema.json alone (missing and
unknown levels are NaN). EXPECTED.csv holds one probability on each line. Prints a JSON object with the
rows compared and the largest difference; the exit code is 1 when it is above 1e-5.
"""

import csv
import json
import sys

import numpy
import onnxruntime

LIMIT = 1e-5


def encode(schema, records):
    """The float32 matrix [records, features] in the order of the schema."""
    matrix = numpy.full((len(records), len(schema["features"])), numpy.nan, dtype=numpy.float32)
    for column, feature in enumerate(schema["features"]):
        kind = feature["kind"]
        levels = None if kind == "numeric" else {level: code for code, level in enumerate(kind["category"]["levels"])}
        for row, record in enumerate(records):
            text = record[feature["name"]]
            if text == "":
                continue
            matrix[row, column] = float(text) if levels is None else levels.get(text, numpy.nan)
    return matrix


def probabilities(model, matrix):
    """One probability for each row, from outputs [N], [N, 1] or [N, 2]; class labels are no floats."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for output in session.run(None, {given.name: matrix}):
        if isinstance(output, list):
            return numpy.array([row[max(row)] for row in output], dtype=numpy.float32)
        if output.dtype == numpy.float32:
            return output if output.ndim == 1 else output[:, -1]
    raise SystemExit("the model has no float32 output")


def main(model, schema, rows, expected):
    with open(schema, encoding="utf-8") as file:
        schema = json.load(file)
    with open(rows, encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    with open(expected, encoding="utf-8") as file:
        ours = numpy.array([float(line) for line in file], dtype=numpy.float64)
    theirs = probabilities(model, encode(schema, records)).astype(numpy.float64)
    if theirs.shape != ours.shape:
        raise SystemExit(f"{theirs.shape[0]} rows were computed, {ours.shape[0]} were expected")
    difference = float(numpy.max(numpy.abs(theirs - ours)))
    print(json.dumps({"rows": len(ours), "difference": difference, "onnxruntime": onnxruntime.__version__}))
    # Written so that NaN fails, too.
    return 0 if difference <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
