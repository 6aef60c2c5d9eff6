"""Ways to look for good answers instead of drawing them."""
