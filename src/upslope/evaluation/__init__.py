"""Evaluation: what a policy is worth, measured or, where it is small enough, exactly."""
