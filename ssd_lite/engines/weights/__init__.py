"""Weights in a model's folder: read, cached, adapted and merged, tensor by tensor."""
