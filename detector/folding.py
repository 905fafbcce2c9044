"""What a network that only detects can leave out: batch normalisation is folded into the
convolutions before it, and a GPU applies ReLU and adds shortcuts within the convolution.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, Bottleneck

from detector.backbone import FrozenBatchNorm
from detector.model import RetinaNet
from detector.precision import autocast_dtype


def for_detecting(network: nn.Module, device: torch.device | str, *, amp: bool) -> nn.Module:
    """The network, folded and fused in place, on its device in evaluation mode; it cannot be
    trained after it.
    """
    network = fold_batch_norm(network).to(device, memory_format=torch.channels_last).eval()
    device = torch.device(device)
    dtype = autocast_dtype(device, amp=amp)
    fused = device.type == "cuda" and dtype is not None and isinstance(network, RetinaNet)
    return fuse_relu(network, dtype) if fused else network


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What the normalisation does to each channel in evaluation mode, y = x * scale + shift,
    float64 (C,).
    """
    if isinstance(norm, FrozenBatchNorm):
        return norm.scale.double(), norm.bias.double()
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold each batch normalisation that follows a convolution in its module into that one, in
    place and in float64. Returns the network.

    Same outputs in evaluation mode, up to rounding; other names in its state, and no training after
    it. Group normalisation, whose statistics are of each picture, stays.
    """
    for module in list(network.modules()):
        for (_, convolution), (name, norm) in pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(
                norm, _BatchNorm | FrozenBatchNorm
            ):
                scale, shift = scale_and_shift(norm)
                weight = convolution.weight * scale.view(-1, 1, 1, 1)
                if convolution.bias is not None:
                    shift = shift + convolution.bias * scale
                convolution.weight.copy_(weight)
                convolution.bias = nn.Parameter(
                    shift.to(convolution.weight.dtype), requires_grad=False
                )
                setattr(module, name, nn.Identity())
    return network


class ConvolutionRelu(nn.Conv2d):
    """relu(convolution + bias), or relu(convolution + bias + a tensor of its output's shape): on a
    GPU one cuDNN kernel.

    Apart they are two to three: on an H200 3x3 with 256 channels at 16 x 100x100 takes 0.24 instead
    of 0.41 ms, 1x1 from 64 to 256 channels at 200x200 with a shortcut 0.33 instead of over 0.74.
    """

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        x = x.to(self.weight.dtype)
        if not x.is_cuda:
            out = super().forward(x)
            return torch.relu(out if shortcut is None else out + shortcut)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        if shortcut is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, *settings)
        return torch.cudnn_convolution_add_relu(x, self.weight, shortcut, 1.0, self.bias, *settings)


class FusedBasicBlock(BasicBlock):
    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv2(self.conv1(x), shortcut)


class FusedBottleneck(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv3(self.conv2(self.conv1(x)), shortcut)


FUSED_BLOCKS = {BasicBlock: FusedBasicBlock, Bottleneck: FusedBottleneck}


@torch.no_grad()
def fuse_relu(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Let every ReLU that follows a folded convolution be part of it, in place, and hold all
    weights of convolutions in `dtype`.

    Where group normalisation stands between the two they stay apart.
    """
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d):
            module.to(dtype)
        if type(module) is nn.Sequential:
            # conv, relu; or conv, what was a normalisation, relu
            children = [
                (name, child)
                for name, child in module.named_children()
                if not isinstance(child, nn.Identity)
            ]
            for (_, convolution), (name, relu) in pairwise(children):
                if isinstance(convolution, nn.Conv2d) and isinstance(relu, nn.ReLU):
                    convolution.__class__ = ConvolutionRelu
                    setattr(module, name, nn.Identity())
        elif type(module) in FUSED_BLOCKS and isinstance(module.bn1, nn.Identity):
            module.__class__ = FUSED_BLOCKS[type(module)]
            convolutions = [child for child in module.children() if isinstance(child, nn.Conv2d)]
            for convolution in convolutions:
                convolution.__class__ = ConvolutionRelu
            if module.downsample is not None:
                # One bias for the sum of both.
                convolutions[-1].bias += module.downsample[0].bias
                module.downsample[0].bias = None
    return network
