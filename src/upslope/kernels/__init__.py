"""Kernels: products and attention as fast as the machine allows, each equal to PyTorch's own."""
