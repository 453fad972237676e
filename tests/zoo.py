"""Small models of every kind that people train, each with an input; built from scratch, nothing is downloaded."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from winnow.jobs.models import GPTConfig, LeNet300100, NanoGPT, ResNet20


def image(size=16, channels=3, batch=2):
    return torch.randn(batch, channels, size, size)


class LeNet5(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 30), nn.Linear(30, 20), nn.Linear(20, 10)

    def forward(self, x):
        x = F.max_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 2)
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x.view(x.size(0), -1))))))


def mlp():
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Dropout(0.1), nn.Linear(20, 16), nn.GELU(), nn.Linear(16, 5))


def vgg16():
    layers, width = [], 3
    for step in (8, 8, "M", 16, 16, "M", 24, 24, 24, "M", 32, 32, 32, "M", 32, 32, 32):
        if step == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(width, step, 3, padding=1), nn.BatchNorm2d(step), nn.ReLU(inplace=True)]
            width = step
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 24), nn.ReLU(), nn.Linear(24, 10))


class Residual(nn.Module):
    """ResNet's basic (`middle` None) or bottleneck block."""

    def __init__(self, before, after, stride=1, middle=None, groups=1):
        super().__init__()
        widths = [before, after, after] if middle is None else [before, middle, middle, after]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, (a, b) in enumerate(pairwise(widths)):
            point = middle is not None and i != 1
            own = groups if middle is not None and i == 1 else 1
            step = stride if i == (middle is not None) else 1
            self.convs.append(nn.Conv2d(a, b, 1 if point else 3, step, 0 if point else 1, groups=own, bias=False))
            self.norms.append(nn.BatchNorm2d(b))
        self.relu = nn.ReLU(inplace=True)
        self.down = None
        if stride > 1 or before != after:
            self.down = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        out = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            if i < len(self.convs) - 1:
                out = self.relu(out)
        out += x if self.down is None else self.down(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, counts, widths, bottleneck=False, groups=1):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        blocks, before = [], widths[0]
        for stage, (count, width) in enumerate(zip(counts, widths, strict=True)):
            for i in range(count):
                middle = width // 2 if bottleneck else None
                blocks.append(Residual(before, width, 2 if i == 0 and stage else 1, middle, groups))
                before = width
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(before, 10)

    def forward(self, x):
        x = self.blocks(self.stem(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class WideBlock(nn.Module):
    """Pre-activation block of Wide-ResNet."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(after), nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else nn.Identity()

    def forward(self, x):
        h = F.relu(self.bn1(x))
        return self.conv2(F.relu(self.bn2(self.conv1(h)))) + self.short(h if isinstance(self.short, nn.Conv2d) else x)


def wide_resnet():
    body = [nn.Conv2d(3, 8, 3, padding=1, bias=False), WideBlock(8, 16, 1), WideBlock(16, 16, 1), WideBlock(16, 32, 2)]
    return nn.Sequential(*body, nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class Inverted(nn.Module):
    """MobileNetV2's inverted residual."""

    def __init__(self, before, after, stride, expand):
        super().__init__()
        inner = before * expand
        self.same = stride == 1 and before == after
        self.body = nn.Sequential(
            nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(inplace=True),
            nn.Conv2d(inner, after, 1, bias=False), nn.BatchNorm2d(after),
        )

    def forward(self, x):
        return x + self.body(x) if self.same else self.body(x)


def mobilenet():
    stem = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    body = [Inverted(8, 12, 1, 2), Inverted(12, 12, 1, 3), Inverted(12, 16, 2, 3), Inverted(16, 16, 1, 3)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 10))


class Dense(nn.Module):
    """A DenseNet block's layer: its output is appended to its input."""

    def __init__(self, before, growth):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(before), nn.Conv2d(before, growth, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet():
    layers, width = [nn.Conv2d(3, 8, 3, padding=1)], 8
    for _ in range(2):
        for _ in range(3):
            layers.append(Dense(width, 6))
            width += 6
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1), nn.AvgPool2d(2)]
        width //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(0.1 * torch.ones(width))

    def forward(self, x):
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.down(F.gelu(self.up(h)))).permute(0, 3, 1, 2)


def convnext():
    body = [nn.Conv2d(3, 12, 4, 4), ConvNeXtBlock(12), nn.Conv2d(12, 16, 2, 2), ConvNeXtBlock(16)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 10))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = self.stage(3, 8), self.stage(8, 16)
        self.middle, self.up = self.stage(16, 16), nn.ConvTranspose2d(16, 8, 2, 2)
        self.c, self.head = self.stage(24, 8), nn.Conv2d(16, 2, 1)

    def stage(self, before, after):
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.LeakyReLU(0.1))

    def forward(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        m = self.middle(F.max_pool2d(b, 2))
        up = F.interpolate(m, scale_factor=2, mode="nearest")
        up = self.up(F.relu(up))
        c = self.c(torch.cat([F.interpolate(b, scale_factor=2, mode="bilinear"), up], 1))
        return self.head(torch.cat([c, a], 1))


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.three = nn.Conv2d(8, 4, 1), nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1))
        self.pool, self.fc = nn.Conv2d(8, 4, 1), nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = torch.cat([self.one(x), self.three(x), self.pool(F.avg_pool2d(x, 3, 1, 1))], dim=1)
        return self.fc(F.relu(x).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.down, self.up, self.fc = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1), nn.Linear(12, 10)

    def forward(self, x):
        x = F.silu(self.bn(self.conv(x)))
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.fc((x * gate).mean((2, 3)))


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 24, bias=False), nn.Linear(8, 24, bias=False), nn.Linear(24, 8)
        self.both, self.out = nn.Linear(8, 40), nn.Linear(20, 5)

    def forward(self, x):
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return self.out(F.glu(self.both(x), -1))


