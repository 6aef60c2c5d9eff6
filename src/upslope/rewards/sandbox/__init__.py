"""Generated programs, run and tested where they can do no harm: one process for the program, one for its tests.

`supervisor` is the trainer's end. Everything else runs in processes of its own and imports the standard library only.
"""
