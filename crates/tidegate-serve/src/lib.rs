//! Open Inference Protocol v2 server.
