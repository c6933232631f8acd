"""Every key of a DeepSpeed config, once: its type, its default, what it means, and what becomes of it here.

The pydantic classes below are the only list. A field is honoured unless it is marked

    NoEffect("why")   read and type-checked, changes nothing here; one log line says so
    Refused("why")    an error where it asks for something; its value for "off" is let through, since configs carry many of them

`table()` walks the classes; `python -m zenspeed.compat.deepspeed_keys docs/deepspeed.md` writes the table of that file from it.
Names, types and defaults are those of DeepSpeed 0.19.8, and of older versions where a key lives on in configs in the wild.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, Strict
from pydantic.fields import FieldInfo

from zenspeed.config import Config, write_atomically


@dataclass(frozen=True)
class NoEffect:
    """Accepted, and changes nothing here. `keys`: the names inside, where the value is a section of its own."""

    why: str
    keys: str = ""


@dataclass(frozen=True)
class Refused:
    """An error, unless the value asks for nothing: the default, None, false, an empty section or one whose `switch` is off."""

    why: str
    keys: str = ""
    """The names inside, where the value is a section; an unknown name inside is an error as elsewhere."""
    switch: str | None = None
    """The key inside that turns the section on; a section without it is off. None: any content asks for something."""
    off: tuple[Any, ...] = ()
    """Further values that ask for nothing."""


Status = NoEffect | Refused


@dataclass(frozen=True)
class Inner:
    """Statuses of single names inside a free dict, such as `optimizer.params`."""

    statuses: dict[str, Status | None]


class AutoAllowed:
    """Marks a field whose value may be the word "auto" in DeepSpeed itself."""


def _whole(value: Any) -> Any:
    """JSON has no whole numbers: 5e8 is meant as one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Bool = Annotated[bool, Strict()]
Int = Annotated[int, BeforeValidator(_whole), Strict()]
Natural = Annotated[int, BeforeValidator(_whole), Strict(), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_whole), Strict(), Field(ge=1)]
Number = Annotated[float, Strict()]
Text = Annotated[str, Strict()]
Dtype = Annotated[
    Literal["fp32", "fp16", "bf16", "float32", "float16", "bfloat16", "float", "half",
            "torch.float32", "torch.float16", "torch.bfloat16"], Field()
]  # fmt: skip

_ONE_BUFFER = "gradients always lie in one buffer per bucket"
_PINNED = "copies between host and device do not use page-locked memory of their own"
_NVME = "nothing is offloaded to NVMe"
_TYPED = "optimizer states and master weights are always fp32"
_UNITS = "weights are gathered bucket by bucket around each use; there is nothing to tune"


class OffloadParam(Config):
    device: Literal["none", "cpu", "nvme"] = "none"
    """where the weights' slices live at stage 3: none, cpu; nvme is refused"""
    nvme_path: Annotated[Text | None, NoEffect(_NVME)] = None
    """directory on NVMe"""
    buffer_count: Annotated[Natural, NoEffect(_NVME)] = 5
    """NVMe buffers"""
    buffer_size: Annotated[Natural, NoEffect(_NVME)] = 100_000_000
    """elements per NVMe buffer"""
    max_in_cpu: Annotated[Natural, NoEffect(_NVME)] = 1_000_000_000
    """elements kept in host memory with NVMe"""
    pin_memory: Annotated[Bool, NoEffect(_PINNED)] = True
    """page-locked memory"""


class OffloadOptimizer(Config):
    device: Literal["none", "cpu", "nvme"] = "none"
    """where master weights and optimizer states live: none, cpu; nvme is refused"""
    nvme_path: Annotated[Text | None, NoEffect(_NVME)] = None
    """directory on NVMe"""
    buffer_count: Annotated[Natural, NoEffect(_NVME)] = 4
    """NVMe buffers"""
    pin_memory: Annotated[Bool, NoEffect(_PINNED)] = True
    """page-locked memory"""
    pipeline: Annotated[Bool, NoEffect(_NVME)] = False
    """both of the next two"""
    pipeline_read: Annotated[Bool, NoEffect(_NVME)] = False
    """overlap reads"""
    pipeline_write: Annotated[Bool, NoEffect(_NVME)] = False
    """overlap writes"""
    fast_init: Annotated[Bool, NoEffect(_NVME)] = False
    """fast NVMe start"""
    ratio: Annotated[Any, Refused("all of the optimizer's states are offloaded or none; leave it at 1.0", off=(1,))] = 1.0
    """share of states that is offloaded"""
    super_offload: Annotated[Any, Refused("there is no SuperOffload; device: cpu offloads the whole optimizer")] = False
    """offload for superchips"""
    cpuadam_cores_perc: Annotated[Number, NoEffect("only SuperOffload reads it")] = 0.8
    """share of cores for SuperOffload"""


