"""Triton kernels of the fused mixer: what reads and writes tokens, forward.

Axes: B batch, L tokens, S steps, D channels, K width of the convolution, T tokens of a tile.
x and z are rows of D channels, z after x; the scan visits places in the order of a table.
Tables are int32 (L,) or (B, L); the stride of the batch is 0 where images share them.
The members of a step are the times in `members[offsets[s] : offsets[s + 1]]`.

A tile is a tuple of T times G vectors (block,), for T tokens and G blocks of channels, tokens
outermost; its times are a tuple of T scalars, NOWHERE where there is no token. In (T, channels)
tensors, places and taps would have to change layout at every tap, through shared memory and a
barrier, and channels would be padded to a power of two. Taps are (2, K, D), channels innermost.
"""

# ruff: noqa: RUF005 - Triton has no starred tuples.
import triton
import triton.language as tl

NOWHERE = tl.constexpr(-(1 << 30))


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def table_of(table, b, stride, GIVEN: tl.constexpr):
    """The row of a table that belongs to image b; a table that is not given stays null."""
    if GIVEN:
        return table + b * stride
    else:
        return table


@triton.jit
def place_of(order, t, mask, ORDERED: tl.constexpr):
    """Where in memory the token of time t lies."""
    if ORDERED:
        return tl.load(order + t, mask=mask, other=0)
    return t


@triton.jit
def consecutive(start, end, T: tl.constexpr):
    """The T times from `start` on, those before `end`."""
    times = ()
    for r in tl.static_range(T):
        times = times + (tl.where(start + r < end, start + r, NOWHERE),)
    return times


@triton.jit
def listed(members, start, end, T: tl.constexpr):
    """The T times from `members[start]` on, those before `members[end]`."""
    times = ()
    for r in tl.static_range(T):
        times = times + (tl.load(members + start + r, mask=start + r < end, other=NOWHERE),)
    return times


@triton.jit
def exists(t, length, BLOCK: tl.constexpr):
    """Whether there is a time t, (block,)."""
    everywhere = tl.zeros([BLOCK], tl.int32) + t
    return (everywhere >= 0) & (everywhere < length)


