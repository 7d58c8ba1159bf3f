"""The light decoder of masked autoencoders: from the encoded visible patches to a vector for each hidden one.

B images, N patches, K kept, M wanted, P prefix tokens, D encoder width, E decoder width, O output width.
"""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .encoder import Encoder, Tokens, initialise_xavier, sincos_positions


class Decoder(nn.Module):
    """A few transformer blocks over the visible tokens and one learned mask token wherever a patch is wanted (MAE).

    Args:
        output: width O of what is predicted for a patch.
        width: E; None: 512, or 64 less than the encoder's width below 384.
        depth: blocks; None: 8, or 2 for encoders narrower than 384.
    """

    positions: Tensor  # (N, E)

    def __init__(self, encoder: Encoder, output: int, *, width: int | None = None, depth: int | None = None):
        super().__init__()
        narrow = encoder.dim < 384
        width = width or (max(64, encoder.dim - 64) if narrow else 512)
        depth = depth or (2 if narrow else 8)
        self.embed = nn.Linear(encoder.dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.blocks = nn.Sequential(*(Block(width, num_heads=max(1, width // 32), qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.usual_grid = encoder.grid(*encoder.image_size)
        self.register_buffer("positions", sincos_positions(width, *self.usual_grid), persistent=False)  # (N, E)
        self.predict = nn.Linear(width, output)
        for part in (self.embed, self.blocks, self.predict):
            part.apply(initialise_xavier)

    def forward(self, tokens: Tokens, keep: Tensor, wanted: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predictions (B, M, O) for the patches ``wanted`` (B, M), from the tokens of those that ``keep`` (B, K) names."""
        prefix, seen = (self.embed(x) for x in tokens)  # (B, P, E), (B, K, E)
        positions = (self.positions if grid == self.usual_grid else sincos_positions(seen.shape[-1], *grid)).to(seen)  # (N, E)
        hidden = self.mask_token.to(seen) + positions[wanted]  # (B, M, E)
        x = self.blocks(torch.cat([prefix, seen + positions[keep], hidden], dim=1))
        return self.predict(self.norm(x[:, -wanted.shape[1] :]))
