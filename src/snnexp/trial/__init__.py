"""The job of a sweep as it sees itself: its place in the sweep, and its trial in the storage of the study."""
