"""What is looked at before an engine sees a bundle from elsewhere: its signature, its models, its arrays.

All of it is Python over the standard library and numpy: the packages that could read a model natively (onnx, the
engines) are the ones that hostile models crash, and the device half does not have them. `onnx_model` and `openvino_ir`
read a model's structure, never its weights; `constants` bounds what an engine would allocate while it folds constants;
`signature` asks for the package cryptography only where a signature is checked.
"""
