"""Post-training quantization of ONNX graphs: find the products, observe their inputs, choose scales, insert Q/DQ."""
