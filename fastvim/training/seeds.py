"""Seeds that depend on what is drawn and not on what was drawn before.

A run can then stop and go on at any step, and two variants of one seed draw the same numbers for
what they have in common.
"""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts, the same on every machine."""
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of `device`, with the numbers that
    `torch.manual_seed` gives.

    That seeds every kind of device there may be, and for each that is not in use formats a
    traceback of the caller first: more than a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
