"""Vim and FastVim: one backbone over a token grid and a schedule of pooled axes."""

from collections.abc import Callable, Sequence

import torch
from timm.layers import DropPath, resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import checkpoint

from fastvim.errors import UserError
from fastvim.grid import TokenGrid
from fastvim.kernels import BlockArguments, ScanLayout, residual_blocks
from fastvim.kernels.block import can_fuse
from fastvim.kernels.block_schema import Kept
from fastvim.kernels.flops import mixer_work
from fastvim.models.config import IMAGE_AXES, ModelConfig
from fastvim.models.initialisation import initialise
from fastvim.models.mixer import Mixer, RMSNorm, is_untouched


class Block(nn.Module):
    """Residual block: tokens r (B, L, d_model) become r + drop_path(mixer(RMSNorm(r)))."""

    def __init__(self, config: ModelConfig, drop_path: float):
        super().__init__()
        self.norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.mixer = Mixer(config)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        # Called with the output of every pass.
        self.observer: Callable[[Tensor], None] | None = None

    def forward(self, x: Tensor, layout: ScanLayout, divisor: int | None = None) -> Tensor:
        block = self.operator(layout, divisor)
        if block is not None and can_fuse(x, [block]):
            return run_operators(x, [self], [block])
        x = x + self.drop_path(self.mixer(self.norm(x), layout, divisor))
        if self.observer is not None:
            self.observer(x)
        return x

    def operator(self, layout: ScanLayout, divisor: int | None = None) -> BlockArguments | None:
        """The arguments of the operator that computes the same; None where only the modules do."""
        if not self._replaceable(layout):
            return None
        mixer = self.mixer
        return BlockArguments(
            self.norm.weight,
            mixer.in_proj.weight,
            mixer.out_proj.weight,
            mixer.weights(mixer.A_log),
            layout,
            mixer.settings(layout, divisor),
            self.norm.eps,
        )

    def _replaceable(self, layout: ScanLayout) -> bool:
        """Whether the fused operator may run in place of the modules."""
        norm, mixer, drop_path = self.norm, self.mixer, self.drop_path
        return (
            not _has_any_global_hook()
            and type(norm) is RMSNorm
            and is_untouched(norm)
            and (
                type(drop_path) is nn.Identity
                or (isinstance(drop_path, DropPath) and not drop_path.training)
            )
            and is_untouched(drop_path)
            and isinstance(mixer, Mixer)
            and mixer.replaceable(layout)
        )


def run_operators(
    x: Tensor, blocks: Sequence[Block], operators: Sequence[BlockArguments]
) -> Tensor:
    """x through the blocks by their operators; tells their observers."""

    def observe(place: int, kept: Kept, output: Tensor) -> None:
        block = blocks[place]
        if block.mixer.observer is not None:
            block.mixer.observer(block.mixer, kept.pooled, kept.scanned, kept.merged)
        if block.observer is not None:
            block.observer(output)

    observed = any(block.observer or block.mixer.observer for block in blocks)
    return residual_blocks(x, operators, observe if observed else None)


def _is_as_defined(block: nn.Module) -> bool:
    """Whether calling the block is `Block.forward` and nothing else."""
    return type(block) is Block and is_untouched(block)


def run_blocks(
    x: Tensor, blocks: Sequence[Block], layouts: Sequence[tuple[ScanLayout, int | None]]
) -> Tensor:
    """x through the blocks, each with its layout and divisor; by operators if all of them can."""
    if blocks and all(map(_is_as_defined, blocks)):
        pairs = zip(blocks, layouts, strict=True)
        operators = [block.operator(*layout) for block, layout in pairs]
        if all(block is not None for block in operators) and can_fuse(x, operators):
            return run_operators(x, blocks, operators)
    for block, layout in zip(blocks, layouts, strict=True):
        x = block(x, *layout)
    return x


class LayoutTables(nn.Module):
    """A scan layout's tables as buffers, so that they move with the model but are not saved."""

    def __init__(self, layout: ScanLayout):
        super().__init__()
        self.n_steps = layout.n_steps
        self.register_buffer("order", layout.order, persistent=False)
        self.register_buffer("steps", layout.steps, persistent=False)

    def forward(self) -> ScanLayout:
        return ScanLayout(self.order, self.steps, None, self.n_steps)


