"""Latency really measured on ONNX Runtime: targets, export, measurement, a store, a predictor."""