@triton.jit
def convolve_rows(
    x, stride, order, times, d, length, channels: tl.constexpr, taps, bias,
    DIRECTION: tl.constexpr, ORDERED: tl.constexpr, HAS_BIAS: tl.constexpr, K: tl.constexpr,
    T: tl.constexpr, G: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """SiLU of the convolution of one direction for the tokens `times` and channels d, d + BLOCK ...

    The fused multiply-adds are spelled out, so that every kernel that recomputes this value
    gets the same bits: the gradient of a maximum depends on it.
    """
    rows = ()
    for _ in tl.static_range(T):
        for g in tl.static_range(G):
            if HAS_BIAS:
                c = d + g * BLOCK
                begin = tl.load(bias + DIRECTION * channels + c, mask=c < channels, other=0.0)
            else:
                begin = tl.zeros([BLOCK], tl.float32)
            rows = rows + (begin,)
    for k in tl.static_range(K):
        tap = ()
        for g in tl.static_range(G):
            c = d + g * BLOCK
            tap = tap + (
                tl.load(taps + (DIRECTION * K + k) * channels + c, mask=c < channels, other=0.0),
            )
        longer = ()
        for r in tl.static_range(T):
            t = times[r] + (K - 1 - k if DIRECTION == 1 else k - (K - 1))
            place = place_of(order, t, (t >= 0) & (t < length), ORDERED)
            there = exists(t, length, BLOCK)
            for g in tl.static_range(G):
                c = d + g * BLOCK
                value = tl.load(x + place * stride + c, mask=there & (c < channels), other=0.0)
                longer = longer + (tl.fma(value.to(tl.float32), tap[g], rows[r * G + g]),)
        rows = longer
    found = ()
    for i in tl.static_range(T * G):
        found = found + (silu(rows[i]),)
    return found


@triton.jit
def list_members(
    steps, members, offsets, length, n_steps, BLOCK: tl.constexpr
):  # fmt: skip
    """The times of every step, step after step, each ascending, and where each step's begin."""
    step = tl.program_id(0)
    table = tl.program_id(1)
    steps += table.to(tl.int64) * length
    members += table.to(tl.int64) * length
    offsets += table * (n_steps + 1)
    lane = tl.arange(0, BLOCK)
    before = 0
    for start in range(0, length, BLOCK):
        belongs = tl.load(steps + start + lane, mask=start + lane < length, other=n_steps)
        before += tl.sum((belongs < step).to(tl.int32), axis=0)
    tl.store(offsets + step, before)
    found = before
    for start in range(0, length, BLOCK):
        belongs = tl.load(steps + start + lane, mask=start + lane < length, other=n_steps)
        mine = belongs == step
        places = found + tl.cumsum(mine.to(tl.int32), axis=0) - 1
        tl.store(members + places, start + lane, mask=mine)
        found += tl.sum(mine.to(tl.int32), axis=0)
    if step == n_steps - 1:
        tl.store(offsets + n_steps, found)


@triton.jit
def pool_tokens(
    x, taps, conv_bias, order, members, offsets, pooled, extremes,
    x_b, x_t, order_b, members_b, offsets_b, batch, length, channels: tl.constexpr, n_steps, scale,
    FIRST: tl.constexpr, LAST: tl.constexpr, POOLING: tl.constexpr, TIES: tl.constexpr,
    ORDERED: tl.constexpr, HAS_BIAS: tl.constexpr, K: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass one: convolution, SiLU and pooling, to pooled (2, B, S, D) float32.

    A program makes one step (a tile of tokens where POOLING is `none`) of a block of channels,
    for the directions FIRST to LAST. TIES counts, into `pooled`, the tokens that attain the
    maximum in `extremes`.
    """
    unit = tl.program_id(0)
    b = tl.program_id(2).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < channels
    x += b * x_b
    order = table_of(order, b, order_b, ORDERED)
    if POOLING == "none":
        times = consecutive(unit * TILE, length, TILE)
        for direction in tl.static_range(FIRST, LAST):
            rows = convolve_rows(
                x, x_t, order, times, d, length, channels, taps, conv_bias,
                direction, ORDERED, HAS_BIAS, K, TILE, 1, BLOCK,
            )  # fmt: skip
            for r in tl.static_range(TILE):
                target = pooled + ((direction * batch + b) * n_steps + times[r]) * channels + d
                tl.store(target, rows[r] * scale, mask=inside & exists(times[r], length, BLOCK))
    else:
        begin = tl.load(offsets + b * offsets_b + unit)
        end = tl.load(offsets + b * offsets_b + unit + 1)
        members = table_of(members, b, members_b, True)
        for direction in tl.static_range(FIRST, LAST):
            row = ((direction * batch + b) * n_steps + unit) * channels + d
            found = tl.zeros([BLOCK], tl.float32)
            if POOLING == "max" and not TIES:
                found = found - float("inf")
            if TIES:
                extreme = tl.load(extremes + row, mask=inside, other=0.0)
            for start in range(begin, end, TILE):
                times = listed(members, start, end, TILE)
                rows = convolve_rows(
                    x, x_t, order, times, d, length, channels, taps, conv_bias,
                    direction, ORDERED, HAS_BIAS, K, TILE, 1, BLOCK,
                )  # fmt: skip
                for r in tl.static_range(TILE):
                    if TIES:
                        attains = (rows[r] * scale == extreme) & exists(times[r], length, BLOCK)
                        found += attains.to(tl.float32)
                    elif POOLING == "max":
                        higher = tl.maximum(found, rows[r])
                        found = tl.where(exists(times[r], length, BLOCK), higher, found)
                    else:
                        found += tl.where(exists(times[r], length, BLOCK), rows[r], 0.0)
            if not TIES:
                if POOLING == "mean":
                    found = found / tl.maximum(end - begin, 1).to(tl.float32)
                # A step without tokens is 0.
                found = tl.where(tl.zeros([BLOCK], tl.int32) + begin < end, found * scale, 0.0)
            tl.store(pooled + row, found, mask=inside)


@triton.jit
def merge_rows(
    x, x_t, order, steps, reverse_steps, scanned, taps, conv_bias, skip,
    b, times, d, batch, length, channels: tl.constexpr, n_steps, factor,
    ORDERED: tl.constexpr, POOLED: tl.constexpr, HAS_BIAS: tl.constexpr, K: tl.constexpr,
    T: tl.constexpr, G: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """factor * sum over directions of y_step(t) + D u_t for the tokens `times`, all channels."""
    merged = ()
    for _ in tl.static_range(T * G):
        merged = merged + (tl.zeros([BLOCK], tl.float32),)
    for direction in tl.static_range(2):
        rows = convolve_rows(
            x, x_t, order, times, d, length, channels, taps, conv_bias,
            direction, ORDERED, HAS_BIAS, K, T, G, BLOCK,
        )  # fmt: skip
        more = ()
        for r in tl.static_range(T):
            known = times[r] >= 0
            step = place_of(reverse_steps if direction == 1 else steps, times[r], known, POOLED)
            y = scanned + ((direction * batch + b) * n_steps + step) * channels
            there = exists(times[r], length, BLOCK)
            for g in tl.static_range(G):
                c = d + g * BLOCK
                through = tl.load(skip + direction * channels + c, mask=c < channels, other=0.0)
                added = tl.load(y + c, mask=there & (c < channels), other=0.0)
                more = more + (merged[r * G + g] + added + rows[r * G + g] * through,)
        merged = more
    found = ()
    for i in tl.static_range(T * G):
        found = found + (merged[i] * factor,)
    return found


@triton.jit
def total_of(row, G: tl.constexpr, BLOCK: tl.constexpr):
    """The sum over all channels of a row of G vectors."""
    total = tl.zeros([BLOCK], tl.float32)
    for g in tl.static_range(G):
        total += row[g]
    return tl.sum(total, axis=0)


@triton.jit
def normalise(merged, r, d, channels: tl.constexpr, eps, G: tl.constexpr, BLOCK: tl.constexpr):
    """Token r's row less its mean over its standard deviation, and one over the latter."""
    row = ()
    for g in tl.static_range(G):
        row = row + (merged[r * G + g],)
    mean = total_of(row, G, BLOCK) / channels
    centred, squares = (), ()
    for g in tl.static_range(G):
        value = tl.where(d + g * BLOCK < channels, row[g] - mean, 0.0)
        centred = centred + (value,)
        squares = squares + (value * value,)
    rstd = 1.0 / tl.sqrt(total_of(squares, G, BLOCK) / channels + eps)
    found = ()
    for g in tl.static_range(G):
        found = found + (centred[g] * rstd,)
    return found, rstd


@triton.jit
def finish_tokens(
    x, order, steps, reverse_steps, scanned, taps, conv_bias, skip,
    norm_weight, norm_bias, out,
    x_b, x_t, order_b, steps_b, reverse_steps_b, batch, length, channels: tl.constexpr, n_steps,
    share, factor, eps,
    ORDERED: tl.constexpr, POOLED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr, GATE: tl.constexpr, K: tl.constexpr,
    TILE: tl.constexpr, G: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass two: recompute the convolutions, broadcast the scan, merge, normalise, gate, write once.

    A program makes `share` tokens, all channels, tile by tile.
    """
    b = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK)
    x += b * x_b
    out += b * length * channels
    order = table_of(order, b, order_b, ORDERED)
    steps = table_of(steps, b, steps_b, POOLED)
    reverse_steps = table_of(reverse_steps, b, reverse_steps_b, POOLED)
    first = tl.program_id(0) * share
    last = tl.minimum(first + share, length)
    for start in range(first, last, TILE):
        times = consecutive(start, last, TILE)
        rows = merge_rows(
            x, x_t, order, steps, reverse_steps, scanned, taps, conv_bias, skip,
            b, times, d, batch, length, channels, n_steps, factor,
            ORDERED, POOLED, HAS_BIAS, K, TILE, G, BLOCK,
        )  # fmt: skip
        for r in tl.static_range(TILE):
            there = exists(times[r], length, BLOCK)
            place = place_of(order, times[r], times[r] >= 0, ORDERED)
            if HAS_NORM:
                normed, _ = normalise(rows, r, d, channels, eps, G, BLOCK)
            for g in tl.static_range(G):
                c = d + g * BLOCK
                if HAS_NORM:
                    value = normed[g] * tl.load(norm_weight + c, mask=c < channels, other=0.0)
                else:
                    value = rows[r * G + g]
                if HAS_NORM_BIAS:
                    value += tl.load(norm_bias + c, mask=c < channels, other=0.0)
                if GATE:
                    gate = tl.load(
                        x + place * x_t + channels + c, mask=there & (c < channels), other=0.0
                    )
                    value *= silu(gate.to(tl.float32))
                tl.store(out + place * channels + c, value, mask=there & (c < channels))
