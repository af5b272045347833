"""Bundles, build side: writing one (`write`) and packing it (`pack`). Reading one is `deploykit.runtime.bundle`."""
