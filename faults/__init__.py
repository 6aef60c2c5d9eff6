"""Faults to survive, injected for real: `make faults` runs the table, tests/faults a part of it.

One module a kind of fault; `table` lists them all. Each injection is a process of its own (`trials`), most of them
around the small real run of `runs`.
"""
