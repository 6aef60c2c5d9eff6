"""The doctor: what a machine and a recipe will do, and what is wrong with them, before a run begins."""
