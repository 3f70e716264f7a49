"""Functions that a job of a sweep calls: for its place in the sweep, and for its trial in the storage of the study."""
