"""`python -m snnexp`: the command line."""

from snnexp.run import main

main()
