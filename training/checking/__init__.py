"""Checks that what is trained is what was packed: the probe for leaks, and parity with samples one by one."""