class LeafModule(Config):
    classes: list[Text] = Field([])
    """class names of modules gathered as one at stage 3"""
    names: list[Text] = Field([])
    """names of such modules"""
    name_suffixes: list[Text] = Field([])
    """endings of such names"""


class ZeroOptimization(Config):
    stage: Annotated[int, BeforeValidator(_whole), Strict(), Field(ge=0, le=3)] = 0
    """0 off, 1 optimizer states are split, 2 gradients too, 3 weights too"""
    reduce_bucket_size: Positive = 500_000_000
    """elements per reduction bucket; capped at 8,000,000, above which nothing overlaps"""
    offload_optimizer: OffloadOptimizer = OffloadOptimizer()
    """optimizer on the host"""
    offload_param: OffloadParam = OffloadParam()
    """weights on the host, stage 3"""
    zero_hpz_partition_size: Positive = 1
    """ranks over which weights are split; the rest are replicas (hybrid sharding)"""
    stage3_gather_16bit_weights_on_model_save: Annotated[Bool, NoEffect("save_16bit_model always writes all weights")] = False
    """save_16bit_model gathers the weights at stage 3"""
    leaf_module: LeafModule = LeafModule()
    """modules gathered as one at stage 3"""
    contiguous_gradients: Annotated[Bool, NoEffect(_ONE_BUFFER)] = True
    """copy gradients to one buffer"""
    reduce_scatter: Annotated[Bool, NoEffect("the stage decides: all-reduce at 0, reduce-scatter at 1 to 3")] = True
    """reduce-scatter instead of all-reduce"""
    use_multi_rank_bucket_allreduce: Annotated[Bool, NoEffect("every bucket is one message already")] = True
    """merge buckets in one all-reduce"""
    allgather_partitions: Annotated[Bool, NoEffect("updated weights are always all-gathered, never broadcast")] = True
    """all-gather or broadcast updated weights"""
    allgather_bucket_size: Annotated[Natural, NoEffect("weights use the buckets of reduce_bucket_size")] = 500_000_000
    """elements per all-gather"""
    overlap_comm: Annotated[Bool | None, NoEffect("a bucket is always reduced while backward goes on")] = None
    """reduce during backward"""
    compute_grad_norm: Annotated[Bool, NoEffect("the norm is always there: it is how overflow is found")] = True
    """compute the global norm at stages 1 and 2"""
    load_from_fp32_weights: Annotated[Bool, NoEffect("checkpoints hold the fp32 weights and load from them")] = True
    """load master weights from fp32 copies"""
    elastic_checkpoint: Annotated[Bool, NoEffect("every checkpoint loads on any number of ranks")] = False
    """legacy form of checkpoints for another number of ranks"""
    sub_group_size: Annotated[Natural, NoEffect("the optimizer works bucket by bucket")] = 1_000_000_000
    """elements per optimizer tile at stage 3"""
    stage3_prefetch_bucket_size: Annotated[Natural, NoEffect(_UNITS)] = 50_000_000
    """elements fetched ahead"""
    stage3_param_persistence_threshold: Annotated[Natural, NoEffect(_UNITS)] = 100_000
    """parameters below this stay whole"""
    stage3_model_persistence_threshold: Annotated[Natural, NoEffect(_UNITS)] = 2**63 - 1
    """cap on the total of those"""
    stage3_max_live_parameters: Annotated[Natural, NoEffect(_UNITS)] = 1_000_000_000
    """cap on gathered elements"""
    stage3_max_reuse_distance: Annotated[Natural, NoEffect(_UNITS)] = 1_000_000_000
    """keep weights that are used again within this many elements"""
    stage3_module_granularity_threshold: Annotated[Int, NoEffect(_UNITS)] = 0
    """treat fine-grained modules as one"""
    stage3_use_all_reduce_for_fetch_params: Annotated[Bool, NoEffect(_UNITS)] = False
    """fetch by all-reduce"""
    stage3_allgather_sequential: Annotated[Bool, NoEffect(_UNITS)] = False
    """gather parameters one by one"""
    ignore_unused_parameters: Annotated[Bool, NoEffect("an unused parameter has gradient zero at every stage")] = True
    """false: stage 2 stops on unused parameters"""
    round_robin_gradients: Annotated[Bool, NoEffect("each rank updates an equal slice of every bucket")] = False
    """finer split for offload at stages 1 and 2"""
    parameter_alignment: Annotated[Bool, NoEffect("every parameter starts on a cache line of 64 bytes")] = False
    """pad so that parameters start at 16 bytes"""
    memory_efficient_linear: Annotated[Bool, NoEffect("nn.Linear is torch's own at every stage")] = True
    """stage 3 linear with less saved memory"""
    pipeline_loading_checkpoint: Annotated[Bool, NoEffect("a rank reads only the slices it needs")] = False
    """stage 3 load in pipeline fashion"""
    override_module_apply: Annotated[Bool, NoEffect("torch is not patched")] = True
    """stage 3 patch of Module.apply"""
    log_trace_cache_warnings: Annotated[Bool, NoEffect("there is no prefetch trace")] = False
    """log invalid prefetch traces"""
    enable_sanity_checks: Annotated[Bool, NoEffect("the checks are always on")] = False
    """internal checks"""
    save_muon_momentum_buffer_in_memory: Annotated[Bool, NoEffect(_NVME)] = False
    """keep Muon's momentum off NVMe"""
    cpu_offload_use_pin_memory: Annotated[Bool | None, NoEffect(_PINNED)] = None
    """old name of pin_memory"""
    legacy_stage1: Annotated[Any, Refused("that implementation is gone, from DeepSpeed too; remove the key")] = False
    """old stage 1"""
    zero_quantized_weights: Annotated[Any, Refused("weights are gathered unquantized; remove it, results stay exact")] = False
    """quantize weights for the all-gather"""
    zero_quantized_nontrainable_weights: Annotated[Any, Refused("frozen weights keep their type; remove the key")] = False
    """store frozen weights quantized"""
    zero_quantized_gradients: Annotated[
        Any, Refused("gradients are reduced unquantized; communication_data_type: bf16 halves the traffic")
    ] = False
    """quantize gradients for the reduction"""
    zenflow: Annotated[
        Any,
        Refused(
            "there is no ZenFlow; offload_optimizer: {device: cpu} offloads the optimizer and stays exact",
            "topk_ratio select_strategy select_interval update_interval overlap_step offload auto_ratio"
            " full_warm_up_rounds pt_reserved_cores_perc steps_per_epoch",
        ),
    ] = None
    """asynchronous offload"""
    mics_shard_size: Annotated[Any, Refused("use zero_hpz_partition_size, which splits over that many ranks", off=(-1,))] = None
    """MiCS: ranks over which weights are split"""
    mics_hierarchical_params_gather: Annotated[Any, Refused("gone from DeepSpeed too; remove the key")] = False
    """MiCS: gather in two steps"""
    zeropp_loco_param: Annotated[Any, Refused("gone from DeepSpeed too; gradients are reduced unquantized")] = None
    """LoCo compression"""


