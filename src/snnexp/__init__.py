"""snnexp: train spiking neural networks, convert ANNs into them, calibrate and compare, from YAML groups."""
