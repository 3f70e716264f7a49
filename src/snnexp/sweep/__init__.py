"""What the runs of one sweep have in common: their parent's record, and a summary of them."""
