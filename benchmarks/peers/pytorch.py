"""PyTorch, tuned: channels_last, all threads, fused SGD, autocast, cudnn.benchmark."""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from benchmarks.batches import batch_of
from benchmarks.benchmark import Contender, Setup, Unavailable, cores
from benchmarks.peers.nets import make
from benchmarks.suites import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY

MODES = {
    "torch_compile": "default",
    "torch_frozen": "default",  # its weights are constants, by the environment
    "torch_max_autotune": "max-autotune",
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Forward = Callable[[torch.Tensor], torch.Tensor]


def train(setup: Setup) -> Contender:
    """A training step."""
    model, forward = network(setup)
    images, labels = batch_of(setup.bench)
    x, y = channels_last(images).to(DEVICE), torch.from_numpy(labels).to(DEVICE)
    update = updater(model, forward)
    last: Any = None

    def step() -> None:
        nonlocal last
        last, _ = update(x, y)

    return Contender(step, lambda: last.item(), count(model), setup.bench.batch)


def infer(setup: Setup) -> Contender:
    """Logits of one batch."""
    model, forward = network(setup)
    x = channels_last(batch_of(setup.bench)[0]).to(DEVICE)
    params = count(model)
    model.eval()
    if setup.contender == "torch_optimized":  # folds BatchNorm
        with torch.inference_mode():
            frozen = torch.jit.freeze(torch.jit.trace(model, x))
            forward = torch.jit.optimize_for_inference(frozen)
    elif setup.bench.dtype == "bfloat16" and not setup.exact:
        model, x = model.bfloat16(), x.bfloat16()
        forward = compiled(setup, model)
    logits: Any = None

    def step() -> None:
        nonlocal logits
        with torch.inference_mode():
            logits = forward(x)

    return Contender(
        step, lambda: logits[0, 0].item(), params, setup.bench.batch,
        lambda: logits.float().flatten().tolist(),
    )  # fmt: skip


def epoch(setup: Setup) -> Contender:
    """Training steps with shuffling, augmentation and metrics."""
    from benchmarks.peers.torch_batches import loader_batches, resident_batches

    model, forward = network(setup)
    update = updater(model, forward)
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]] = (
        loader_batches(setup.bench)
        if setup.contender == "torch_loader"
        else resident_batches(setup.bench, DEVICE)
    )
    loss, correct = torch.zeros((2,), device=DEVICE)

    def step() -> None:
        x, y = (a.to(DEVICE, non_blocking=True) for a in next(batches))
        this_loss, logits = update(x, y)
        loss.add_(this_loss)
        correct.add_((logits.argmax(1) == y).sum())

    return Contender(step, loss.item, count(model), setup.bench.batch)


def network(setup: Setup) -> tuple[nn.Module, Forward]:
    """The network on its device, in training mode, and its forward pass."""
    torch.set_num_threads(cores())
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = not setup.exact
    bench = setup.bench
    model = make(bench)
    if setup.weights:
        # Strict but for torch's counters of batches.
        state = {k: v for k, v in model.state_dict().items() if k.endswith("_tracked")}
        model.load_state_dict(state | load_file(setup.weights / "torch.safetensors"))
    if setup.exact:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    kind = torch.float64 if bench.dtype == "float64" else torch.float32
    model.to(DEVICE, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    net = compiled(setup, model)
    autocast = torch.autocast(
        DEVICE.type, torch.bfloat16, enabled=bench.dtype == "bfloat16"
    )

    def forward(x: torch.Tensor) -> torch.Tensor:
        with autocast:
            return net(x)

    return model, forward


def compiled(setup: Setup, model: nn.Module) -> Any:
    """The network by the contender's way to compile, if it has one.

    Raises:
      Unavailable: no C++ compiler on the CPU.
    """
    mode = MODES.get(setup.contender)
    if mode is None or setup.exact:
        return model
    if DEVICE.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise Unavailable("needs a C++ compiler")
    return torch.compile(model, mode=mode)


def updater(model: nn.Module, forward: Forward) -> Callable[..., Any]:
    """The function that takes one step of SGD; it returns the loss and the logits."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim == 1]},
    ]
    optimizer = torch.optim.SGD(groups, LEARNING_RATE, MOMENTUM, fused=True)

    def update(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        optimizer.zero_grad(set_to_none=True)
        logits = forward(x)
        wide = torch.promote_types(logits.dtype, torch.float32)
        loss = F.cross_entropy(logits.to(wide), y)
        loss.backward()
        optimizer.step()
        return loss.detach(), logits.detach()

    return update


def channels_last(images: Any) -> torch.Tensor:
    """[N, H, W, C] as a channels_last view [N, C, H, W]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def count(model: nn.Module) -> int:
    """The number of parameters that are trained."""
    return sum(p.numel() for p in model.parameters())


def gpu_peak() -> int:
    """Bytes allocated on the GPU at the peak; 0 on the CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0
