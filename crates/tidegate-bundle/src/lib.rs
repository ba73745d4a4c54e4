//! The released bundle, model inspection, ONNX reading, writing and inference.
