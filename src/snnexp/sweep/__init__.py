"""What runs of one sweep have in common: their parent's record, and how a job reports to its study."""
