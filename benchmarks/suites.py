"""What is measured, of whom, and the goals."""

from dataclasses import replace

from benchmarks.benchmark import Benchmark, Effort, Goal, Mean

# The recipe of every contender. L2 on kernels only, added to the gradient.
LEARNING_RATE = 0.01
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-2  # so much that three losses show whether it is there

EPOCH = 50_000  # images of CIFAR

OURS, FLAX, TORCH = "benchmarks.ours", "benchmarks.peers.flax_linen", "benchmarks.peers"
CONTENDERS = {  # name: its module
    "flaxcnn": OURS,
    "flaxcnn_scan": OURS,  # many steps a call
    "flaxcnn_fit": OURS,  # the whole trainer
    "flaxcnn_remat": OURS,  # with `remat=True`
    "flaxcnn_deterministic": OURS,
    "flaxcnn_command_buffers": OURS,  # convolutions and loops in them too
    "flaxcnn_conv_fusion": OURS,  # cuDNN's graphs
    "flaxcnn_autotune_2": OURS,
    "flaxcnn_autotune_0": OURS,
    "flaxcnn_stock_relu": OURS,  # one of its rules replaced, see variants.py
    "flaxcnn_stock_norm": OURS,
    "flaxcnn_stock_pool": OURS,
    "flaxcnn_dot_1x1": OURS,
    "flaxcnn_padded_stem": OURS,
    "flax_linen": FLAX,
    "torch_eager": f"{TORCH}.pytorch",
    "torch_compile": f"{TORCH}.pytorch",
    "torch_max_autotune": f"{TORCH}.pytorch",
    "torch_frozen": f"{TORCH}.pytorch",
    "torch_optimized": f"{TORCH}.pytorch",
    "torch_loader": f"{TORCH}.pytorch",  # DataLoader and PIL
    "torchvision_v1": f"{TORCH}.torchvision_augment",
    "torchvision_v2": f"{TORCH}.torchvision_augment",
    "torchvision_loader": f"{TORCH}.photographs",
    "pil_loop": f"{TORCH}.photographs",
    "matmul": f"{TORCH}.ceilings",
    "copy": f"{TORCH}.ceilings",
}
ENVIRONMENT = {  # of a contender's process, beside the suite's
    "flaxcnn_deterministic": {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"},
    "flaxcnn_command_buffers": {
        "XLA_FLAGS": "--xla_gpu_enable_command_buffer=+CONVOLUTION,+WHILE"
    },
    "flaxcnn_conv_fusion": {
        "XLA_FLAGS": "--xla_gpu_experimental_enable_conv_fusion=true"
    },
    "flaxcnn_autotune_2": {"XLA_FLAGS": "--xla_gpu_autotune_level=2"},
    "flaxcnn_autotune_0": {"XLA_FLAGS": "--xla_gpu_autotune_level=0"},
    "torch_frozen": {"TORCHINDUCTOR_FREEZING": "1"},
}


EFFORTS = {
    "cpu": Effort(warmup=2, windows=2, seconds=3.0, steps=3),
    "gpu": Effort(warmup=10, windows=1, seconds=3.0, steps=50),
}
SMOKE = Effort(warmup=1, windows=1, seconds=0.0, steps=2)


def _smaller(name: str, bench: Benchmark) -> Benchmark:
    """A row as `--smoke` runs it."""
    size = min(bench.size, 96 if name.startswith("inception") else 72)
    if bench.kind == "jpeg":
        size = bench.size  # a size at which it is decoded as in the whole row
    # Statistics of a few augmented images would differ by chance.
    return replace(bench, batch=64 if bench.kind == "augment" else 4, size=size)


def smoke(rows: dict[str, Benchmark]) -> dict[str, Benchmark]:
    """Rows that end soon; their numbers mean nothing."""
    return {name: _smaller(name, bench) for name, bench in rows.items()}


def _cpu() -> tuple[dict[str, Benchmark], tuple[Mean, ...]]:
    torch = ("torch_eager", "torch_compile")
    fused = (*torch, "torch_frozen", "torch_optimized")
    all_of_them = ("flaxcnn_scan", "flaxcnn", "flax_linen", *torch)
    ge1, each = Goal(">=", 1.0, torch), (Goal(">=", 0.8, torch),)
    folded = (Goal(">=", 1.0, fused),)
    photographs = ("flaxcnn", "torchvision_loader", "pil_loop")
    faster = (Goal(">=", 1.0, photographs[1:2]),)

    def memory(ours: str, cold: bool = False) -> Benchmark:
        goal = Goal("<=", 1.1, torch[:1])
        return Benchmark(
            "memory", "resnet50", 8, (ours, *torch[:1]), (goal,), 1000, 224, cold=cold
        )

    rows = {
        "allcnn_c_train": Benchmark(
            "train", "allcnn_c", 128, all_of_them,
            (ge1, Goal(">=", 2.0, ("flax_linen",))),
        ),
        "nin_train": Benchmark("train", "nin", 128, all_of_them, each),
        "vgg16_cifar_train": Benchmark("train", "vgg16_cifar", 64, all_of_them, each),
        "resnet18_train": Benchmark("train", "resnet18", 128, all_of_them, each),
        "resnet18_infer": Benchmark(
            "infer", "resnet18", 8, ("flaxcnn", *fused), folded, 1000, 224
        ),
        "vgg16_infer": Benchmark(
            "infer", "vgg16", 8, ("flaxcnn", *fused), folded, 1000, 224
        ),
        "scan": Benchmark(
            "train", "allcnn_c", 128, ("flaxcnn_scan", "flaxcnn"),
            (Goal(">=", 0.95, ("flaxcnn",)),),
        ),
        "trainer": Benchmark(
            "train", "allcnn_c", 128, ("flaxcnn_fit", "flaxcnn_scan"),
            (Goal(">=", 0.97, ("flaxcnn_scan",)),),
        ),
        "augment": Benchmark(
            "augment", "allcnn_c", 512,
            ("flaxcnn", "torchvision_v1", "torchvision_v2"),
            (Goal(">=", 10, ("torchvision_v1",)), Goal(">=", 1.5, ("torchvision_v2",))),
        ),
        "jpeg": Benchmark("jpeg", "", 64, photographs, faster, size=500),
        "jpeg_large": Benchmark("jpeg", "", 16, photographs, faster, size=1600),
        "first_step": Benchmark(
            "first_step", "allcnn_c", 128, ("flaxcnn", "torch_eager"), (Goal("<=", 5),)
        ),
        "first_step_cold": Benchmark(
            "first_step", "allcnn_c", 128, ("flaxcnn", "torch_eager"), cold=True
        ),
        "memory": memory("flaxcnn"),
        "memory_remat": memory("flaxcnn_remat"),
        "memory_cold": memory("flaxcnn", cold=True),
        "memory_remat_cold": memory("flaxcnn_remat", cold=True),
        "resnet50_train": Benchmark(
            "train", "resnet50", 8, ("flaxcnn_remat", "flaxcnn"), (), 1000, 224
        ),
    }  # fmt: skip
    three = ("nin_train", "vgg16_cifar_train", "resnet18_train")
    return rows, (Mean("three nets at 32 pixels", three, ge1),)


def _gpu() -> tuple[dict[str, Benchmark], tuple[Mean, ...]]:
    eager, compiled = "torch_eager", ("torch_compile", "torch_max_autotune")

    def at224(
        kind: str, net: str, batch: int, peers: tuple[str, ...], *goals: Goal,
        ours: str = "flaxcnn", size: int = 224, cold: bool = False,
    ) -> Benchmark:  # fmt: skip
        return Benchmark(
            kind, net, batch, (ours, *peers), goals, 1000, size, "bfloat16", cold
        )

    def cifar(kind: str, ours: str, *peers: str, goals: tuple[Goal, ...] = ()) -> (
        Benchmark
    ):  # fmt: skip
        return Benchmark(kind, "allcnn_c", 128, (ours, *peers), goals, dtype="bfloat16")

    def g2(net: str, batch: int, size: int = 224) -> Benchmark:
        goal = Goal(">=", 0.85, compiled[:1], "G2")
        return at224("train", net, batch, compiled[:1], goal, size=size)

    rows = {
        "ceilings": Benchmark("ceiling", "", 8192, ("matmul", "copy")),
        "resnet50_train": at224(
            "train", "resnet50", 256, compiled,
            Goal(">=", 1.15, compiled, "G1"), Goal(">=", 0.65, (), "G1", True),
        ),
        "resnet50_train_eager": at224(
            "train", "resnet50", 256, (eager, "flax_linen"),
            Goal(">=", 1.4, (eager,), "G1e"), Goal(">=", 1.2, ("flax_linen",), "G1f"),
        ),
        "allcnn_c_epoch": cifar(
            "epoch", "flaxcnn_fit", eager, "torch_max_autotune", "torch_loader",
            goals=(
                Goal(">=", 3.0, (eager,), "G3a"),
                Goal(">=", 1.2, ("torch_max_autotune",), "G3b"),
                Goal(">=", 50, ("torch_loader",), "G3c"),
                Goal(">=", 350 * EPOCH / 75, (), "G3d"),  # 350 epochs in 75 s
            ),
        ),
        "allcnn_c_train": cifar("train", "flaxcnn_scan", "flaxcnn", eager, *compiled),
        "airbench94_train": Benchmark(
            "train", "airbench94", 2000, ("flaxcnn_scan", "torch_max_autotune"),
            (Goal(">=", 1.0, ("torch_max_autotune",), "of G4"),), dtype="bfloat16",
        ),
        "resnet50_infer": at224(
            "infer", "resnet50", 256, (eager, *compiled),
            Goal(">=", 1.15, compiled, "G5"), Goal(">=", 2.0, (eager,), "G5"),
        ),
        "trainer": cifar(
            "train", "flaxcnn_fit", "flaxcnn_scan",
            goals=(Goal(">=", 0.99, ("flaxcnn_scan",), "G6"),),
        ),
        "trainer_224": at224(
            "train", "resnet50", 256, ("flaxcnn",),  # a call a step, as from the host
            Goal(">=", 0.99, ("flaxcnn",), "G6"), ours="flaxcnn_fit",
        ),
        "first_step": at224(
            "first_step", "resnet50", 256, compiled[:1],
            Goal("<=", 10, (), "G7"), Goal("<=", 0.6, compiled[:1], "G7"),
        ),
        "first_step_cold": at224(
            "first_step", "resnet50", 256, compiled[:1],
            Goal("<=", 0.6, compiled[:1], "G7"), cold=True,
        ),
        "memory": at224(
            "memory", "resnet50", 256, (eager,), Goal("<=", 0.9, (eager,), "G8")
        ),
        "deterministic": at224(
            "train", "resnet50", 256, ("flaxcnn",),
            Goal(">=", 0.93, ("flaxcnn",), "G9"), ours="flaxcnn_deterministic",
        ),
        "command_buffers": cifar("train", "flaxcnn_scan", "flaxcnn_command_buffers"),
        "xla_flags": at224(
            "train", "resnet50", 256,
            ("flaxcnn_conv_fusion", "flaxcnn_autotune_2", "flaxcnn_autotune_0"),
        ),
        "rules_allcnn_c": cifar("train", "flaxcnn", "flaxcnn_stock_relu"),
        "rules_vgg16": at224("train", "vgg16", 128, ("flaxcnn_stock_relu",)),
        "rules_resnet50": at224(
            "train", "resnet50", 256, ("flaxcnn_stock_norm", "flaxcnn_dot_1x1")
        ),
        "rules_resnet50_stem": at224(
            "train", "resnet50", 256, ("flaxcnn_padded_stem", "flaxcnn_stock_pool")
        ),
        "resnet34_train": g2("resnet34", 256),
        "resnet152_train": g2("resnet152", 128),
        "vgg16_train": g2("vgg16", 128),
        "googlenet_train": g2("googlenet", 256),
        "inception_v3_train": g2("inception_v3", 128, 299),
    }  # fmt: skip
    five = tuple(name for name, row in rows.items() if row.goals[:1] == (
        Goal(">=", 0.85, compiled[:1], "G2"),))  # fmt: skip
    return rows, (Mean("five nets", five, Goal(">=", 1.1, compiled[:1], "G2")),)


SUITES, MEANS = {}, {}
SUITES["cpu"], MEANS["cpu"] = _cpu()
SUITES["gpu"], MEANS["gpu"] = _gpu()
