"""MODELS: the networks of the main job and the benchmarks, plain modules under the field's usual names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from winnow.errors import WinnowError


class LeNet300100(nn.Module):
    """LeNet-300-100 (LeCun et al. 1998): (n, inputs) or (n, ...) flattened -> (n, classes) logits.

    `hidden` shrinks it for small inputs; at 784-300-100-10 it has 266,200 weights and 410 biases.
    """

    def __init__(self, inputs: int = 784, classes: int = 10, hidden: tuple[int, int] = (300, 100)) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))
        return logits


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a `NanoGPT`; the default trains in minutes on two cores, `benchmark()` has 10.7 M."""

    vocab: int = 65
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    block_size: int = 128
    dropout: float = 0.0
    bias: bool = False
    tied: bool = True

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise WinnowError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")

    @classmethod
    def benchmark(cls, vocab: int = 65, dropout: float = 0.0) -> GPTConfig:
        """nanoGPT's character-level Shakespeare model: 6 layers, 6 heads, width 384, block 256."""
        return cls(vocab=vocab, n_layer=6, n_head=6, n_embd=384, block_size=256, dropout=dropout)


class CausalAttention(nn.Module):
    """Multi-head causal self-attention; `c_attn` holds Q, K and V as rows, (3 * n_embd, n_embd)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_size, self.dropout = config.n_embd // config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.c_attn(x).view(batch, length, 3, -1, self.head_size)  # as many heads as there are rows for
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (batch, head, length, width / head)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        out: Tensor = self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(batch, length, -1)))
        return out


class FeedForward(nn.Module):
    """The position-wise network: four times as wide inside, GELU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.c_proj(F.gelu(self.c_fc(x))))
        return out


class Block(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class NanoGPT(nn.Module):
    """A GPT-2-style decoder over characters: codes (n, length) int64 -> logits (n, length, vocab).

    `length` is at most `config.block_size`. With `tied`, `lm_head.weight` is `wte.weight`.
    """

    def __init__(self, config: GPTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GPTConfig()
        self.wte = nn.Embedding(config.vocab, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab, bias=False)
        if config.tied:
            self.lm_head.weight = self.wte.weight
        self._initialise()

    def forward(self, codes: Tensor) -> Tensor:
        place = torch.arange(codes.shape[1], device=codes.device)
        x = self.drop(self.wte(codes) + self.wpe(place))
        for block in self.h:
            x = block(x)
        logits: Tensor = self.lm_head(self.ln_f(x))
        return logits

    @torch.no_grad()
    def _initialise(self) -> None:
        """GPT-2's: N(0, 0.02), and the writers to the residual stream smaller by sqrt(2 n_layer)."""
        for name, weight in self.named_parameters():
            if weight.dim() >= 2:
                shrink = (2 * self.config.n_layer) ** 0.5 if name.endswith("c_proj.weight") else 1.0
                weight.normal_(0.0, 0.02 / shrink)
            elif name.endswith("bias"):
                weight.zero_()


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (a 1x1 convolution where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity() if stride == 1 and inputs == outputs else _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR (He et al. 2016, section 4.2): (n, 3, 32, 32) -> (n, classes); 0.27 M parameters.

    Shortcuts that change shape are projections (their option B), which every tracer understands.
    """

    def __init__(self, classes: int = 10, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], 1)
        self.layer2 = _stage(widths[0], widths[1], 2)
        self.layer3 = _stage(widths[1], widths[2], 2)
        self.fc = nn.Linear(widths[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1), BasicBlock(outputs, outputs, 1)
    )


class ResNet9(nn.Module):
    """ResNet-9 for CIFAR (Page 2018, "How to train your ResNet"): (n, 3, 32, 32) -> (n, classes).

    `width` is 64 in the original; 24 trains on two cores, with 0.93 M parameters.
    """

    def __init__(self, classes: int = 10, width: int = 24) -> None:
        super().__init__()
        self.prep = _convolution(3, width)
        self.layer1 = nn.Sequential(_convolution(width, 2 * width), nn.MaxPool2d(2), Residual(2 * width))
        self.layer2 = nn.Sequential(_convolution(2 * width, 4 * width), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(_convolution(4 * width, 8 * width), nn.MaxPool2d(2), Residual(8 * width))
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.prep(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Residual(nn.Module):
    """The input and two convolutions of it, added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _convolution(channels, channels), _convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(self.conv1(x))
        return out


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class SentenceCNN(nn.Module):
    """Convolutions over words, the largest of each over the sentence (Kim 2014): codes (n, words) int64 -> (n, classes)."""

    def __init__(self, words: int, classes: int = 2, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.conv3, self.conv4, self.conv5 = (nn.Conv1d(width, width, k) for k in (3, 4, 5))
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(3 * width, classes)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes).transpose(1, 2)
        seen = [torch.relu(conv(x)).amax(2) for conv in (self.conv3, self.conv4, self.conv5)]
        out: Tensor = self.fc(self.drop(torch.cat(seen, 1)))
        return out
