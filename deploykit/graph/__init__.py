"""From a torch module to a proven ONNX graph, and from there to the form that each engine runs best."""
