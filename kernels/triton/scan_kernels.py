"""Triton kernels of the selective scan: one program holds a block of channels over a chunk of time.

Axes: Q sequences (batch, or direction x batch), D channels, N states, T scan steps of a tile,
C chunks of a sequence. A program is a warp, in the backward up to four, with a channel a lane, so
that a tile (T, block) has its time axis inside a thread and the scan needs no exchange between
lanes. The reverse direction runs the same recurrence over mirrored places: step t of the scan is
place L - 1 - t of the memory.

The recurrence of state n is h_t = a_t h_(t-1) + b_t with a_t = exp(delta_t A_n) and
b_t = delta_t u_t B_t. Its adjoint is g_t = dy_t C_t + a_(t+1) g_(t+1), the same recurrence from
the other end, and d a_t / a_t = g_t a_t h_(t-1) = g_t (h_t - b_t): no division, no h_(t-1).

Strides count elements and are not specialised: a compiler that knew a unit stride along time
would put time across lanes.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)

SIZES = ["sequences", "channels", "length", "n_states", "shared_B", "shared_C"]
SIZES += ["chunk", "slots", "shift", "chunks"]
STRIDES = [
    *(f"{name}_{axis}" for name in ("u", "delta", "z", "y", "gy") for axis in "qdt"),
    *(f"{name}_{axis}" for name in "BC" for axis in "qgnt"),
    *(f"{name}_{axis}" for name in ("gu", "gdelta", "gz") for axis in "qdt"),
    "gy_r",
]


@triton.jit
def chain(a_first, b_first, a_second, b_second):
    """Two steps h -> a h + b, one after the other, are one such step."""
    return a_first * a_second, a_second * b_first + b_second


@triton.jit
def softplus(x):
    """log(1 + exp(x)), without overflow and without losing small values."""
    power = tl.exp(-tl.abs(x))
    # log1p by its series where 1 + power would round it away.
    series = 1.0 - power * (1 / 2 - power * (1 / 3 - power * (1 / 4 - power * (1 / 5))))
    return tl.maximum(x, 0.0) + tl.where(power < 0.05, power * series, tl.log(1.0 + power))


@triton.jit
def step_size(delta, base, stride_d, stride_t, bias, d, place, mask, SOFTPLUS: tl.constexpr):
    """Raw delta with its bias, and the step size made of it; 0 outside, where h then stays."""
    raw = tl.load(delta + base + d * stride_d + place * stride_t, mask=mask, other=0.0)
    raw = raw.to(tl.float32) + bias
    size = softplus(raw) if SOFTPLUS else raw
    return raw, tl.where(mask, size, 0.0)


@triton.jit
def state_row(
    matrix, q, stride_q, stride_g, stride_n, stride_t, shared, n, n_channel, place,
    FIXED: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Row n of B or C for a tile (T, block): a value a step, or, FIXED, a value a channel.

    A block lies within a group. `n_channel` are channels and `place` steps that exist: what is
    outside meets a step size, an input and a gradient of 0.
    """
    if FIXED:
        row = tl.load(matrix + n_channel * stride_g + n * stride_n).to(tl.float32)
        return tl.broadcast_to(row[None, :], [TILE, BLOCK])
    group = tl.program_id(0) * BLOCK // shared
    # 32-bit offsets that depend on n: a table of 64-bit addresses would live in registers.
    offsets = tl.broadcast_to(place * stride_t + n * stride_n, [TILE, BLOCK])
    return tl.load(matrix + q * stride_q + group * stride_g + offsets).to(tl.float32)


