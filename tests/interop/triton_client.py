"""Asks a Tidegate server with PyPI's tritonclient, which knows nothing of Tidegate.

    triton_client.py HOST:PORT MODEL

Standard input holds JSON lists by column, null for a missing value; standard output is a JSON object
with what the server said in each way of asking. Exits with 1 when the client library sees anything
that it does not accept.
"""

import json
import sys

import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException


def number_input(name, values, datatype, numpy_type, binary):
    column = np.array([np.nan if value is None else value for value in values], dtype=numpy_type)
    tensor = http.InferInput(name, list(column.shape), datatype)
    tensor.set_data_from_numpy(column, binary_data=binary)
    return tensor


def text_input(name, values, binary):
    column = np.array(["" if value is None else value for value in values], dtype=np.object_)
    tensor = http.InferInput(name, list(column.shape), "BYTES")
    tensor.set_data_from_numpy(column, binary_data=binary)
    return tensor


def inputs_of(columns, binary):
    tensors = []
    for name, values in columns.items():
        if any(isinstance(value, str) for value in values):
            tensors.append(text_input(name, values, binary))
        elif not binary and None in values:
            # The client's JSON has no NaN; in binary there is one.
            tensors.append(number_input(name, values, "FP64", np.float64, True))
        else:
            tensors.append(number_input(name, values, "FP32", np.float32, binary))
    return tensors


def answer_of(result):
    probabilities = result.as_numpy("probabilities")
    predictions = result.as_numpy("predictions")
    assert probabilities.dtype == np.float64 and predictions.dtype == np.int64
    return {"probabilities": probabilities.tolist(), "predictions": predictions.tolist()}


def main():
    address, model = sys.argv[1:3]
    columns = json.load(sys.stdin)
    client = http.InferenceServerClient(url=address, concurrency=4)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
    assert not client.is_model_ready("no-such-model")
    metadata = client.get_model_metadata(model)
    version = metadata["versions"][0]
    assert client.is_model_ready(model, version)
    assert [tensor["name"] for tensor in metadata["inputs"]] == list(columns)
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]

    said = {"server": client.get_server_metadata()["name"], "version": version}
    # As the client does it when nobody says anything: binary in and out.
    said["binary"] = answer_of(client.infer(model, inputs_of(columns, True), request_id="r-1"))
    outputs = [http.InferRequestedOutput(name, binary_data=False) for name in ("probabilities", "predictions")]
    said["json_out"] = answer_of(client.infer(model, inputs_of(columns, True), outputs=outputs))
    said["json_in"] = answer_of(client.infer(model, inputs_of(columns, False), model_version=version))

    # All columns at once, categories as the positions of their levels.
    levels = {tensor["name"]: tensor.get("parameters", {}).get("levels") for tensor in metadata["inputs"]}
    rows = len(next(iter(columns.values())))
    matrix = np.full((rows, len(columns)), np.nan, dtype=np.float32)
    for at, (name, values) in enumerate(columns.items()):
        for row, value in enumerate(values):
            if value is None:
                continue
            matrix[row, at] = levels[name].index(value) if levels[name] else value
    features = http.InferInput(metadata["parameters"]["matrix_input"], list(matrix.shape), "FP32")
    features.set_data_from_numpy(matrix)
    said["matrix"] = answer_of(client.infer(model, [features]))

    # Many requests over few connections.
    waiting = [client.async_infer(model, [features]) for _ in range(32)]
    answers = [answer_of(request.get_result()) for request in waiting]
    assert all(answer == answers[0] for answer in answers)
    said["parallel"] = answers[0]

    try:
        client.infer(model, inputs_of(columns, True)[1:])
        said["error"] = None
    except InferenceServerException as error:
        said["error"] = error.message()
    client.close()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
