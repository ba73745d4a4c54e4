"""Makes xgboost.onnx, xgboost.csv: boosted trees as onnxmltools exports them, with the probabilities they give.

    pip install xgboost==3.2.0 onnxmltools==1.16.0 skl2onnx==1.20.0 onnx==1.23.2 onnxruntime==1.32.0
    python make_xgboost.py

Missing values go the way that each tree learned for them.
"""

import csv
import os
import sys

import numpy
import onnxmltools
import onnxruntime
import xgboost
from onnxmltools.convert.common.data_types import FloatTensorType

random = numpy.random.default_rng(1)
rows = random.normal(50.0, 20.0, (400, 4)).astype(numpy.float32)
target = (rows[:, 0] + rows[:, 1] > 110.0).astype(numpy.int64)
rows[random.random(rows.shape) < 0.2] = numpy.nan
model = xgboost.XGBClassifier(n_estimators=12, max_depth=3, learning_rate=0.3, random_state=1, n_jobs=1)
model.fit(rows, target)

exported = onnxmltools.convert_xgboost(model, initial_types=[("features", FloatTensorType([None, 4]))], target_opset=15)
folder = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(folder, "xgboost.onnx"), "wb") as file:
    file.write(exported.SerializeToString())

session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
scores = session.run(None, {"features": rows[:40]})[1]
probabilities = [row[1] for row in scores]
print(numpy.abs(model.predict_proba(rows[:40])[:, 1] - probabilities).max(), file=sys.stderr)
with open(os.path.join(folder, "xgboost.csv"), "w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    for row, probability in zip(rows[:40], probabilities):
        writer.writerow([repr(float(value)) for value in row] + [repr(float(probability))])
