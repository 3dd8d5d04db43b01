"""Certifying an engine: the scheduler, the sampler, the self-test, and what is built from them."""
