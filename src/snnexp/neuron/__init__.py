"""Neurons: sites that unfold time. `if`, `lif` and `plif` run on SpikingJelly; `spikingjelly` wraps any node."""
