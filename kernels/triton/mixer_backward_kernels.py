"""Triton kernels of the fused mixer's backward: what reads and writes tokens.

Axes and tables as in `mixer_kernels.py`; `grad_merged` (B, L, D) is in scan order and holds the
gradient of one direction's output. Parameters' gradients are left in rows, one a program, which
the caller adds up: the same sum every time, where atomics would add in any order.
"""

# ruff: noqa: RUF005 - Triton has no starred tuples.
import triton
import triton.language as tl

from fastvim.kernels.triton.mixer_kernels import (
    consecutive,
    exists,
    listed,
    merge_rows,
    normalise,
    place_of,
    silu,
    table_of,
    total_of,
)


@triton.jit
def silu_and_slope(x):
    """SiLU, to the bit as in the forward, and its derivative."""
    sigmoid = 1.0 / (1.0 + tl.exp(-x))
    return silu(x), sigmoid * (1.0 + x * (1.0 - sigmoid))


@triton.jit
def finish_backward_rows(
    x, order, steps, reverse_steps, scanned, taps, conv_bias, skip,
    norm_weight, norm_bias, grad_out, grad_x, grad_merged, sums,
    b, times, d, x_t, batch, length, channels: tl.constexpr, n_steps, factor, eps,
    ORDERED: tl.constexpr, POOLED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr, GATE: tl.constexpr, K: tl.constexpr,
    T: tl.constexpr, G: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass two backwards for the tokens `times`: writes z's gradient and grad_merged.

    Returns `sums`, 3 G vectors, with the tokens' grad_merged and what norm_weight and norm_bias
    get from them added.
    """
    rows = merge_rows(
        x, x_t, order, steps, reverse_steps, scanned, taps, conv_bias, skip,
        b, times, d, batch, length, channels, n_steps, factor,
        ORDERED, POOLED, HAS_BIAS, K, T, G, BLOCK,
    )  # fmt: skip
    for r in tl.static_range(T):
        there = exists(times[r], length, BLOCK)
        place = place_of(order, times[r], times[r] >= 0, ORDERED)
        if HAS_NORM:
            values, rstd = normalise(rows, r, d, channels, eps, G, BLOCK)
        total, to_weight, to_bias, grads, slants = (), (), (), (), ()
        for g in tl.static_range(G):
            c = d + g * BLOCK
            inside = c < channels
            grad = tl.load(grad_out + place * channels + c, mask=there & inside, other=0.0)
            grad = grad.to(tl.float32)
            if HAS_NORM:
                weight = tl.load(norm_weight + c, mask=inside, other=0.0)
            if GATE:
                normed = values[g] * weight if HAS_NORM else rows[r * G + g]
                if HAS_NORM_BIAS:
                    normed += tl.load(norm_bias + c, mask=inside, other=0.0)
                gate = tl.load(x + place * x_t + channels + c, mask=there & inside, other=0.0).to(
                    tl.float32
                )
                opened, slope = silu_and_slope(gate)
                tl.store(
                    grad_x + place * x_t + channels + c, grad * normed * slope, mask=there & inside
                )
                grad *= opened
            if HAS_NORM:
                to_weight = to_weight + (sums[G + g] + grad * values[g],)
                to_bias = to_bias + (sums[2 * G + g] + grad,)
                grad *= weight
                slants = slants + (grad * values[g],)
            else:
                to_weight, to_bias = to_weight + (sums[G + g],), to_bias + (sums[2 * G + g],)
            grads = grads + (grad,)
        if HAS_NORM:
            mean = total_of(grads, G, BLOCK) / channels
            slant = total_of(slants, G, BLOCK) / channels
        for g in tl.static_range(G):
            c = d + g * BLOCK
            grad = grads[g]
            if HAS_NORM:
                grad = (grad - mean - values[g] * slant) * rstd
            # Rounded as it is stored: the sums of steps are those of what the next kernel reads.
            grad = (grad * factor).to(grad_merged.dtype.element_ty)
            tl.store(grad_merged + times[r] * channels + c, grad, mask=there & (c < channels))
            grad = tl.where(there & (c < channels), grad.to(tl.float32), 0.0)
            total = total + (sums[g] + grad,)
        sums = total + to_weight + to_bias
    return sums


@triton.jit
def finish_backward(
    x, order, steps, reverse_steps, members, offsets, scanned, taps, conv_bias, skip,
    norm_weight, norm_bias, grad_out, grad_x, grad_merged, grad_scanned, grad_norm,
    x_b, x_t, order_b, steps_b, reverse_steps_b, members_b, offsets_b,
    batch, length, channels: tl.constexpr, n_steps, share, parts, factor, eps,
    ORDERED: tl.constexpr, POOLED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr, GATE: tl.constexpr, K: tl.constexpr,
    TILE: tl.constexpr, G: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass two backwards; `grad_norm` (programs, 2, D).

    A program makes `share` tokens or, POOLED, one of `parts` parts of each of `share` steps,
    whose sum it writes to `grad_scanned` (parts, B, S, D).
    """
    b = tl.program_id(2).to(tl.int64)
    part = tl.program_id(1)
    d = tl.arange(0, BLOCK)
    x += b * x_b
    grad_x += b * x_b
    grad_out += b * length * channels
    grad_merged += b * length * channels
    order = table_of(order, b, order_b, ORDERED)
    steps = table_of(steps, b, steps_b, POOLED)
    reverse_steps = table_of(reverse_steps, b, reverse_steps_b, POOLED)
    members = table_of(members, b, members_b, POOLED)
    offsets = table_of(offsets, b, offsets_b, POOLED)
    sums = ()
    for _ in tl.static_range(3 * G):
        sums = sums + (tl.zeros([BLOCK], tl.float32),)
    first = tl.program_id(0) * share
    if POOLED:
        for step in range(first, tl.minimum(first + share, n_steps)):
            begin = tl.load(offsets + step)
            size = tl.cdiv(tl.load(offsets + step + 1) - begin, parts)
            end = tl.minimum(begin + (part + 1) * size, tl.load(offsets + step + 1))
            for start in range(begin + part * size, end, TILE):
                sums = finish_backward_rows(
                    x, order, steps, reverse_steps, scanned, taps, conv_bias, skip,
                    norm_weight, norm_bias, grad_out, grad_x, grad_merged, sums,
                    b, listed(members, start, end, TILE), d, x_t, batch, length, channels, n_steps,
                    factor, eps, ORDERED, POOLED, HAS_BIAS, HAS_NORM, HAS_NORM_BIAS, GATE, K,
                    TILE, G, BLOCK,
                )  # fmt: skip
            row = grad_scanned + ((part * batch + b) * n_steps + step) * channels
            cleared = ()
            for g in tl.static_range(G):
                c = d + g * BLOCK
                tl.store(row + c, sums[g], mask=c < channels)
                cleared = cleared + (tl.zeros([BLOCK], tl.float32),)
            sums = cleared + sums[G:]
    else:
        last = tl.minimum(first + share, length)
        for start in range(first, last, TILE):
            sums = finish_backward_rows(
                x, order, steps, reverse_steps, scanned, taps, conv_bias, skip,
                norm_weight, norm_bias, grad_out, grad_x, grad_merged, sums,
                b, consecutive(start, last, TILE), d, x_t, batch, length, channels, n_steps,
                factor, eps, ORDERED, POOLED, HAS_BIAS, HAS_NORM, HAS_NORM_BIAS, GATE, K,
                TILE, G, BLOCK,
            )  # fmt: skip
    if HAS_NORM:
        program = (b * tl.num_programs(1) + part) * tl.num_programs(0) + tl.program_id(0)
        for g in tl.static_range(G):
            c = d + g * BLOCK
            row = grad_norm + program * 2 * channels + c
            tl.store(row, sums[G + g], mask=c < channels)
            tl.store(row + channels, sums[2 * G + g], mask=c < channels)


@triton.jit
def sum_steps(
    grad_merged, members, offsets, grad_scanned, members_b, offsets_b, length, n_steps,
    channels: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_scanned (B, S, D): the sum of grad_merged over the members of each step."""
    step = tl.program_id(0)
    b = tl.program_id(2).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < channels
    begin = tl.load(offsets + b * offsets_b + step)
    end = tl.load(offsets + b * offsets_b + step + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(begin, end, TILE):
        place = start + tl.arange(0, TILE)
        t = tl.load(members + b * members_b + place, mask=place < end, other=0)
        grad = tl.load(
            grad_merged + (b * length + t[:, None]) * channels + d[None, :],
            mask=(place < end)[:, None] & inside[None, :],
            other=0.0,
        )
        total += tl.sum(grad.to(tl.float32), axis=0)
    tl.store(grad_scanned + (b * n_steps + step) * channels + d, total, mask=inside)


@triton.jit
def pooling_gradient(
    grad_pooled, pooled, ties, offsets, row, step, d, there, channels: tl.constexpr, u, scale,
    POOLING: tl.constexpr,
):  # fmt: skip
    """What the pooled steps hand to one token each, whose convolutions are u; (W, block)."""
    grad = tl.load(grad_pooled + row * channels + d, mask=there, other=0.0) * scale
    if POOLING == "mean":
        count = tl.load(offsets + step + 1) - tl.load(offsets + step)
        grad = grad / tl.maximum(count, 1).to(tl.float32)
    if POOLING == "max":
        extreme = tl.load(pooled + row * channels + d, mask=there, other=0.0)
        sharing = tl.load(ties + row * channels + d, mask=there, other=1.0)
        grad = tl.where(u * scale == extreme, grad / sharing, 0.0)
    return grad


@triton.jit
def convolve_backward(
    x, order, steps, reverse_steps, offsets, reverse_offsets, taps, conv_bias, skip,
    grad_merged, grad_pooled, pooled, ties, grad_x, grad_rows,
    x_b, x_t, order_b, steps_b, reverse_steps_b, offsets_b, reverse_offsets_b,
    batch, length, channels: tl.constexpr, n_steps, run, runs, scale,
    POOLING: tl.constexpr, ORDERED: tl.constexpr, HAS_BIAS: tl.constexpr, K: tl.constexpr,
    W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass one backwards, and the skip: x's gradient, and rows for the parameters.

    Each of a program's W warps walks `run` tokens of a block of channels, one of `runs` of an
    image, and keeps the last K values of x and of both directions' gradients in registers: each is
    computed once though K tokens need it. At time i the forward direction's token is i and the
    reverse's, like the one whose gradient is complete, j = i - (K - 1). `grad_rows` is (programs,
    2, K + 2, D): taps, bias, skip; the warps' sums are added before they go to memory.
    """
    number = tl.program_id(1) * W + tl.arange(0, W)[:, None]
    known = number < batch * runs
    b = tl.where(known, number // runs, 0).to(tl.int64)
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = d < channels
    x += b * x_b
    grad_x += b * x_b
    grad_merged += b * length * channels
    order = table_of(order, b, order_b, ORDERED)
    steps = table_of(steps, b, steps_b, POOLING != "none")
    reverse_steps = table_of(reverse_steps, b, reverse_steps_b, POOLING != "none")
    offsets = table_of(offsets, b, offsets_b, POOLING != "none")
    reverse_offsets = table_of(reverse_offsets, b, reverse_offsets_b, POOLING != "none")
    first = number % runs * run
    # A warp without a run of its own walks beyond the end, where nothing is.
    first = tl.where(known, first, length + K)
    last = tl.minimum(first + run, length)

    zero = tl.zeros([W, BLOCK], tl.float32)
    tap, reverse_tap, xs, gs, forward, reverse = (), (), (), (), (), ()
    to_taps, to_reverse_taps = (), ()
    for k in tl.static_range(K):
        tap = tap + (tl.load(taps + k * channels + d, mask=inside, other=0.0),)
        reverse_tap = reverse_tap + (
            tl.load(taps + (K + k) * channels + d, mask=inside, other=0.0),
        )
        t = first - K + k
        has_t = (t >= 0) & (t < length)
        there = inside & has_t
        place = place_of(order, t, has_t, ORDERED)
        xs = xs + (tl.load(x + place * x_t + d, mask=there, other=0.0).to(tl.float32),)
        gs = gs + (tl.load(grad_merged + t * channels + d, mask=there, other=0.0).to(tl.float32),)
        forward = forward + (zero,)
        reverse = reverse + (zero,)
        to_taps = to_taps + (zero,)
        to_reverse_taps = to_reverse_taps + (zero,)
    bias, reverse_bias = zero, zero
    if HAS_BIAS:
        bias += tl.load(conv_bias + d, mask=inside, other=0.0)
        reverse_bias += tl.load(conv_bias + channels + d, mask=inside, other=0.0)
    through = tl.load(skip + d, mask=inside, other=0.0)
    reverse_through = tl.load(skip + channels + d, mask=inside, other=0.0)
    to_bias, to_reverse_bias, to_skip, to_reverse_skip = zero, zero, zero, zero

    for walked in range(0, run + K - 1):
        i = first + walked
        j = i - (K - 1)
        has_i = i < length
        has_j = (j >= 0) & (j < length)
        there = inside & has_i
        back = inside & has_j
        place = place_of(order, i, has_i, ORDERED)
        xs = xs[1:] + (tl.load(x + place * x_t + d, mask=there, other=0.0).to(tl.float32),)
        gs = gs[1:] + (
            tl.load(grad_merged + i * channels + d, mask=there, other=0.0).to(tl.float32),
        )
        value, reverse_value = bias, reverse_bias
        for k in tl.static_range(K):
            value = tl.fma(xs[k], tap[k], value)
            reverse_value = tl.fma(xs[K - 1 - k], reverse_tap[k], reverse_value)

        u, slope = silu_and_slope(value)
        step = place_of(steps, i, has_i, POOLING != "none")
        handed = pooling_gradient(
            grad_pooled, pooled, ties, offsets, b * n_steps + step, step, d, there, channels, u,
            scale, POOLING,
        )  # fmt: skip
        grad = tl.where(there, (gs[K - 1] * through + handed) * slope, 0.0)
        forward = forward[1:] + (grad,)
        mine = tl.where(i < last, grad, 0.0)
        to_skip += tl.where(i < last, gs[K - 1] * u, 0.0)
        to_bias += mine

        u, slope = silu_and_slope(reverse_value)
        step = place_of(reverse_steps, j, has_j, POOLING != "none")
        handed = pooling_gradient(
            grad_pooled, pooled, ties, reverse_offsets, (batch + b) * n_steps + step, step, d,
            back, channels, u, scale, POOLING,
        )  # fmt: skip
        grad = tl.where(back, (gs[0] * reverse_through + handed) * slope, 0.0)
        reverse = reverse[1:] + (grad,)
        reverse_mine = tl.where(j >= first, grad, 0.0)
        to_reverse_skip += tl.where(j >= first, gs[0] * u, 0.0)
        to_reverse_bias += reverse_mine

        total = zero
        new_taps, new_reverse_taps = (), ()
        for k in tl.static_range(K):
            total += forward[K - 1 - k] * tap[k] + reverse[k] * reverse_tap[k]
            new_taps = new_taps + (to_taps[k] + mine * xs[k],)
            new_reverse_taps = new_reverse_taps + (
                to_reverse_taps[k] + reverse_mine * xs[K - 1 - k],
            )
        to_taps, to_reverse_taps = new_taps, new_reverse_taps
        place = place_of(order, j, has_j, ORDERED)
        tl.store(grad_x + place * x_t + d, total, mask=back & (j >= first))

    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = d < channels
    rows = grad_rows + tl.program_id(1) * 2 * (K + 2) * channels + d
    more = (K + 2) * channels
    for k in tl.static_range(K):
        tl.store(rows + k * channels, tl.sum(to_taps[k], axis=0), mask=inside)
        tl.store(rows + more + k * channels, tl.sum(to_reverse_taps[k], axis=0), mask=inside)
    tl.store(rows + K * channels, tl.sum(to_bias, axis=0), mask=inside)
    tl.store(rows + more + K * channels, tl.sum(to_reverse_bias, axis=0), mask=inside)
    tl.store(rows + (K + 1) * channels, tl.sum(to_skip, axis=0), mask=inside)
    tl.store(rows + more + (K + 1) * channels, tl.sum(to_reverse_skip, axis=0), mask=inside)
