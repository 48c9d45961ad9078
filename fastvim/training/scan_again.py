"""Delta and the states of scans, which no kernel keeps: computed again, for all blocks at once."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvim.kernels import selective_scan
from fastvim.models.mixer import Mixer

# Delta at about so many steps of the scan, evenly spaced, and the state of so many channels,
# evenly spaced, after the last step of each direction.
DELTA_STEPS = 8
STATE_CHANNELS = 32


def deltas_and_states(scans: Sequence[tuple[Mixer, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Delta (2, s, D) and the last states (2, c, N) of each block's scan of u (2, S, D)."""
    # Blocks differ where the grid is not square, and in a masked autoencoder.
    alike: dict[tuple, list[int]] = {}
    for block, (mixer, u) in enumerate(scans):
        alike.setdefault((u.shape, mixer.dt_proj.shape, mixer.A_log.shape), []).append(block)
    found = {}
    for blocks in alike.values():
        found |= zip(blocks, _scan_again([scans[block] for block in blocks]), strict=True)
    return [found[block] for block in range(len(scans))]


def _scan_again(scans: Sequence[tuple[Mixer, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """As `deltas_and_states`, of blocks with the same shapes.

    One scan has a group of channels for each block and direction; the reverse runs backwards.
    """
    mixer, u = scans[0]
    rank, states = mixer.dt_proj.shape[2], mixer.A_log.shape[2]
    steps = slice(None, None, max(1, u.shape[1] // DELTA_STEPS))
    channels = slice(None, None, max(1, u.shape[2] // STATE_CHANNELS))
    deltas, scanned, dt_projs, projections, biases, decays = [], [], [], [], [], []
    with torch.autocast(u.device.type, enabled=False):
        for mixer, u in scans:
            x_proj = mixer.x_proj[:, : rank + states].to(u.dtype)
            dt_proj, dt_bias = mixer.dt_proj.to(u.dtype), mixer.dt_bias.to(u.dtype)
            projected = torch.bmm(u, x_proj.transpose(1, 2))
            low_rank = projected[:, steps, :rank]
            deltas.append(torch.baddbmm(dt_bias[:, None], low_rank, dt_proj.transpose(1, 2)))
            scanned.append(u[..., channels])
            projections.append(projected)
            dt_projs.append(dt_proj[:, channels])
            biases.append(dt_bias[:, channels])
            decays.append(mixer.A_log[:, channels])
        # (blocks * 2, ...): a group's steps, projections and weights.
        projected, dt_proj = torch.cat(projections), torch.cat(dt_projs)
        lengths = torch.bmm(projected[..., :rank], dt_proj.transpose(1, 2))
        groups = torch.cat([torch.cat(scanned), lengths, projected[..., rank:]], dim=2)
        groups[1::2] = groups[1::2].flip(1)
        u, lengths, B = groups.transpose(1, 2).split([*[dt_proj.shape[1]] * 2, states], dim=1)
        _, last = selective_scan(
            u.flatten(0, 1)[None],
            lengths.flatten(0, 1)[None],
            -torch.exp(torch.cat(decays).flatten(0, 1)),
            B[None],
            B[None],
            delta_bias=torch.cat(biases).flatten(),
            delta_softplus=True,
            return_last_state=True,
        )
        shape = (len(scans), 2, dt_proj.shape[1], states)
        return zip(F.softplus(torch.stack(deltas)), last.view(shape), strict=True)
