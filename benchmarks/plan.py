"""Plans beside published tables: ZeRO's memory, torchtitan's Llama 3.1 rows, Megatron-LM's weak scaling, Databricks' MPT rows.

    python benchmarks/plan.py

Rows marked `fitted` are those the constants in zenspeed/plan (`Rates`, H100's shares in `Accelerator`) were chosen on; the
others were not looked at for it. Sources: Rajbhandari et al. 1910.02054, table 1; torchtitan,
benchmarks/llama3_h100_202412_torchtitan.md (H100 of 96 GB and 2.4 TB/s at 500 W); Narayanan et al. 2104.04473, table 1 (A100,
2048 tokens, vocabulary 51,200, full recompute).
"""

from __future__ import annotations

from zenspeed.models.presets import ModelConfig
from zenspeed.plan.estimate import Estimate, estimate, zero_bytes
from zenspeed.plan.hardware import ACCELERATORS, Accelerator, Cluster, slowdown
from zenspeed.plan.layout import Layout
from zenspeed.plan.work import Shape

TITAN = ACCELERATORS["H100"]._replace(memory_bytes=96e9, bandwidth=2.4e12, watts=500, achievable=0.80 * slowdown(500 / 700))
# cuBLAS and PyTorch of 2020, products of 2,048 tokens: this share was chosen on the rows marked `fitted`, and A100's in
# hardware.py, which is published, came later.
SELENE = ACCELERATORS["A100"]._replace(hot=0.80)
LLAMA: dict[str, dict[str, int]] = {
    "8B": {"layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "feed_forward": 14336},
    "70B": {"layers": 80, "width": 8192, "heads": 64, "kv_heads": 8, "feed_forward": 28672},
    "405B": {"layers": 126, "width": 16384, "heads": 128, "kv_heads": 8, "feed_forward": 53248},
}
EIGHT = Layout(data=8, zero=3, micro_batch=2, recompute="selective")
SEVENTY = Layout(data=32, tensor=8, zero=3, micro_batch=16, recompute="full", compiled=True, precision="fp8")
# Under a pipeline torchtitan keeps gathered weights and summed gradients from one micro-batch to the next.
LARGE = SEVENTY._replace(
    data=8, pipeline=8, zero=1, weight_bytes=2, optimizer_bytes=12, micro_batch=4, accumulation=8, overlapped_tensor=True
)
# name, model, layout, tokens/s a GPU, GiB, fitted
TITAN_ROWS = [
    ("8B × 8, eager", "8B", EIGHT, 5762, 82.4, False),
    ("8B × 8, compiled", "8B", EIGHT._replace(compiled=True), 6667, 77.0, True),
    ("8B × 128, eager", "8B", EIGHT._replace(data=128), 5605, 67.0, True),
    ("8B × 128, compiled", "8B", EIGHT._replace(data=128, compiled=True), 6514, 62.0, False),
    ("8B × 8, compiled, fp8", "8B", EIGHT._replace(compiled=True, precision="fp8"), 8532, 76.8, True),
    ("8B × 128, compiled, fp8", "8B", EIGHT._replace(data=128, compiled=True, precision="fp8"), 8380, 61.8, False),
    ("70B × 256, fp8", "70B", SEVENTY, 829, 71.9, True),
    ("70B × 256, fp8, async", "70B", SEVENTY._replace(overlapped_tensor=True), 876, 67.6, False),
    ("405B × 512, 1F1B", "405B", LARGE, 100, 82.5, True),
    ("405B × 512, interleaved", "405B", LARGE._replace(interleave=2), 128, 72.7, False),
]
# Tables 2 and 6 of the same page: contexts of 32,768 to 262,144 over 1 to 8 context ranks. Context ranks, tokens/s a GPU, GiB.
LONG = Layout(zero=3, recompute="full", compiled=True, precision="fp8", repeated_keys=True)
LONGER = LARGE._replace(micro_batch=1, repeated_keys=True)
CONTEXT_ROWS = [
    ("8B", 1, 3890, 83.9), ("8B", 2, 2540, 84.2), ("8B", 4, 1071, 84.0), ("8B", 8, 548, 84.5),
    ("405B", 1, 76, 75.3), ("405B", 2, 47, 75.9), ("405B", 4, 31, 77.1), ("405B", 8, 16, 84.9),
]  # fmt: skip
# torchtitan, benchmarks/llama3-8b_h200_202506_trainy-whitefiber.md: H200s, tokens/s a GPU, GiB. Losses are compiled.
H200_ROWS = [(32, 10938, 47.96), (64, 10753, 46.97)]
# parameters in 10⁹, heads, width, layers, tensor, pipeline, GPUs, batch, TFLOP/s a GPU (recompute's forward counted)
MEGATRON_ROWS = [
    (1.7, 24, 2304, 24, 1, 1, 32, 512, 137), (3.6, 32, 3072, 30, 2, 1, 64, 512, 138), (7.5, 32, 4096, 36, 4, 1, 128, 512, 142),
    (18.4, 48, 6144, 40, 8, 1, 256, 1024, 135), (39.1, 64, 8192, 48, 8, 2, 512, 1536, 138),
    (76.1, 80, 10240, 60, 8, 4, 1024, 1792, 140), (145.6, 96, 12288, 80, 8, 8, 1536, 2304, 148),
    (310.1, 128, 16384, 96, 8, 16, 1920, 2160, 155), (529.6, 128, 20480, 105, 8, 35, 2520, 2520, 163),
    (1008.0, 160, 25600, 128, 8, 64, 3072, 3072, 163),
]  # fmt: skip

# Rows that no constant was chosen on, as published by Databricks
# (llm-foundry, scripts/train/benchmarking/README.md, H100 80 GB in bf16, ZeRO 3, nothing compiled): layers, width, heads of the
# model; context, GPUs, micro-batch, accumulation, activations computed again, tokens/s a GPU.
MPT = {"70b": (80, 8192, 64), "30b": (48, 7168, 56), "13b": (40, 5120, 40), "7b": (32, 4096, 32), "3b": (32, 2560, 20),
       "1b": (24, 2048, 16), "760m": (24, 1536, 12), "350m": (24, 1024, 16), "125m": (12, 768, 12)}  # fmt: skip
MPT_ROWS = [
    ("70b", 2048, 64, 8, 4, True, 1039), ("30b", 2048, 32, 14, 3, True, 2308), ("30b", 8192, 8, 1, 21, True, 1384),
    ("13b", 2048, 8, 2, 1, False, 4792), ("13b", 4096, 8, 10, 3, True, 4717), ("13b", 16384, 8, 3, 3, True, 2985),
    ("7b", 2048, 8, 6, 1, False, 10643), ("7b", 8192, 8, 8, 2, True, 6935), ("3b", 2048, 64, 6, 3, False, 22525),
    ("3b", 8192, 8, 3, 6, False, 16578), ("1b", 2048, 8, 14, 1, False, 45455), ("1b", 16384, 8, 2, 4, False, 19649),
    ("760m", 2048, 8, 24, 2, False, 63147), ("760m", 16384, 8, 3, 2, False, 27815),
]  # fmt: skip
# More rows of the same table, first reckoned after the attention kernel had become an input.
MPT_LATER = [
    ("13b", 32768, 8, 1, 3, True, 1976), ("7b", 65536, 8, 1, 2, True, 1956), ("7b", 32768, 8, 2, 2, True, 3318),
    ("3b", 65536, 8, 1, 2, True, 3262), ("3b", 32768, 8, 3, 6, True, 5873), ("3b", 16384, 8, 1, 6, False, 11152),
    ("1b", 65536, 8, 1, 2, True, 5506), ("1b", 32768, 8, 1, 4, False, 12025), ("760m", 32768, 8, 1, 2, False, 16291),
    ("760m", 8192, 8, 6, 2, False, 41825), ("1b", 8192, 8, 3, 4, False, 29157), ("7b", 4096, 8, 16, 2, True, 8611),
    ("3b", 4096, 8, 5, 6, False, 20964), ("1b", 4096, 8, 7, 4, False, 38535), ("760m", 4096, 8, 12, 2, False, 55459),
    ("30b", 4096, 8, 1, 21, True, 1802), ("30b", 2048, 8, 3, 21, True, 2002), ("3b", 2048, 16, 10, 3, False, 24142),
    ("1b", 512, 8, 56, 4, False, 52275), ("3b", 512, 8, 40, 6, False, 27965), ("760m", 512, 8, 96, 2, False, 83749),
    ("1b", 2048, 64, 20, 1, False, 44402), ("70b", 2048, 32, 2, 16, True, 882),
]  # fmt: skip

# The same page's A100s of 80 GB: all rows but four of the smallest model. They showed that A100's shares of its rates, which
# had been H100's, are larger (−16 … −32 %); those it has now are published ones, not chosen on these rows.
MPT_A100 = [
    ("70b", 2048, 64, 8, 4, True, 410), ("70b", 2048, 32, 2, 16, True, 373), ("30b", 8192, 8, 1, 21, True, 574),
    ("30b", 4096, 8, 1, 21, True, 814), ("30b", 2048, 8, 3, 21, True, 916), ("30b", 1024, 8, 6, 21, True, 946),
    ("30b", 512, 8, 12, 21, True, 967), ("13b", 32768, 8, 1, 3, True, 1016), ("13b", 16384, 8, 3, 3, True, 1431),
    ("13b", 8192, 8, 5, 3, True, 1795), ("13b", 4096, 8, 10, 3, True, 2060), ("13b", 2048, 8, 2, 3, False, 2262),
    ("13b", 1024, 8, 40, 3, True, 2330), ("7b", 65536, 8, 1, 2, True, 1013), ("7b", 32768, 8, 2, 2, True, 1672),
    ("7b", 16384, 8, 4, 2, True, 2453), ("7b", 8192, 8, 8, 2, True, 3206), ("7b", 4096, 8, 16, 2, True, 3684),
    ("7b", 2048, 8, 6, 2, False, 4641), ("7b", 1024, 8, 64, 2, True, 4357), ("3b", 65536, 8, 1, 2, True, 1767),
    ("3b", 32768, 8, 3, 6, True, 3029), ("3b", 16384, 8, 1, 6, False, 5529), ("3b", 8192, 8, 3, 6, False, 7695),
    ("3b", 4096, 8, 5, 6, False, 9457), ("3b", 2048, 8, 10, 2, False, 10811), ("3b", 1024, 8, 20, 6, False, 11580),
    ("3b", 512, 8, 40, 6, False, 12127), ("1b", 65536, 8, 1, 2, True, 3044), ("1b", 32768, 8, 1, 4, False, 6275),
    ("1b", 16384, 8, 2, 4, False, 9956), ("1b", 8192, 8, 3, 4, False, 13814), ("1b", 4096, 8, 7, 4, False, 17807),
    ("1b", 2048, 8, 14, 4, False, 20513), ("1b", 1024, 8, 18, 4, False, 22112), ("1b", 512, 8, 56, 4, False, 23148),
    ("760m", 65536, 8, 1, 2, True, 4143), ("760m", 32768, 8, 1, 2, False, 8802), ("760m", 16384, 8, 3, 2, False, 14274),
    ("760m", 8192, 8, 6, 2, False, 20933), ("760m", 4096, 8, 12, 2, False, 27351), ("760m", 2048, 8, 24, 2, False, 32434),
    ("760m", 1024, 8, 48, 2, False, 29765), ("760m", 512, 8, 96, 2, False, 29446), ("350m", 65536, 8, 1, 2, False, 7524),
    ("350m", 32768, 8, 2, 2, False, 13652), ("350m", 16384, 8, 4, 2, False, 23559), ("350m", 8192, 8, 8, 2, False, 36569),
    ("350m", 4096, 8, 16, 2, False, 49555), ("350m", 2048, 8, 32, 2, False, 58782), ("350m", 1024, 8, 64, 2, False, 64813),
    ("350m", 512, 8, 128, 2, False, 69330), ("125m", 65536, 8, 1, 2, False, 20368), ("125m", 16384, 8, 4, 2, False, 60040),
    ("125m", 4096, 8, 16, 2, False, 118396), ("125m", 2048, 8, 32, 2, False, 141737), ("125m", 512, 8, 128, 2, False, 165681),
]  # fmt: skip


def mpt(row: tuple[str, int, int, int, int, bool, int], device: str = "H100") -> Estimate:
    model, context, gpus, micro, accumulation, again, _ = row
    layers, width, heads = MPT[model]
    config = ModelConfig(preset="gpt2", layers=layers, width=width, heads=heads, context=context, bias=False, position="alibi")
    layout = Layout(
        data=gpus, zero=3, micro_batch=micro, accumulation=accumulation, recompute="full" if again else "none",
        early_stop=False,  # torch before 2.1
        attention="triton",  # submit_benchmarks.py beside the table: --attn_impl, of which sweep.sh leaves the default
    )  # fmt: skip
    return estimate(Shape(config, 50_368), layout, Cluster("MPT", ACCELERATORS[device], gpus))


def unseen() -> list[tuple[str, float, float]]:
    """(name, planned, published) tokens/s a GPU."""
    rows = [(r, "H100") for r in (*MPT_ROWS, *MPT_LATER)] + [(r, "A100") for r in MPT_A100]
    return [
        (f"MPT {r[0]}, {r[1]}, {r[2]} {device}", mpt(r, device).tokens_per_second / r[2], float(r[6])) for r, device in rows
    ]


def titan(model: str, layout: Layout, context: int = 8192, device: Accelerator = TITAN) -> Estimate:
    config = ModelConfig.model_validate({"preset": "llama", "context": context, **LLAMA[model]})
    return estimate(Shape(config, 128_256), layout, Cluster("torchtitan", device, layout.ranks))


def titan_unseen() -> list[tuple[str, Estimate, float, float]]:
    """(name, planned, tokens/s a GPU and GiB as published) of rows that no constant was chosen on."""
    rows = []
    for model, context, rate, gib in CONTEXT_ROWS:
        layout = (LONG if model == "8B" else LONGER)._replace(data=8 // context, context=context)
        rows.append((f"{model}, context {context} × 32,768", titan(model, layout, context * 32_768), rate, gib))
    for count, rate, gib in H200_ROWS:
        layout = EIGHT._replace(data=count, compiled=True, precision="fp8", fused_loss=True)
        rows.append((f"8B × {count} H200, fp8", titan("8B", layout, device=ACCELERATORS["H200"]), rate, gib))
    return rows


def megatron(row: tuple[float, ...]) -> tuple[float, float]:
    """(10⁹ parameters, TFLOP/s a GPU) as the paper counts them."""
    _, heads, width, layers, tensor, pipeline, gpus, batch, _ = (int(x) for x in row)
    config = ModelConfig(preset="gpt2", layers=layers, width=width, heads=heads, context=2048)
    shape = Shape(config, 51_200)
    data = gpus // (tensor * pipeline)
    layout = Layout(
        data=data, tensor=tensor, pipeline=pipeline, micro_batch=1, accumulation=batch // data, recompute="full", zero=0,
        early_stop=False, precision="fp16", compiled=True, sequence_parallel=False, weight_bytes=2, gradient_bytes=2,
        optimizer_bytes=12,
    )  # fmt: skip
    found = estimate(shape, layout, Cluster("Selene", SELENE, gpus), fused=False)
    counted = 96 * batch * 2048 * layers * width**2 * (1 + 2048 / (6 * width) + 51_200 / (16 * layers * width))
    return shape.weights / 1e9, counted / found.time.total / gpus / 1e12


def main() -> None:
    print("ZeRO, 7.5 × 10⁹ weights, 64 ranks: GB a rank (published 120, 31.4, 16.6, 1.88)")
    for stage in range(4):
        layout = Layout(data=64, zero=stage, weight_bytes=2, gradient_bytes=2, optimizer_bytes=12)
        print(f"  stage {stage}: {sum(zero_bytes(7.5e9, layout)) / 1e9:.2f}")
    print(f"\n{'torchtitan':28} {'tokens/s':>16} {'GiB':>18}")
    rows = [(row[0], titan(*row[1:3]), *row[3:5], "fitted" if row[5] else "held out") for row in TITAN_ROWS]
    for name, found, tps, gib, mark in [*rows, *((*row, "not chosen on") for row in titan_unseen())]:
        rate, memory = found.tokens_per_second / found.layout.ranks, found.memory.total / 2**30
        print(
            f"{name:28} {rate:7.0f} {tps:5.0f} {rate / tps - 1:+.0%} {memory:7.1f} {gib:5.1f} {memory / gib - 1:+.0%}  {mark}"
        )
    print(f"\n{'Megatron-LM':12} {'10⁹ weights':>14} {'TFLOP/s a GPU':>18}")
    for index, row in enumerate(MEGATRON_ROWS):
        size, rate = megatron(row)
        mark = "held out" if index % 2 else "fitted"
        print(f"{row[0]:12} {size:9.1f} {size / row[0] - 1:+.0%} {rate:8.0f} {row[8]:5} {rate / row[8] - 1:+.0%}  {mark}")
    print(f"\n{'no constant chosen on these':36} {'tokens/s a GPU':>16}")
    for name, planned, published in unseen():
        print(f"{name:36} {planned:8.0f} {published:7.0f} {planned / published - 1:+.0%}")


if __name__ == "__main__":
    main()