class ViT(nn.Module):
    """Patches, a class token, separate Q, K and V, torch's own layer norm."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 17, width))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.n1, self.n2, self.n3 = (nn.LayerNorm(width) for _ in range(3))
        self.up, self.down, self.head = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.Linear(width, 10)
        self.size = width // heads

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        h = self.n1(x)
        q, k, v = (part(h).unflatten(-1, (-1, self.size)).transpose(1, 2) for part in (self.q, self.k, self.v))
        a = (q @ k.transpose(-1, -2) * self.size**-0.5).softmax(-1)
        x = x + self.o((a @ v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.n2(x))))
        return self.head(self.n3(x)[:, 0])


class Seq2Seq(nn.Module):
    """torch's own encoder–decoder."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.body = nn.Transformer(16, 4, 1, 1, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 11)

    def forward(self, source, target):
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=self.head.weight.dtype)
        return self.head(self.body(self.embed(source), self.embed(target), tgt_mask=mask, tgt_is_causal=True))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed, self.body = nn.Embedding(11, 8), kind(8, 12, batch_first=True)
        self.up, self.head = nn.Linear(12, 20), nn.Linear(20, 3)

    def forward(self, x):
        return self.head(F.relu(self.up(self.body(self.embed(x))[0][:, -1])))


class Mixer(nn.Module):
    def __init__(self, width=12, places=16):
        super().__init__()
        self.patch, self.n1, self.n2 = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width), nn.LayerNorm(width)
        self.t1, self.t2 = nn.Linear(places, 20), nn.Linear(20, places)
        self.c1, self.c2, self.head = nn.Linear(width, 30), nn.Linear(30, width), nn.Linear(width, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.t2(F.gelu(self.t1(self.n1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.c2(F.gelu(self.c1(self.n2(x))))
        return self.head(x.mean(1))


class Siamese(nn.Module):
    """One tower called twice."""

    def __init__(self):
        super().__init__()
        self.tower, self.head = nn.Sequential(nn.Linear(6, 14), nn.ReLU(), nn.Linear(14, 8)), nn.Linear(8, 1)

    def forward(self, a, b):
        return self.head((self.tower(a) - self.tower(b)).abs())


class TiedHead(nn.Module):
    """An embedding tied to the output, without a normalisation between: its channels can go."""

    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(13, 10), nn.Linear(10, 10), nn.Linear(10, 13, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + torch.tanh(self.body(x)))


class FixedSizes(nn.Module):
    """A forward that holds sizes: only its graph can shrink."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 5)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).split(12, dim=2)
        q, k, v = (t.view(batch, length, 3, 4).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, length, 12))


class Summing(nn.Module):
    """Attention and an MLP written as Einstein sums, weights of three axes."""

    def __init__(self, width=12, heads=3, size=4):
        super().__init__()
        shape = (width, heads, size)
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(shape) / 3) for _ in range(3))
        self.wo = nn.Parameter(torch.randn(heads, size, width) / 3)
        self.up, self.down = nn.Parameter(torch.randn(20, width) / 3), nn.Parameter(torch.randn(width, 20) / 3)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        q, k, v = (torch.einsum("bld,dhk->blhk", x, w) for w in (self.wq, self.wk, self.wv))
        scores = torch.einsum("bqhk,bthk->bhqt", q, k) / 2
        y = torch.einsum("bhqt, bthk -> bqhk", scores.softmax(-1), v)
        x = torch.einsum("bqhk,hkd->bqd", y, self.wo)
        hidden = torch.einsum("fd,bld->blf", self.up, x).relu()
        return self.head(x + torch.einsum("abf,cf", hidden, self.down))  # the letters that occur once, in order


class Placed(nn.Module):
    """A position embedding added to the channels of a residual stream, which vanish with its columns only."""

    def __init__(self):
        super().__init__()
        self.conv0, self.conv1, self.conv2 = nn.Conv2d(1, 12, 3, 1, 1), nn.Conv2d(12, 9, 3, 1, 1), nn.Conv2d(9, 12, 3, 1, 1)
        self.place, self.out = nn.Parameter(torch.randn(49, 12)), nn.Linear(12, 10)

    def forward(self, x):
        y = F.relu(self.conv0(x))
        y = F.relu(y + self.conv2(F.relu(self.conv1(y))))
        return self.out((y.flatten(2).transpose(1, 2) + self.place).mean(1))


class GroupNormed(nn.Module):
    """Group normalisation: whole groups can go."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.GroupNorm(4, 16)
        self.conv2, self.norm2 = nn.Conv2d(16, 8, 3, padding=1), nn.GroupNorm(8, 8)
        self.conv3, self.norm3, self.fc = nn.Conv2d(8, 6, 3), nn.GroupNorm(1, 6), nn.Linear(6, 5)
        for norm in (self.norm1, self.norm2, self.norm3):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        x = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return self.fc(F.relu(self.norm3(self.conv3(x))).mean((2, 3)))


class Deciding(nn.Module):
    """Control flow that depends on the data: no graph can hold it."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x) if float(x.sum()) > 0 else x


def tokens(top, batch=2, length=7):
    return torch.randint(0, top, (batch, length))


def hugging(model, config, **sizes):
    """A model of `transformers` from a small configuration; nothing is downloaded."""

    def make():
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**sizes))

    return make


SMALL = {"vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
         "max_position_embeddings": 16}
ENDS = {"use_cache": False, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
HUGGING = {
    "GPT-2": (
        hugging("GPT2LMHeadModel", "GPT2Config", vocab_size=23, n_positions=16, n_embd=16, n_layer=2, n_head=4, **ENDS),
        lambda: {"input_ids": tokens(23)},
    ),
    "BERT": (
        hugging("BertForSequenceClassification", "BertConfig", **SMALL),
        lambda: {"input_ids": tokens(23), "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])},
    ),
    "Llama": (
        hugging("LlamaForCausalLM", "LlamaConfig", **SMALL, **ENDS, num_key_value_heads=2),
        lambda: {"input_ids": tokens(23)},
    ),
    "T5": (
        hugging("T5ForConditionalGeneration", "T5Config", vocab_size=23, d_model=16, d_kv=4, d_ff=24, num_layers=1,
                num_heads=4, use_cache=False, decoder_start_token_id=0, pad_token_id=0),
        lambda: {"input_ids": tokens(23), "decoder_input_ids": tokens(23, 2, 5)},
    ),
    "ViT of transformers": (
        hugging("ViTForImageClassification", "ViTConfig", hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                intermediate_size=24, image_size=16, patch_size=4),
        lambda: {"pixel_values": image()},
    ),
}

MODELS = {
    "MLP": (mlp, lambda: torch.randn(3, 12)),
    "LeNet-300-100": (lambda: LeNet300100(64, 10, (30, 20)), lambda: torch.randn(3, 64)),
    "LeNet-5": (LeNet5, lambda: image(16, 1)),
    "VGG-16-BN": (vgg16, image),
    "ResNet-18": (lambda: ResNet((2, 2, 2, 2), (8, 12, 16, 20)), image),
    "ResNet-20": (ResNet20, lambda: image(8)),
    "ResNet-50": (lambda: ResNet((3, 4, 6, 3), (8, 12, 16, 24), bottleneck=True), image),
    "ResNeXt": (lambda: ResNet((1, 1), (16, 32), bottleneck=True, groups=4), image),
    "Wide-ResNet": (wide_resnet, image),
    "MobileNetV2": (mobilenet, image),
    "DenseNet": (densenet, image),
    "ConvNeXt": (convnext, image),
    "U-Net": (UNet, image),
    "Inception": (Inception, image),
    "squeeze and excite": (SqueezeExcite, image),
    "SwiGLU": (SwiGLU, lambda: torch.randn(2, 5, 8)),
    "nanoGPT": (lambda: NanoGPT(GPTConfig(vocab=17, n_layer=2, n_head=4, n_embd=16, block_size=8)), lambda: tokens(17, 2, 8)),
    "ViT": (ViT, image),
    "encoder–decoder": (Seq2Seq, lambda: (tokens(11), tokens(11, 2, 5))),
    "LSTM": (lambda: Recurrent(nn.LSTM), lambda: tokens(11)),
    "GRU": (lambda: Recurrent(nn.GRU), lambda: tokens(11)),
    "MLP-Mixer": (Mixer, image),
    "siamese": (Siamese, lambda: (torch.randn(3, 6), torch.randn(3, 6))),
    "tied head": (TiedHead, lambda: tokens(13)),
    "fixed sizes": (FixedSizes, lambda: torch.randn(2, 5, 12)),
    "Einstein sums": (Summing, lambda: torch.randn(2, 5, 12)),
    "position embedding": (Placed, lambda: torch.randn(2, 1, 7, 7)),
    "group normalisation": (GroupNormed, image),
    **HUGGING,
}


def build(name, seed=0):
    """(model in eval mode with lived-in normalisations, example)."""
    torch.manual_seed(seed)
    make, example = MODELS[name]
    model, x = make(), example()
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(0, 0.5)
            part.running_var.uniform_(0.5, 2)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_(0, 0.5)
    return model.eval(), x
