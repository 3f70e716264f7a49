"""Few-spike neurons: one or two spikes, weighted by their time, encode a number, for any activation."""
