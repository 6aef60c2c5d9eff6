"""Policies: Hugging Face models that score actions. See policy.Policy for what each kind offers."""
