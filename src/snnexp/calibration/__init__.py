"""Calibration: corrections to a converted network, layer by layer on the walk, each kept only where it helps."""