class Fp16(Config):
    enabled: Bool = False
    """fp16 weights, fp32 masters, loss scaling; on every device, a CPU too"""
    auto_cast: Bool = False
    """cast floating inputs to half"""
    loss_scale: Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)] = 0.0
    """0 is dynamic, above 0 static"""
    initial_scale_power: Natural = 16
    """first scale is 2 to this"""
    loss_scale_window: Positive = 1000
    """clean steps before a doubling"""
    hysteresis: Positive = 2
    """overflows before the first halving"""
    consecutive_hysteresis: Bool = False
    """refill hysteresis at each clean step"""
    min_loss_scale: Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)] = 1.0
    """floor of the scale; an overflow there ends training with an explanation"""
    fp16_master_weights_and_grads: Annotated[Any, Refused(_TYPED + "; remove the key")] = False
    """masters in fp16"""
    fp16_opt_level: Annotated[Text | None, NoEffect("a left-over of Apex")] = None
    """opt level of Apex"""


class Bf16(Config):
    enabled: Bool = False
    """bf16 weights, fp32 masters"""
    immediate_grad_update: Annotated[Bool, NoEffect("gradients are added as they arrive at every stage")] = False
    """add gradients in the hook"""
    check_grad_overflow: Annotated[Bool, NoEffect("a step that is not finite is always blocked")] = True
    """skip steps that are not finite"""
    bf16_master_weights_and_grads: Annotated[Any, Refused(_TYPED + "; remove the key")] = False
    """masters in bf16"""
    bf16_optimizer_states: Annotated[Any, Refused(_TYPED + "; remove the key")] = False
    """moments in bf16"""


