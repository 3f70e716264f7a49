"""A sweep as a whole: the record of the parent run, and a summary of its jobs."""

from snnexp.callable import called_as

called_as(__name__, "sweep")
