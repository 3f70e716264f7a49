"""ANN to SNN: one walk over the traced network places a neuron at each site; a method is one file with a `place`."""