class VisionMamba(nn.Module):
    """Classifier of images (B, in_channels, H, W) to logits (B, num_classes).

    With `num_classes` 0 there is no head and `forward` gives pooled features (B, d_model). The
    methods beside `forward` follow timm's conventions.
    Sources: FastVim arXiv 2502.00594; Vim arXiv 2401.09417.
    """

    def __init__(self, config: ModelConfig, seed: int = 0):
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = config.d_model
        self.grad_checkpointing = False

        self.patch_embed = nn.Conv2d(
            config.in_channels, config.d_model, config.patch_size, config.strides
        )
        tokens = config.grid_size[0] * config.grid_size[1]
        self.class_token_place = {"none": None, "head": 0, "middle": tokens // 2}[
            config.class_token
        ]
        has_class_token = self.class_token_place is not None
        self.cls_token = (
            nn.Parameter(torch.empty(1, 1, config.d_model)) if has_class_token else None
        )
        self.pos_embed = nn.Parameter(torch.empty(1, tokens + has_class_token, config.d_model))
        rates = torch.linspace(0, config.drop_path_rate, config.depth).tolist()
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.head = nn.Linear(config.d_model, config.num_classes) if config.num_classes else None
        self._lay_out()
        initialise(self, config, seed)

        reduction = config.strides[0]
        self.feature_info = [
            {"num_chs": config.d_model, "reduction": reduction, "module": f"blocks.{i}"}
            for i in range(config.depth)
        ]

    def _lay_out(self) -> None:
        self.grid = grid = TokenGrid(
            IMAGE_AXES, self.config.grid_size, class_token=self.class_token_place
        )
        axes: tuple[str | None, ...] = self.config.schedule or (None,)
        self.schedule = [str(axes[i % len(axes)]) for i in range(self.config.depth)]
        self.layouts = nn.ModuleDict(
            {str(axis): LayoutTables(grid.layout(axis, self.config.scan_order)) for axis in axes}
        )

    def init_weights(self, seed: int) -> None:
        """Draw all parameters anew; see `fastvim.models.initialisation`."""
        initialise(self, self.config, seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def embed(self, x: Tensor) -> Tensor:
        """Images to tokens (B, L, d_model) with their positions, before the first block."""
        if tuple(x.shape[1:]) != (self.config.in_channels, *self.config.image_size):
            raise ValueError(
                f"images are {tuple(x.shape[1:])}; this model takes "
                f"{(self.config.in_channels, *self.config.image_size)} (see set_input_size)"
            )
        # Laid out anew once: sums keep their first operand's layout, so a transposed one would go
        # through every residual, copied by every norm.
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2).contiguous()
        if self.cls_token is not None:
            place = self.class_token_place
            class_token = self.cls_token.expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([tokens[:, :place], class_token, tokens[:, place:]], dim=1)
        return tokens + self.pos_embed

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to normalised tokens (B, L, d_model), the class token among them."""
        return self.norm(self._run(self.embed(x), 0, len(self.blocks)))

    def _run(self, x: Tensor, first: int, last: int) -> Tensor:
        """Through blocks [first, last)."""
        blocks = list(self.blocks)[first:last]
        layouts = [self.layouts[axis]() for axis in self.schedule[first:last]]
        if self.grad_checkpointing and self.training and not torch.jit.is_tracing():
            for block, layout in zip(blocks, layouts, strict=True):
                x = checkpoint(block, x, layout, use_reentrant=False)
            return x
        return run_blocks(x, blocks, [(layout, None) for layout in layouts])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens to logits; `pre_logits` stops at the class token's, or mean, features."""
        place = self.class_token_place
        x = x.mean(dim=1) if place is None else x[:, place]
        return x if pre_logits or self.head is None else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ):
        """Tokens after the blocks `indices` (None: all; n: the last n), as timm defines it.

        `output_fmt` NCHW gives (B, d_model, rows, cols) without the class token, NLC gives
        (B, L, d_model).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}; it must be NCHW or NLC")
        wanted = self._block_indices(indices)
        x = self.embed(x)
        found, done = [], 0
        for last in sorted(set(wanted)):
            x, done = self._run(x, done, last + 1), last + 1
            found.append(self._as_features(self.norm(x) if norm else x, output_fmt))
        if not stop_early:
            x = self._run(x, done, len(self.blocks))
        return found if intermediates_only else (self.norm(x), found)

    def _block_indices(self, indices: int | list[int] | None) -> list[int]:
        depth = len(self.blocks)
        if indices is None:
            return list(range(depth))
        if isinstance(indices, int):
            indices = list(range(depth - indices, depth))
        wanted = [index % depth for index in indices if -depth <= index < depth]
        if len(wanted) != len(indices):
            raise ValueError(f"blocks {list(indices)}: this model has {depth} blocks")
        return sorted(wanted)

    def _as_features(self, x: Tensor, output_fmt: str) -> Tensor:
        if output_fmt == "NLC":
            return x
        if self.class_token_place is not None:
            place = self.class_token_place
            x = torch.cat([x[:, :place], x[:, place + 1 :]], dim=1)
        return x.transpose(1, 2).unflatten(2, self.config.grid_size)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last of `indices`, and the norm and head if asked."""
        wanted = self._block_indices(indices)
        self.blocks = self.blocks[: wanted[-1] + 1]
        self.schedule = self.schedule[: wanted[-1] + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return wanted

    def get_classifier(self) -> nn.Module | None:
        return self.head

    def check_global_pool(self, global_pool: str | None) -> None:
        """UserError unless it is how this model's head pools, in timm's words, or None."""
        own = "avg" if self.class_token_place is None else "token"
        if global_pool not in (None, own):
            raise UserError(f"global_pool is {global_pool!r}; this model has {own!r}")

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for `num_classes` classes; 0 removes it."""
        self.check_global_pool(global_pool)
        self.num_classes = num_classes
        self.config = self.config.model_copy(update={"num_classes": num_classes})
        self.head = None
        if num_classes:
            head = nn.Linear(self.embed_dim, num_classes)
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            self.head = head.to(self.pos_embed)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size; position embeddings are interpolated (bicubic)."""
        before = self.config
        values = before.model_dump() | {"image_size": img_size}
        self.config = ModelConfig(**values)
        pos = self.pos_embed.detach()
        place = self.class_token_place
        token_pos = pos[:, :0]
        if place is not None:
            token_pos = pos[:, place : place + 1]
            pos = torch.cat([pos[:, :place], pos[:, place + 1 :]], dim=1)
        pos = resample_abs_pos_embed(
            pos, list(self.config.grid_size), list(before.grid_size), num_prefix_tokens=0
        )
        if place is not None:
            tokens = self.config.grid_size[0] * self.config.grid_size[1]
            place = 0 if before.class_token == "head" else tokens // 2
            self.class_token_place = place
            pos = torch.cat([pos[:, :place], token_pos, pos[:, place:]], dim=1)
        self.pos_embed = nn.Parameter(pos, requires_grad=self.pos_embed.requires_grad)
        self._lay_out()
        self.layouts.to(pos.device)

    def uncounted_operations(self) -> int:
        """Operations an image that a counter of registered operators does not see.

        With attention pooling the mixer runs as plain PyTorch: what its matrix products and
        norm, which counters do see, leave of the mixer's work, and the weighting of the tokens.
        """
        if self.config.pooling != "attention":
            return 0
        total = 0
        for axis in self.schedule:
            n_steps, D = self.layouts[axis].n_steps, self.config.d_inner
            tokens, steps = len(self.grid) * D, n_steps * D
            if self.layouts[axis].steps is None:
                continue  # Nothing is pooled: the registered operator ran.
            gate, mean = self.config.gates, self.config.direction_merge == "mean"
            width, states = self.config.d_conv, self.config.d_state
            work = mixer_work(tokens, steps, width, 0, states, False, False, gate, mean)
            projections = 2 * 2 * states * steps
            total += work.fvcore - projections + 2 * tokens
        return total

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: A_log, D, biases, norms, embeddings."""
        exempt = ("A_log", "D", "bias", "conv_bias", "dt_bias", "pool_query")
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim <= 1
            or name.rsplit(".", 1)[-1] in exempt
            or name in ("pos_embed", "cls_token")
        }

    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter groups by depth, for layer-wise learning-rate decay in timm."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }
