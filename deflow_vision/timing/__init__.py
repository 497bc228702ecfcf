"""What things cost on this machine, each held against something timed beside it: `make bench`.

Every part returns figures; `table` writes them. Absolute times say little of another machine, the
ratios carry over.
"""
