"""Conversion of ANNs to SNNs: one walk over the traced network places a neuron at each site, as a method decides."""
