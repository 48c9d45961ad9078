"""Seeds that depend on what is drawn and not on what was drawn before.

A run can then stop and go on at any step, and two variants of one seed draw the same numbers for
what they have in common.
"""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts, the same on every machine."""
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
