"""The transformer of DETR (Carion et al. 2020, Figure 10): positions are added to queries and keys
in every attention, normalisation follows each sum. Shapes: B batch, P positions, Q queries, C
channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LAYERS, _HEADS, _DROPOUT = 6, 8, 0.1
_INNER = 8
"""Channels inside the two linear layers, as a multiple of C: 2048 for 256."""


def _attention(channels: int) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(channels, _HEADS, dropout=_DROPOUT, batch_first=True)


class _TwoLinear(nn.Sequential):
    """A hidden layer with ReLU, at each position by itself."""

    def __init__(self, channels: int):
        inner = _INNER * channels
        super().__init__(
            nn.Linear(channels, inner), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(inner, channels)
        )


class _EncoderLayer(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.attention, self.linear = _attention(channels), _TwoLinear(channels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, x_BPC: Tensor, places_BPC: Tensor, padding_BP: Tensor) -> Tensor:
        placed = x_BPC + places_BPC
        seen, _ = self.attention(
            placed, placed, x_BPC, key_padding_mask=padding_BP, need_weights=False
        )
        x_BPC = self.norms[0](x_BPC + self.dropout(seen))
        return self.norms[1](x_BPC + self.dropout(self.linear(x_BPC)))


class _DecoderLayer(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.own, self.cross = _attention(channels), _attention(channels)
        self.linear = _TwoLinear(channels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(
        self,
        x_BQC: Tensor,
        queries_BQC: Tensor,
        memory_BPC: Tensor,
        places_BPC: Tensor,
        padding_BP: Tensor,
    ) -> Tensor:
        asking = x_BQC + queries_BQC
        seen, _ = self.own(asking, asking, x_BQC, need_weights=False)
        x_BQC = self.norms[0](x_BQC + self.dropout(seen))
        seen, _ = self.cross(
            x_BQC + queries_BQC,
            memory_BPC + places_BPC,
            memory_BPC,
            key_padding_mask=padding_BP,
            need_weights=False,
        )
        x_BQC = self.norms[1](x_BQC + self.dropout(seen))
        return self.norms[2](x_BQC + self.dropout(self.linear(x_BQC)))


class Encoder(nn.Module):
    """Features (B, P, C) with their place codes -> as many features. Positions where `padding_BP`
    is true are not looked at.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.ModuleList(_EncoderLayer(channels) for _ in range(_LAYERS))

    def forward(self, x_BPC: Tensor, places_BPC: Tensor, padding_BP: Tensor) -> Tensor:
        for layer in self.layers:
            x_BPC = layer(x_BPC, places_BPC, padding_BP)
        return x_BPC


class Decoder(nn.Module):
    """Queries (B, Q, C) and the encoder's features -> the normalised output of each layer, (layers,
    B, Q, C).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.ModuleList(_DecoderLayer(channels) for _ in range(_LAYERS))
        self.norm = nn.LayerNorm(channels)

    def forward(
        self, queries_BQC: Tensor, memory_BPC: Tensor, places_BPC: Tensor, padding_BP: Tensor
    ) -> Tensor:
        x_BQC, outputs = torch.zeros_like(queries_BQC), []
        for layer in self.layers:
            x_BQC = layer(x_BQC, queries_BQC, memory_BPC, places_BPC, padding_BP)
            outputs.append(self.norm(x_BQC))
        return torch.stack(outputs)
