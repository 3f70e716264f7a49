"""Neurons: sites that unfold time. `if`, `lif` and `plif` run on SpikingJelly; `spikingjelly` wraps any node.

Activations without time make the same network an ANN: `clip` and `qcfs` here, `relu` is torch's own.
"""
