"""Engines: policies that sample fast. See engine.Engine for the seam."""
