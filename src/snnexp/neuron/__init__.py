"""Neurons that unfold time (`if`, `lif`, `plif`, and `spikingjelly`, which wraps any SpikingJelly node) and activations
without time that make the same network an ANN (`clip` and `qcfs` here; `relu` is torch's own)."""
