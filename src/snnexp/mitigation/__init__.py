"""Mitigations of the unevenness error, `mitigation=`, on top of a conversion: one module for each option."""
