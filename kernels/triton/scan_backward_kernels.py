"""Triton kernels of the selective scan's backward.

Axes, tiles and recurrences as in `scan_kernels.py`; everything walks from the end to the beginning.
"""

import triton
import triton.language as tl

from fastvim.kernels.triton.scan_kernels import (
    LOG2_E,
    SIZES,
    STRIDES,
    chain,
    state_row,
    step_size,
)


@triton.jit(do_not_specialize=SIZES + STRIDES)
def scan_adjoint_ends(
    delta, z, A, C, bias, gy, carries,
    delta_q, delta_d, delta_t, z_q, z_d, z_t, C_q, C_g, C_n, C_t, gy_q, gy_d, gy_t, gy_r,
    sequences, channels, length, n_states, shared_C, chunk,
    SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    FIXED_C: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What each chunk hands to the one before it, a_t g_t of its first step, if 0 enters it.

    Written to slot `chunk index` of `carries` (Q, C + 1, N, D).
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
    slot = carries + (q * (tl.num_programs(2) + 1) + part) * n_states * channels + d
    gy_base = direction * gy_r + (q % sequences) * gy_q

    first = part * chunk
    last = tl.minimum(first + chunk, length)
    tiles = tl.cdiv(last - first, TILE)
    for i in range(tiles):
        continues = inside & (tl.zeros([BLOCK], tl.int32) + i > 0)
        t = first + (tiles - 1 - i) * TILE + rows
        mask = (t < last) & inside[None, :]
        known = tl.minimum(t, length - 1)
        place = tl.where(direction == 1, length - 1 - known, known)
        _, dt = step_size(
            delta, q * delta_q, delta_d, delta_t, offset, d[None, :], place, mask, SOFTPLUS
        )
        dy = tl.load(gy + gy_base + d[None, :] * gy_d + place * gy_t, mask=mask, other=0.0)
        dy = dy.to(tl.float32)
        if HAS_Z:
            gate = tl.load(z + q * z_q + d[None, :] * z_d + place * z_t, mask=mask, other=0.0)
            gate = gate.to(tl.float32)
            dy = dy * gate / (1.0 + tl.exp(-gate))
        for n in range(n_states):
            a = tl.exp2(dt * (tl.load(A_row + n) * LOG2_E)[None, :])
            carry = tl.load(slot + n * channels, mask=continues, other=0.0)
            c = dy * state_row(
                C, q, C_q, C_g, C_n, C_t, shared_C, n, real, place, FIXED_C, TILE, BLOCK
            )
            # a_t g_t = a_t c_t + a_t (a_(t+1) g_(t+1)): a scan of its own, from the end.
            c = tl.where(rows == TILE - 1, c + carry[None, :], c)
            _, g = tl.associative_scan((a, a * c), 0, chain, reverse=True)
            tl.store(slot + n * channels, tl.sum(tl.where(rows == 0, g, 0.0), axis=0), mask=inside)
        tl.debug_barrier()


@triton.jit(do_not_specialize=SIZES + STRIDES)
def scan_backward(
    u, delta, z, A, B, C, skip, bias, gy, initial, states, carries, work,
    gu, gdelta, gz, gA, gB, gC, gskip, gbias,
    u_q, u_d, u_t, delta_q, delta_d, delta_t, z_q, z_d, z_t,
    B_q, B_g, B_n, B_t, C_q, C_g, C_n, C_t, gy_q, gy_d, gy_t, gy_r,
    gu_q, gu_d, gu_t, gdelta_q, gdelta_d, gdelta_t, gz_q, gz_d, gz_t,
    sequences, channels, length, n_states, shared_B, shared_C, chunk, slots,
    SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_BIAS: tl.constexpr,
    CARRIED: tl.constexpr, ENTERED: tl.constexpr, FIXED_B: tl.constexpr, FIXED_C: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of a chunk: a sweep that notes the state before each tile, then one back.

    From the left the chunk is entered by slot `chunk index` of `initial` (Q, C + 1, N, D) or, not
    CARRIED, 0; from the right by slot `chunk index + 1` of `carries`, or, not ENTERED, 0.
    `states` (Q, slots, N, D), a slot for each tile but the first, and `work` (Q, C, N, D) are
    scratch.
    Sums over channels and time are left in parts, which the caller adds up: gA (Q, C, N, D);
    gB, gC (channel blocks, Q, L, N) with row strides gB_t, or (Q, C, N, D) where FIXED;
    gskip, gbias (Q, C, D).
    """
    q = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    parts = tl.num_programs(2)
    direction = q // sequences
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = d < channels
    real = tl.minimum(d, channels - 1)
    rows = tl.arange(0, TILE)[:, None]
    A_row = A + (direction * channels + real) * n_states
    offset = 0.0
    if HAS_BIAS:
        offset = tl.load(bias + direction * channels + d, mask=inside, other=0.0)[None, :]
    states_q = states + q * slots * n_states * channels + d
    begin = (q * (parts + 1) + part) * n_states * channels + d
    whole = (q * parts + part) * n_states * channels + d
    block_rows = (tl.program_id(0) * tl.num_programs(1) + q) * length
    gy_base = direction * gy_r + (q % sequences) * gy_q

    first = part * chunk
    last = tl.minimum(first + chunk, length)
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
        # The slot of this tile; the next tile's follows.
        slot = states_q + (start // TILE - 1) * n_states * channels
        at = tl.zeros([BLOCK], tl.int32) + start
        for n in range(n_states):
            h0 = tl.load(slot + n * channels, mask=inside & (at > first), other=0.0)
            if CARRIED:
                enter = initial + begin + n * channels
                h0 += tl.load(enter, mask=inside & (at == first), other=0.0)
            a = tl.exp2(dt * (tl.load(A_row + n) * LOG2_E)[None, :])
            b = (
                dt
                * x
                * state_row(
                    B, q, B_q, B_g, B_n, B_t, shared_B, n, real, place, FIXED_B, TILE, BLOCK
                )
            )
            b = tl.where(rows == 0, b + a * h0[None, :], b)
            _, h = tl.associative_scan((a, b), 0, chain)
            ends = tl.sum(tl.where(rows == TILE - 1, h, 0.0), axis=0)
            tl.store(slot + (n_states + n) * channels, ends, mask=inside & (at + TILE < last))
        tl.debug_barrier()

    tiles = tl.cdiv(last - first, TILE)
    sum_bias = tl.zeros([BLOCK], tl.float32)
    sum_skip = tl.zeros([BLOCK], tl.float32)
    for i in range(tiles):
        start = first + (tiles - 1 - i) * TILE
        turn = tl.zeros([BLOCK], tl.int32) + i
        begins = inside & (turn == 0)
        continues = inside & (turn > 0)
        t = start + rows
        mask = (t < last) & inside[None, :]
        known = tl.minimum(t, length - 1)
        place = tl.where(direction == 1, length - 1 - known, known)
        after = (t + 1 < last) & inside[None, :] & (rows < TILE - 1)
        raw, dt = step_size(
            delta, q * delta_q, delta_d, delta_t, offset, d[None, :], place, mask, SOFTPLUS
        )
        _, dt_after = step_size(
            delta, q * delta_q, delta_d, delta_t, offset, d[None, :],
            tl.where(direction == 1, place - 1, place + 1), after, SOFTPLUS,
        )  # fmt: skip
        x = tl.load(u + q * u_q + d[None, :] * u_d + place * u_t, mask=mask, other=0.0)
        x = x.to(tl.float32)
        dy = tl.load(gy + gy_base + d[None, :] * gy_d + place * gy_t, mask=mask, other=0.0)
        dy = dy.to(tl.float32)
        if HAS_Z:
            gate = tl.load(z + q * z_q + d[None, :] * z_d + place * z_t, mask=mask, other=0.0)
            gate = gate.to(tl.float32)
            dy = dy * gate / (1.0 + tl.exp(-gate))
        y = tl.zeros([TILE, BLOCK], tl.float32)
        g_x = tl.zeros([TILE, BLOCK], tl.float32)
        g_dt = tl.zeros([TILE, BLOCK], tl.float32)
        slot = states_q + (start // TILE - 1) * n_states * channels
        starts = inside & (tl.zeros([BLOCK], tl.int32) + start == first)
        follows = inside & (tl.zeros([BLOCK], tl.int32) + start > first)
        row = (block_rows + tl.where(direction == 1, length - 1 - start, start)) * n_states
        along = tl.arange(0, TILE)
        row_places = row + tl.where(direction == 1, -along, along) * n_states
        row_mask = start + along < last
        for n in range(n_states):
            rate = tl.load(A_row + n)[None, :]
            C_row = state_row(
                C, q, C_q, C_g, C_n, C_t, shared_C, n, real, place, FIXED_C, TILE, BLOCK
            )
            entering = tl.load(work + whole + n * channels, mask=continues, other=0.0)
            if ENTERED:
                enter = carries + begin + (n_states + n) * channels
                entering += tl.load(enter, mask=begins, other=0.0)
            c = dy * C_row
            c = tl.where(rows == TILE - 1, c + entering[None, :], c)
            _, g = tl.associative_scan(
                (tl.exp2(dt_after * (rate * LOG2_E)), c), 0, chain, reverse=True
            )
            a = tl.exp2(dt * (rate * LOG2_E))
            handed = tl.sum(tl.where(rows == 0, a * g, 0.0), axis=0)
            tl.store(work + whole + n * channels, handed, mask=inside)

            B_row = state_row(
                B, q, B_q, B_g, B_n, B_t, shared_B, n, real, place, FIXED_B, TILE, BLOCK
            )
            b = dt * x * B_row
            g_x += g * dt * B_row
            g_dt += g * x * B_row
            h0 = tl.load(slot + n * channels, mask=follows, other=0.0)
            if CARRIED:
                h0 += tl.load(initial + begin + n * channels, mask=starts, other=0.0)
            _, h = tl.associative_scan((a, tl.where(rows == 0, b + a * h0[None, :], b)), 0, chain)
            if HAS_Z:
                y += h * C_row
            to_C = dy * h
            to_B = g * dt * x
            decayed = (h - b) * g
            g_dt += decayed * rate
            to_A = tl.load(gA + whole + n * channels, mask=continues, other=0.0)
            tl.store(gA + whole + n * channels, to_A + tl.sum(decayed * dt, axis=0), mask=inside)
            if FIXED_B:
                before = tl.load(gB + whole + n * channels, mask=continues, other=0.0)
                tl.store(gB + whole + n * channels, before + tl.sum(to_B, axis=0), mask=inside)
            else:
                tl.store(gB + row_places + n, tl.sum(to_B, axis=1), mask=row_mask)
            if FIXED_C:
                before = tl.load(gC + whole + n * channels, mask=continues, other=0.0)
                tl.store(gC + whole + n * channels, before + tl.sum(to_C, axis=0), mask=inside)
            else:
                tl.store(gC + row_places + n, tl.sum(to_C, axis=1), mask=row_mask)
        tl.debug_barrier()
        if HAS_SKIP:
            through = tl.load(skip + d, mask=inside, other=0.0).to(tl.float32)[None, :]
            g_x += dy * through
            y += x * through
            sum_skip += tl.sum(dy * x, axis=0)
        if HAS_Z:
            # Read again, so that the loop over the states need not keep them in registers.
            out = tl.load(gy + gy_base + d[None, :] * gy_d + place * gy_t, mask=mask, other=0.0)
            gate = tl.load(z + q * z_q + d[None, :] * z_d + place * z_t, mask=mask, other=0.0)
            gate = gate.to(tl.float32)
            sigmoid = 1.0 / (1.0 + tl.exp(-gate))
            g_gate = out.to(tl.float32) * y * sigmoid * (1.0 + gate * (1.0 - sigmoid))
            tl.store(gz + q * gz_q + d[None, :] * gz_d + place * gz_t, g_gate, mask=mask)
        if SOFTPLUS:
            g_dt = g_dt / (1.0 + tl.exp(-raw))
        sum_bias += tl.sum(tl.where(mask, g_dt, 0.0), axis=0)
        tl.store(gu + q * gu_q + d[None, :] * gu_d + place * gu_t, g_x, mask=mask)
        tl.store(gdelta + q * gdelta_q + d[None, :] * gdelta_d + place * gdelta_t, g_dt, mask=mask)
    if HAS_SKIP:
        tl.store(gskip + (q * parts + part) * channels + d, sum_skip, mask=inside)
    if HAS_BIAS:
        tl.store(gbias + (q * parts + part) * channels + d, sum_bias, mask=inside)
