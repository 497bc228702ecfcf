"""What a machine can do for a run: `scripts/doctor.py`.

Each probe has a function that looks, in a process of its own, and one that judges what it saw, a
pure function from facts to rows. It changes nothing.
"""
