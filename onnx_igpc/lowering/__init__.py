"""Lowering: writing rewritten sites down in the way that a runtime executes fastest.

A lowering never changes what a site computes, only the operators that compute it: see
:mod:`onnx_igpc.sites.subgraph` for finding the sites in a file and
:mod:`onnx_igpc.lowering.catalogue` for the ways to write them down.
"""
