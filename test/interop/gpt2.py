"""Generates greedy tokens in PyTorch from a directory that gptd exported as safetensors. The modules form the tree of Hugging
Face's GPT2LMHeadModel: config.json gives the shapes, and the state must fit by name and shape without a remainder.

    gpt2.py DIRECTORY PROMPT_IDS COUNT     prints the ids as JSON
"""

import json
import math
import pathlib
import sys

import torch
from torch import nn
from torch.nn import functional


def read_safetensors(file):
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    # Hugging Face's loader refuses a file that does not name the framework of its tensors.
    assert header.pop("__metadata__")["format"] == "pt"
    state = {}
    for name, tensor in header.items():
        begin, end = (start + offset for offset in tensor["data_offsets"])
        dtype = {"F32": torch.float32, "F16": torch.float16}[tensor["dtype"]]
        state[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).reshape(tensor["shape"]).float()
    return state


class Conv1D(nn.Module):
    """A linear layer that keeps its weight as (inputs, outputs)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config["n_head"]
        self.c_attn = Conv1D(config["n_embd"], 3 * config["n_embd"])
        self.c_proj = Conv1D(config["n_embd"], config["n_embd"])

    def forward(self, x):
        rows, width = x.shape
        q, k, v = (part.reshape(rows, self.heads, -1).transpose(0, 1) for part in self.c_attn(x).chunk(3, dim=1))
        scores = q @ k.transpose(1, 2) / math.sqrt(width / self.heads)
        future = torch.ones(rows, rows, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
        return self.c_proj((weights @ v).transpose(0, 1).reshape(rows, width))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = Conv1D(config["n_embd"], 4 * config["n_embd"])
        self.c_proj = Conv1D(4 * config["n_embd"], config["n_embd"])

    def forward(self, x):
        return self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        norm = (config["n_embd"], config["layer_norm_epsilon"])
        self.ln_1, self.ln_2 = nn.LayerNorm(*norm), nn.LayerNorm(*norm)
        self.attn, self.mlp = Attention(config), MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2LMHeadModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config["n_embd"]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config["vocab_size"], width),
                "wpe": nn.Embedding(config["n_positions"], width),
                "h": nn.ModuleList(Block(config) for _ in range(config["n_layer"])),
                "ln_f": nn.LayerNorm(width, config["layer_norm_epsilon"]),
            }
        )
        self.lm_head = nn.Linear(width, config["vocab_size"], bias=False)

    def forward(self, ids):
        parts = self.transformer
        x = parts["wte"](ids) + parts["wpe"](torch.arange(len(ids)))
        for block in parts["h"]:
            x = block(x)
        return self.lm_head(parts["ln_f"](x))


def main(directory, prompt, count):
    directory = pathlib.Path(directory)
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"] and config["model_type"] == "gpt2"
    assert config["activation_function"] == "gelu_new" and config["n_inner"] is None
    state = read_safetensors(directory / "model.safetensors")
    model = GPT2LMHeadModel(config)
    if config["tie_word_embeddings"]:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state, strict=True)
    ids = [int(id) for id in prompt.split(",")]
    with torch.no_grad():
        for _ in range(int(count)):
            ids.append(int(model(torch.tensor(ids))[-1].argmax()))
    print(json.dumps(ids[-int(count) :]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
