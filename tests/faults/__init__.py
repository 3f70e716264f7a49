"""Faults on purpose: kills, servers that fail, full disks, damaged files. Run by `make test-faults`."""
