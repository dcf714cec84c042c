"""One PyTorch training run of the benchmark's GPT: forward, cross-entropy, backward, AdamW. Prints seconds of each step.
Without an optimized BLAS it prints no seconds: Debian's reference BLAS is twenty times slower and compares with nothing.

Usage: peer_torch.py VOCAB CONTEXT WIDTH HEADS LAYERS BATCH STEPS, under Debian's python3-torch.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

vocab, context, width, heads, layers, batch, steps = map(int, sys.argv[1:])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.register_buffer("ahead", torch.ones(context, context, dtype=torch.bool).triu(1))

    def attend(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * (width // heads) ** -0.5
        weights = scores.masked_fill(self.ahead[:t, :t], float("-inf")).softmax(-1)
        return self.mix((weights @ v).transpose(1, 2).reshape(b, t, width))

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block() for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x)))


with open("/proc/self/maps") as maps:
    loaded = maps.read()
if not any(blas in loaded for blas in ("openblas", "mkl", "blis")):
    print(json.dumps({"torch": torch.__version__, "seconds": []}))
    sys.exit()

torch.set_num_threads(2)
torch.manual_seed(123)
model = Gpt()
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
seconds = []
for _ in range(steps):
    ids = torch.randint(0, vocab, (batch, context + 1))
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizer.step()
    seconds.append(time.perf_counter() - start)
print(json.dumps({"torch": torch.__version__, "seconds": seconds}))