class Amp(Config):
    enabled: Bool = False
    """torch's autocast, as torch_autocast: bf16 on a CPU, fp16 with loss scaling elsewhere"""
    opt_level: Annotated[Any, NoEffect("a setting of Apex")] = None
    """Apex"""
    loss_scale: Annotated[Any, NoEffect("a setting of Apex")] = None
    """Apex"""
    master_weights: Annotated[Any, NoEffect("a setting of Apex")] = None
    """Apex"""
    keep_batchnorm_fp32: Annotated[Any, NoEffect("a setting of Apex")] = None
    """Apex"""
    cast_model_type: Annotated[Any, NoEffect("a setting of Apex")] = None
    """Apex"""
    min_loss_scale: Annotated[Any, NoEffect("a setting of Apex")] = None
    """Apex"""
    max_loss_scale: Annotated[Any, NoEffect("a setting of Apex")] = None
    """Apex"""


class TorchAutocast(Config):
    enabled: Bool = False
    """run forward under torch.autocast with fp32 weights"""
    dtype: Dtype | None = None
    """type of autocast; default bf16"""
    lower_precision_safe_modules: Annotated[
        list[Text] | None, NoEffect("gradients of fp32 weights are reduced in fp32, or in communication_data_type")
    ] = None
    """classes whose gradients are reduced in the low type"""


class DataTypes(Config):
    grad_accum_dtype: Dtype | None = None
    """type gradients are summed in; at every stage"""
    param_dtype: Dtype | None = None
    """must say what fp16 or bf16 says"""
    buffer_dtype: Annotated[Any, Refused("buffers keep their type; cast them with module.to before initialize")] = None
    """type of floating buffers"""
    keep_in_fp32_modules: Annotated[Any, AutoAllowed(), NoEffect("buffers keep their type")] = "auto"
    """buffers kept fp32 by name"""


class Optimizer(Config):
    type: Text | None = None
    """Adam, AdamW, SGD, Adagrad, Lion, Lamb, Muon in any case, or the name of a class of torch.optim"""
    params: Annotated[
        dict[str, Any],
        Inner({
            "torch_adam": NoEffect("the same arithmetic either way"),
            "adam_w_mode": None,
            "fp32_optimizer_states": NoEffect(_TYPED),
            "max_grad_norm": Refused("use gradient_clipping at the top level", off=(0, 0.0)),
        }),
    ] = Field({})  # fmt: skip
    """arguments of the optimizer"""
    legacy_fusion: Annotated[Bool, NoEffect("there are no fused kernels to choose from")] = False
    """old fused Adam path"""


class Scheduler(Config):
    type: Text | None = None
    """WarmupLR, WarmupDecayLR, WarmupCosineLR, OneCycle, LRRangeTest or a class of torch.optim.lr_scheduler"""
    params: dict[str, Any] = Field({})
    """arguments of the scheduler"""


_NO_MODEL_RANKS = "activations are not split: there are no tensor-parallel ranks yet"


class ActivationCheckpointing(Config):
    cpu_checkpointing: Bool = False
    """keep the inputs of checkpointed functions on the host until backward"""
    partition_activations: Annotated[Bool, NoEffect(_NO_MODEL_RANKS)] = False
    """split saved activations over model-parallel ranks"""
    number_checkpoints: Annotated[Int | None, NoEffect("memory is not laid out in advance")] = None
    """count of checkpointed layers"""
    contiguous_memory_optimization: Annotated[Bool, NoEffect("torch's allocator places them")] = False
    """copy saved activations to one buffer"""
    synchronize_checkpoint_boundary: Annotated[Bool, NoEffect("no synchronization is needed")] = False
    """synchronize at each boundary"""
    profile: Annotated[Bool, NoEffect("wall_clock_breakdown times forward and backward")] = False
    """time the checkpoints"""


class FlopsProfiler(Config):
    enabled: Bool = False
    """profile one step on rank 0"""
    profile_step: Natural = 1
    """the step"""
    module_depth: Int = -1
    """depth of the aggregate, -1 is the innermost"""
    top_modules: Positive = 1
    """how many modules to print per depth"""
    detailed: Bool = True
    """print every module"""
    output_file: Text | None = None
    """write there instead of standard output"""
    recompute_fwd_factor: Number = 0.0
    """adds this times the forward for recomputation"""


class TensorBoard(Config):
    enabled: Bool = False
    """write event files"""
    output_path: Text = ""
    """folder"""
    job_name: Text = "DeepSpeedJobName"
    """folder inside it"""


class CsvMonitor(Config):
    enabled: Bool = False
    """one CSV file per figure"""
    output_path: Text = ""
    """folder"""
    job_name: Text = "DeepSpeedJobName"
    """folder inside it"""


class MLflow(Config):
    enabled: Bool = False
    """MLflow, where it is installed"""
    tracking_uri: Text | None = None
    """server or folder; MLflow's own default"""
    experiment: Text = "zenspeed"
    """experiment, made if it is not there"""
    run_name: Text | None = None
    """name of the run"""


class Wandb(Config):
    enabled: Bool = False
    """Weights & Biases, where it is installed"""
    group: Text | None = None
    """group"""
    team: Text | None = None
    """team"""
    project: Text = "deepspeed"
    """project"""


class CommsLogger(Config):
    enabled: Bool = False
    """count the engine's collectives, their bytes and time, for comm.log_summary(); each is then waited for at once"""
    verbose: Bool = False
    """log every call"""
    prof_all: Bool = True
    """all operations"""
    prof_ops: list[Text] = Field([])
    """their names when not all"""
    debug: Annotated[Bool, NoEffect("callers are not looked up")] = False
    """log callers"""


class Checkpoint(Config):
    tag_validation: Annotated[
        Literal["Ignore", "Warn", "Fail"], BeforeValidator(lambda v: v.capitalize() if isinstance(v, str) else v)
    ] = "Warn"
    """compare the tag over ranks"""
    load_universal: Annotated[Bool, NoEffect("every checkpoint loads on any number of ranks and any stage")] = False
    """load from the universal format"""
    use_node_local_storage: Annotated[
        Any, Refused("a checkpoint is one folder that all ranks see; give save_checkpoint a shared folder")
    ] = False
    """each machine writes to a disk of its own"""
    parallel_write: Annotated[Any, NoEffect("every rank always writes its own part", "pipeline_stage")] = None
    """layer files written by all ranks"""
    checkpoint_serialization: Annotated[Bool, NoEffect("files are safetensors")] = True
    """format of the fast writer"""
    writer: Annotated[
        Any,
        NoEffect(
            "there is one writer",
            "type io_buffer_size io_buffer_double io_multiplier show_statistics data_parallel decoupled",
        ),
    ] = None
    """the fast writer"""


_PRESCALED = "gradients are always divided before the sum; the mean is the same"


class DeepSpeedKeys(Config):
    """The top level of a DeepSpeed config."""

    train_batch_size: Positive | None = None
    """samples per update over all ranks = micro × accumulation × ranks"""
    train_micro_batch_size_per_gpu: Positive | None = None
    """samples per rank and forward"""
    gradient_accumulation_steps: Positive | None = None
    """micro-batches per update"""
    gradient_clipping: Annotated[float, Strict(), Field(ge=0)] = 1.0
    """greatest global 2-norm; 0 is off"""
    prescale_gradients: Annotated[Bool, NoEffect(_PRESCALED)] = False
    """divide before the sum over ranks instead of after"""
    gradient_predivide_factor: Annotated[float, Strict(), Field(gt=0), NoEffect(_PRESCALED)] = 1.0
    """divide by this before the sum, by the rest after"""
    gradient_allreduce_op: Literal["mean", "sum"] = "mean"
    """sum: do not divide by the number of ranks"""
    communication_data_type: Dtype | None = None
    """type gradients are summed over ranks in"""
    data_types: DataTypes = DataTypes()
    """types of gradients and parameters"""
    fp16: Fp16 = Fp16()
    """half precision"""
    bf16: Bf16 = Bf16()
    """bfloat16"""
    torch_autocast: TorchAutocast = TorchAutocast()
    """autocast"""
    amp: Amp = Amp()
    """automatic mixed precision; gone from DeepSpeed, autocast here"""
    optimizer: Optimizer | None = None
    """the optimizer; one given to initialize comes before it"""
    scheduler: Scheduler | None = None
    """the schedule; one given to initialize comes before it"""
    zero_optimization: ZeroOptimization = ZeroOptimization()
    """what is split over ranks; true is the old form of stage 1"""
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing()
    """recomputation"""
    checkpoint: Checkpoint = Checkpoint()
    """saving and loading"""
    steps_per_print: Positive | Annotated[float, Strict(), Field(gt=0)] | None = None
    """updates between log lines; infinity or null is never"""
    wall_clock_breakdown: Bool = False
    """print times of forward, backward, reduction and step every steps_per_print updates"""
    memory_breakdown: Bool = False
    """print what each rank holds, beside ZeRO's formula, every steps_per_print updates"""
    flops_profiler: FlopsProfiler = FlopsProfiler()
    """FLOPs per module"""
    comms_logger: CommsLogger = CommsLogger()
    """collectives"""
    tensorboard: TensorBoard = TensorBoard()
    """monitor"""
    csv_monitor: CsvMonitor = CsvMonitor()
    """monitor"""
    wandb: Wandb = Wandb()
    """monitor"""
    mlflow: MLflow = MLflow()
    """monitor; DeepSpeed has none of it"""
    fast_kernels: Bool = True
    """bf16 on a CPU: attention and tanh-GELU of the module by faster formulas; DeepSpeed has none of it"""
    dataloader_drop_last: Bool = False
    """drop the last batch that is not full, of the engine's loader"""
    data_parallel_size: Positive | None = None
    """must be the number of ranks"""
    dump_state: Bool = False
    """log the resolved config at the start"""
    managed_gradient_accumulation: Annotated[
        Any, Refused("step() counts micro-batches; use set_gradient_accumulation_boundary", off=(True,))
    ] = True
    """false: step() itself is the boundary"""
    zero_allow_untested_optimizer: Annotated[Bool, NoEffect("every optimizer is allowed at every stage")] = False
    """allow ZeRO with any optimizer"""
    zero_force_ds_cpu_optimizer: Annotated[Bool, NoEffect("any torch optimizer works with offload")] = True
    """with offload accept only DeepSpeed's CPU optimizers"""
    log_level: Annotated[Text | None, NoEffect("Python's logging decides, logger zenspeed")] = None
    """level of the logger"""
    vocabulary_size: Annotated[Int | None, NoEffect("it only warns")] = None
    """warns if not a multiple of 8"""
    disable_python_gc: Annotated[Bool, NoEffect("Python's collector is left alone")] = False
    """switch the cyclic collector off"""
    disable_allgather: Annotated[Bool, NoEffect("DeepSpeed reads it nowhere either")] = False
    """nothing"""
    allgather_size: Annotated[Number, NoEffect("weights use the buckets of reduce_bucket_size")] = 5e8
    """old form of allgather_bucket_size"""
    fp32_allreduce: Annotated[Bool, NoEffect("use communication_data_type")] = False
    """old form of communication_data_type: fp32"""
    seq_parallel_communication_data_type: Annotated[Any, NoEffect("there is no sequence parallelism yet")] = "fp32"
    """type of reductions under sequence parallelism"""
    use_data_before_expert_parallelism: Annotated[Bool, NoEffect("there is no expert parallelism yet")] = False
    """order of groups"""
    timers: Annotated[
        Any, NoEffect("wall_clock_breakdown is the switch", "throughput throughput.enabled throughput.synchronized")
    ] = None
    """throughput timer"""
    aio: Annotated[
        Any, NoEffect(_NVME, "block_size queue_depth intra_op_parallelism thread_count single_submit overlap_events use_gds")
    ] = None
    """NVMe access"""
    sequence_parallel_size: Annotated[Any, Refused("sequence parallelism is not built yet; use 1", off=(1,))] = None
    """ranks per sequence"""
    tensor_parallel: Annotated[
        Any,
        Refused(
            "tensor parallelism is not built yet; autotp_size: 0 turns it off",
            "dtype autotp_size tp_overlap_comm vocab_parallel_lm_head vocab_parallel_ce_backend tp tensor_parallel tp.tp_size"
            " tp.tp_grain_size tp.mpu tp.tp_group injection_policy_tuple partition_config preset_model keep_module_on_host"
            " kernel_inject replace_with_kernel_inject",
            switch="autotp_size",
        ),
    ] = None
    """tensor parallelism"""
    expert_parallel: Annotated[
        Any,
        Refused(
            "expert parallelism is not built yet; enabled: false turns it off",
            "enabled autoep_size expert_tensor_parallel_size validate_folding_routing async_split_plan preset_model"
            " moe_layer_pattern expert_pattern router_pattern use_grouped_mm disable_triton_grouped_mm route_norm route_scale"
            " score_apply combine_impl row_weighting_impl gate_up_impl comm_backend comm_num_sm comm_qp_margin"
            " comm_max_tokens_per_rank num_expert_groups num_limited_groups score_func top_k load_balance_coeff"
            " routed_scaling_factor expert_w1 expert_w2 expert_w3 num_experts_attr top_k_attr has_shared_experts"
            " shared_experts_pattern shared_experts_gate_pattern expert_activation _load_balance_coeff_explicit",
            switch="enabled",
        ),
    ] = None
    """experts over ranks"""
    pipeline: Annotated[
        Any,
        Refused(
            "pipeline parallelism is not built yet; remove the section",
            "stages partition seed_layers activation_checkpoint_interval pipe_partitioned grad_partitioned",
        ),
    ] = None
    """layers over ranks"""
    compile: Annotated[
        Any,
        Refused(
            "there is no DeepCompile; engine.compile() uses torch.compile",
            "deepcompile autoep_non_moe free_activation free_activation_threshold offload_activation"
            " offload_activation_pin_memory offload_opt_states double_buffer symmetric_memory debug_log offload_parameters"
            " sync_before_reduce sync_after_reduce sync_before_allgather sync_after_allgather keep_int_input_tensors"
            " keep_all_input_tensors passes",
            switch="deepcompile",
        ),
    ] = None
    """DeepCompile"""
    comet: Annotated[
        Any,
        Refused(
            "Comet is not supported; use tensorboard, csv_monitor or wandb",
            "enabled samples_log_interval project workspace api_key experiment_name experiment_key online mode",
            switch="enabled",
        ),
    ] = None
    """monitor"""
    hybrid_engine: Annotated[
        Any,
        Refused(
            "generation inside training for RLHF is not built; enabled: false turns it off",
            "enabled max_out_tokens inference_tp_size release_inference_cache pin_parameters tp_gather_partition_size"
            " enable_cuda_graph",
            switch="enabled",
        ),
    ] = None
    """training and generation in one"""
    weight_quantization: Annotated[
        Any,
        Refused(
            "weights are not quantized in training; remove the section",
            "enabled num_bits q_type q_groups quantized_initialization post_init_quant",
        ),
    ] = None
    """quantization"""
    data_efficiency: Annotated[
        Any,
        Refused(
            "curriculum sampling and token dropping are not built; enabled: false turns them off",
            "enabled seed data_sampling data_sampling.enabled data_sampling.num_epochs data_sampling.num_workers"
            " data_sampling.pin_memory data_sampling.curriculum_learning data_sampling.curriculum_learning.enabled"
            " data_sampling.curriculum_learning.data_cluster_path data_sampling.curriculum_learning.curriculum_metrics"
            " data_sampling.dynamic_batching data_sampling.dynamic_batching.enabled data_sampling.dynamic_batching.metrics_path"
            " data_sampling.dynamic_batching.lr_scaling_method data_sampling.dynamic_batching.min_batch_size"
            " data_sampling.dynamic_batching.max_batch_size data_sampling.dynamic_batching.sequence_picking_order"
            " data_sampling.dynamic_batching.max_tokens data_sampling.dynamic_batching.verbose data_routing"
            " data_routing.enabled data_routing.random_ltd data_routing.random_ltd.enabled"
            " data_routing.random_ltd.total_layer_num data_routing.random_ltd.random_ltd_layer_num"
            " data_routing.random_ltd.random_ltd_layer_id data_routing.random_ltd.model_mask_name"
            " data_routing.random_ltd.model_type data_routing.random_ltd.hidden_state_order"
            " data_routing.random_ltd.random_ltd_schedule data_routing.random_ltd.layer_token_lr_schedule",
            switch="enabled",
        ),
    ] = None
    """curriculum and token dropping"""
    autotuning: Annotated[
        Any,
        Refused(
            "there is no autotuner here; enabled: false turns it off",
            "enabled fast results_dir exps_dir overwrite start_profile_step end_profile_step metric metric_path tuner_type"
            " tuner_early_stopping tuner_num_trials arg_mappings model_info model_info_path mp_size max_train_batch_size"
            " min_train_batch_size max_train_micro_batch_size_per_gpu min_train_micro_batch_size_per_gpu"
            " num_tuning_micro_batch_sizes",
            switch="enabled",
        ),
    ] = None
    """search for settings"""
    datastates_ckpt: Annotated[Any, Refused("there is one way to write checkpoints; remove the section")] = None
    """DataStates checkpoints"""
    nebula: Annotated[
        Any,
        Refused(
            "Nebula is a service of Azure, gone from DeepSpeed too; save_checkpoint writes to a folder",
            "enabled persistent_storage_path persistent_time_interval num_of_version_in_retention enable_nebula_load load_path",
            switch="enabled",
        ),
    ] = None
    """Nebula checkpoints"""
    elasticity: Annotated[
        Any,
        Refused(
            "batch sizes are not chosen for you; a checkpoint loads on any number of ranks, and zenspeed launch --nnodes 1:4"
            " restarts on the machines that are left",
            "enabled max_train_batch_size micro_batch_sizes min_gpus max_gpus min_time version ignore_non_elastic_batch_info"
            " prefer_larger_batch num_gpus_per_node model_parallel_size",
            switch="enabled",
        ),
    ] = None
    """batch sizes for a changing number of ranks"""
    curriculum_learning: Annotated[
        Any,
        Refused(
            "sequence lengths are the data's; enabled: false turns it off",
            "enabled curriculum_type min_difficulty max_difficulty schedule_type schedule_config",
            switch="enabled",
        ),
    ] = None
    """sequence length grows"""
    progressive_layer_drop: Annotated[
        Any, Refused("layers are not dropped; enabled: false turns it off", "enabled theta gamma", switch="enabled")
    ] = None
    """layers are dropped at random"""
    eigenvalue: Annotated[
        Any,
        Refused(
            "only quantization in training used it; enabled: false turns it off",
            "enabled verbose max_iter tol stability gas_boundary_resolution layer_name layer_num",
            switch="enabled",
        ),
    ] = None
    """eigenvalues of the Hessian"""
    compression_training: Annotated[Any, Refused("pruning and quantization are not built; remove the section")] = None
    """compression"""
    quantize_training: Annotated[Any, Refused("weights are not quantized in training; remove the section")] = None
    """quantization"""
    sparse_attention: Annotated[Any, Refused("attention is the model's own; remove the section")] = None
    """attention kernels"""
    sparse_gradients: Annotated[Any, Refused("gradients of embeddings are dense; use nn.Embedding(sparse=False)")] = False
    """sparse all-reduce of embeddings"""
    graph_harvesting: Annotated[Any, Refused("there are no CUDA graphs; engine.compile() uses torch.compile")] = False
    """CUDA graphs"""


ALIASES: dict[str, str] = {
    "bfloat16": "bf16",
    "zero_optimization.cpu_offload": "zero_optimization.offload_optimizer",
    "zero_optimization.cpu_offload_params": "zero_optimization.offload_param",
    "zero_optimization.cpu_offload_param": "zero_optimization.offload_param",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "zero_optimization.stage3_gather_16bit_weights_on_model_save",
    **{
        f"zero_optimization.{name}": f"zero_optimization.stage3_{name}"
        for name in (
            "prefetch_bucket_size",
            "param_persistence_threshold",
            "model_persistence_threshold",
            "max_live_parameters",
            "max_reuse_distance",
            "gather_16bit_weights_on_model_save",
            "module_granularity_threshold",
            "use_all_reduce_for_fetch_params",
            "allgather_sequential",
        )
    },
}
"""Other and older names; `cpu_offload: true` means a section {device: cpu}."""


class Row(NamedTuple):
    """One line of the table in docs/deepspeed.md."""

    key: str
    status: str
    default: Any
    note: str


def status_of(field: FieldInfo) -> Status | None:
    """The mark of a field; None is honoured."""
    return next((m for m in field.metadata if isinstance(m, NoEffect | Refused)), None)


def section_of(field: FieldInfo) -> type[Config] | None:
    """The class of a section, or None for a plain value."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, Config)), None)


def table(kind: type[Config] = DeepSpeedKeys, prefix: str = "") -> Iterator[Row]:
    """Every key with its status, sections before what is inside them, other names last."""
    for name, field in kind.model_fields.items():
        key, status, section = prefix + name, status_of(field), section_of(field)
        yield _row(key, status, None if section else field.default, field.description or "")
        if section:
            yield from table(section, key + ".")
        if status is not None:
            for inner in status.keys.split():
                yield _row(f"{key}.{inner}", status, None, "as the section")
        for inner, mark in next((m.statuses for m in field.metadata if isinstance(m, Inner)), {}).items():
            yield _row(f"{key}.{inner}", mark, None, "" if mark else "false: weight decay as L2 with type Adam")
    if not prefix:
        yield from (Row(old, "honoured", None, f"another name of `{new}`") for old, new in ALIASES.items())


def _row(key: str, status: Status | None, default: Any, meaning: str) -> Row:
    word = {NoEffect: "no effect", Refused: "refused"}.get(type(status), "honoured")
    note = meaning if status is None or meaning == "as the section" else f"{meaning}: {status.why}".removeprefix(": ")
    return Row(key, word, default, note)


def markdown() -> str:
    """The table as docs/deepspeed.md has it."""
    lines = ["| key | here | default | what it is, and why |", "|---|---|---|---|"]
    for row in table():
        default = "" if row.default is None else f"`{json.dumps(row.default)}`"
        lines.append(f"| `{row.key}` | {row.status} | {default} | {row.note} |")
    return "\n".join(lines)


def write(path: Path) -> None:
    """Puts the table between the two marks of a Markdown file."""
    before, begin, rest = path.read_text(encoding="utf-8").partition("<!-- keys -->\n")
    _, end, after = rest.partition("\n<!-- end of keys -->")
    write_atomically(path, before + begin + markdown() + end + after)


if __name__ == "__main__":
    write(Path(sys.argv[1])) if len(sys.argv) > 1 else print(markdown())
