"""What can be done against unevenness, `mitigation=`, on top of any conversion: one module an option."""
