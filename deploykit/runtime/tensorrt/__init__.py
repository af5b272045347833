"""TensorRT on the device: from the strongly typed ONNX and its build recipe to an engine that was built here.

An engine is executable code, bound to a TensorRT version, a GPU architecture and an operating system. So a bundle
carries the ONNX and the recipe; `build` makes the engine, `cache` keeps it for this user, `session` runs it. Both
flavours, ``tensorrt`` (10.x and 11.x) and ``tensorrt-rtx``, take the same way with their module passed in. Memory,
streams and graphs are the driver's own (`driver`), so that nothing but the flavour's package has to be installed.
"""
