"""What a job of a sweep knows of it: its trial, and the study's storage that it reports to."""
