"""A sweep as a whole: the record of the parent run, and a summary of its jobs."""
