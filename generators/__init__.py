"""Generators: real images -> denoiser -> ids -> labelled samples on disk."""
