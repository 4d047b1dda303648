"""4D convolutions over pairs of positions, one of the query and one of the support: the blocks of `fsseg.model.hsnet`.

A 4D map has the shape (B, C, h, w, h', w'): the query's sides first, then the support's.
"""

from __future__ import annotations

from torch import Tensor, nn

from fsseg.model.base import upsample

GROUPS = 4
"""Groups of the GroupNorm after each 4D convolution."""


class CentrePivotConv4d(nn.Module):
    """4D convolution whose kernel has weights only where the query's or the support's offset is zero.

    So it is the sum of two 2D convolutions: over the query's sides, for each support position that the stride keeps,
    and over the support's sides with that stride, for each query position. Each has a bias (Min et al., ICCV 2021,
    "center-pivot 4D convolution").
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.over_query = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.over_support = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w, h', w') -> (B, D, h, w, ceil(h' / stride), ceil(w' / stride))."""
        every_query = x.permute(0, 2, 3, 1, 4, 5)
        along_support = self.over_support(every_query.flatten(0, 2)).unflatten(0, every_query.shape[:3])
        every_support = x[..., :: self.stride, :: self.stride].permute(0, 4, 5, 1, 2, 3)
        along_query = self.over_query(every_support.flatten(0, 2)).unflatten(0, every_support.shape[:3])
        return along_support.permute(0, 3, 1, 2, 4, 5) + along_query.permute(0, 3, 4, 5, 1, 2)


def conv4d_block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Centre-pivot convolution, GroupNorm, ReLU."""
    convolution = CentrePivotConv4d(inputs, outputs, kernel, stride)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, outputs), nn.ReLU(inplace=True))


def resize_query(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale the query's sides bilinearly, corners aligned: (B, C, h, w, h', w') -> (B, C, *size, h', w')."""
    every_support = x.permute(0, 4, 5, 1, 2, 3)
    scaled = upsample(every_support.flatten(0, 2), size).unflatten(0, every_support.shape[:3])
    return scaled.permute(0, 3, 4, 5, 1, 2)