@triton.jit(do_not_specialize=SIZES + STRIDES)
def scan_forward(
    u, delta, z, A, B, C, skip, bias, y, initial, states, decays,
    u_q, u_d, u_t, delta_q, delta_d, delta_t, z_q, z_d, z_t, y_q, y_d, y_t,
    B_q, B_g, B_n, B_t, C_q, C_g, C_n, C_t,
    sequences, channels, length, n_states, shared_B, shared_C, chunk, slots, shift,
    OUTPUT: tl.constexpr, ENDS: tl.constexpr, CARRIED: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_BIAS: tl.constexpr,
    FIXED_B: tl.constexpr, FIXED_C: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scan each chunk, from slot `chunk index` of `initial` (Q, C + 1, N, D) or, not CARRIED, 0.

    OUTPUT writes y. The state after the chunk goes to slot `chunk index + shift` of `states`
    (Q, slots, N, D) and, with ENDS, the sum of delta to `decays` (Q, C, D).
    `shared_B` and `shared_C` channels have one B and C; a direction has `sequences` sequences.
    """
    q = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    direction = q // sequences
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = d < channels
    real = tl.minimum(d, channels - 1)
    rows = tl.arange(0, TILE)[:, None]
    A_row = A + (direction * channels + real) * n_states
    offset = 0.0
    if HAS_BIAS:
        offset = tl.load(bias + direction * channels + d, mask=inside, other=0.0)[None, :]
    begin = (q * (tl.num_programs(2) + 1) + part) * n_states * channels + d
    slot = states + (q * slots + part + shift) * n_states * channels + d

    first = part * chunk
    last = tl.minimum(first + chunk, length)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(first, last, TILE):
        t = start + rows
        mask = (t < last) & inside[None, :]
        known = tl.minimum(t, length - 1)
        place = tl.where(direction == 1, length - 1 - known, known)
        _, dt = step_size(
            delta, q * delta_q, delta_d, delta_t, offset, d[None, :], place, mask, SOFTPLUS
        )
        x = tl.load(u + q * u_q + d[None, :] * u_d + place * u_t, mask=mask, other=0.0)
        x = x.to(tl.float32)
        total += tl.sum(dt, axis=0)
        out = tl.zeros([TILE, BLOCK], tl.float32)
        # The state travels from tile to tile through memory: any number of states, no registers.
        at = tl.zeros([BLOCK], tl.int32) + start
        begins = inside & (at == first)
        continues = inside & (at > first)
        for n in range(n_states):
            a = tl.exp2(dt * (tl.load(A_row + n) * LOG2_E)[None, :])
            b = (
                dt
                * x
                * state_row(
                    B, q, B_q, B_g, B_n, B_t, shared_B, n, real, place, FIXED_B, TILE, BLOCK
                )
            )
            h0 = tl.load(slot + n * channels, mask=continues, other=0.0)
            if CARRIED:
                h0 += tl.load(initial + begin + n * channels, mask=begins, other=0.0)
            b = tl.where(rows == 0, b + a * h0[None, :], b)
            _, h = tl.associative_scan((a, b), 0, chain)
            if OUTPUT:
                out += h * state_row(
                    C, q, C_q, C_g, C_n, C_t, shared_C, n, real, place, FIXED_C, TILE, BLOCK
                )
            ends = tl.sum(tl.where(rows == TILE - 1, h, 0.0), axis=0)
            tl.store(slot + n * channels, ends, mask=inside)
        # The next tile reads the states that this one has just stored.
        tl.debug_barrier()
        if OUTPUT:
            if HAS_SKIP:
                out += x * tl.load(skip + d, mask=inside, other=0.0).to(tl.float32)[None, :]
            if HAS_Z:
                gate = tl.load(z + q * z_q + d[None, :] * z_d + place * z_t, mask=mask, other=0.0)
                gate = gate.to(tl.float32)
                out = out * gate / (1.0 + tl.exp(-gate))
            tl.store(y + q * y_q + d[None, :] * y_d + place * y_t, out, mask=mask)
    if ENDS:
        tl.store(decays + (q * tl.num_programs(2) + part) * channels + d, total, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def scan_carry(
    states, decays, A, sequences, channels, n_states, chunks,
    BACKWARD: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Join chunks that were scanned from 0: states (Q, C + 1, N, D), decays (Q, C, D), in place.

    Forward, slot c + 1 holds what chunk c ends with and slot 0 the initial state; backward, slot
    c holds what chunk c hands to the one before it, and slot C the gradient of the last state.
    """
    q = tl.program_id(1).to(tl.int64)
    n = tl.program_id(2)
    direction = q // sequences
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = d < channels
    rate = tl.load(A + (direction * channels + d) * n_states + n, mask=inside, other=0.0) * LOG2_E
    slots = states + (q * (chunks + 1) * n_states + n) * channels + d
    turn = tl.arange(0, TILE)[:, None]
    carry = tl.load(slots + (chunks if BACKWARD else 0) * n_states * channels, mask=inside)
    for start in range(0, chunks, TILE):
        i = start + turn
        mask = (i < chunks) & inside[None, :]
        c = chunks - 1 - i if BACKWARD else i
        out = c if BACKWARD else c + 1
        decay = tl.load(decays + (q * chunks + c) * channels + d[None, :], mask=mask, other=0.0)
        a = tl.exp2(decay * rate[None, :])
        b = tl.load(slots[None, :] + out * n_states * channels, mask=mask, other=0.0)
        b = tl.where(turn == 0, b + a * carry[None, :], b)
        _, h = tl.associative_scan((a, b), 0, chain)
        tl.store(slots[None, :] + out * n_states * channels, h, mask=mask)
        carry = tl.sum(tl.where(turn == TILE - 1, h, 0.0), axis=0)
