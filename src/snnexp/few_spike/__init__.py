"""Few-spike neurons: a value as one or two spikes whose weight depends on their time, for any activation."""
