"""The recipe: all that decides one run, in one tree, YAML in and YAML out.

Every section is a frozen config whose field docstrings are its documentation; `zenspeed train` saves the resolved recipe in
the run folder and in every checkpoint. No torch here: a wrong recipe is refused before anything slow is imported.
"""

from __future__ import annotations

import codecs
import itertools
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from zenspeed.config import Config
from zenspeed.models.presets import ModelConfig
from zenspeed.storage import is_remote, local_place
from zenspeed.text.clean_config import CleanConfig


class RunConfig(Config):
    name: str | None = None
    """Name of the run; null: made from the data's name and the time."""
    folder: Path | None = None
    """Where the run is written; null: runs/<name>. An address, s3://bucket/mine, says two things: folder: runs/mine, and
    storage: s3://bucket/mine."""
    storage: str | None = None
    """Address in object storage where the run is kept as well: each checkpoint when it is complete, and all other files."""
    seed: int = Field(1, ge=0)
    """Seed of initialisation, sample order and dropout."""

    @model_validator(mode="before")
    @classmethod
    def _kept_in_storage(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(folder := data.get("folder"), str) and is_remote(folder):
            return data | {"folder": local_place(folder), "storage": folder.rstrip("/")}
        return data

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.storage is not None and not is_remote(self.storage):
            raise ValueError(f"storage: {self.storage} is no address; expected s3://bucket/run")
        return self


class SourceConfig(Config):
    source: str
    """As `data.source`."""
    weight: float = Field(1.0, gt=0)
    """Times its documents are read: 2 reads each twice, 0.5 a half of them, drawn by their hash."""
    text_column: str | None = None
    """Column that holds the text; null: `data.text_column`."""


class DataConfig(Config):
    source: str = "python-docs"
    """`python-docs` (Python's own documentation, always present), or a file, folder or glob of .txt, .md, .py, .rst, .jsonl,
    .csv, .tsv, .parquet (each also .gz, .bz2, .xz, .zst), a folder saved by `datasets`, or `hf:owner/name` of the hub. Rows of
    a task may also be a .json file: a list of rows, or SQuAD's format."""
    sources: list[SourceConfig] = Field(default_factory=list)
    """A mixture of several, instead of `source`: `[{source: a.csv, weight: 2}, {source: b.txt}]`."""
    mixture_seed: int = Field(1, ge=0)
    """Seed of the draw of documents from sources whose weight is no whole number."""
    split: str = "train"
    """Split of a saved dataset or one of the hub."""
    endpoint: str | None = None
    """Address of a mirror of the Hugging Face hub, for data and models; null: the hub's own."""
    fetch: bool = False
    """Fetches the files of a dataset of the hub whole, into the hub's own cache, and keeps them; false: they are read while
    they arrive, and nothing is kept."""
    text_column: str = "text"
    """Column that holds the text, of rows; `a.b` is the field `b` inside the column `a`."""
    encoding: str = "utf-8"
    """Of text files, CSV, TSV and JSON lines."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What is done at a row that cannot be read; rows that were skipped are counted, the first ones quoted."""
    clean: CleanConfig = CleanConfig()
    validation: float | str = Field(0.05)
    """Share of documents held out for validation (0 < share < 1), or a source with the validation text."""
    test: str | None = None
    """File, folder or glob with rows that are only looked at once, at the end (not for language_model)."""
    hold_out: Literal["auto", "random", "stratified", "grouped", "time"] = "auto"
    """How rows of a task are held out by a share: at random by the text, each label alike, whole groups, or the latest; `auto`:
    each label alike for classification, all questions of a context together for span_qa, else at random."""
    hold_out_by: str | None = None
    """Column of the group or the time, for hold_out grouped and time."""
    leakage: Literal["refuse", "allow"] = "refuse"
    """What is done when a validation or test file holds texts that the training rows hold as well."""
    section_characters: int = Field(10_000, ge=0)
    """Plain text is cut at blank lines into documents of about this many characters; 0: a file is one document."""
    attend_across_documents: bool = False
    """Lets a token attend to the document packed before its own in the same sequence."""
    cache: Path = Path("~/.cache/zenspeed")
    """Folder of prepared token shards, named by the content they were made from."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.sources and self.source != "python-docs":
            raise ValueError("source and sources are both given; put the one source into the list")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(f"encoding: {self.encoding!r} is not known to Python; give utf-8, gb18030, latin-1") from None
        if isinstance(self.validation, float) and not 0 < self.validation < 1:
            raise ValueError(f"validation: {self.validation} is not a share; give 0 < share < 1, such as 0.05, or a path")
        return self


class TokenizerConfig(Config):
    kind: Literal["bpe", "wordpiece", "word", "char", "folder"] = "bpe"
    """Trained on the data: byte-level `bpe`, BERT's `wordpiece`, `word`s (Chinese cut by jieba), `char`; loaded: `folder`."""
    vocab_size: int | None = Field(None, ge=8)
    """Tokens in a trained vocabulary, special ones (and, bpe, the 256 bytes) included; null: 4,096, fewer for a small text."""
    or_fewer: bool = False
    """A text that holds fewer tokens than `vocab_size` (bpe) makes fewer, and is not refused."""
    folder: Path | None = None
    """For `kind: folder`: holds tokenizer.json, vocab.json and merges.txt, vocab.txt, or a .tiktoken file (or is it)."""
    special_tokens: list[str] = Field(default_factory=list)
    """Tokens to add to a trained vocabulary; [CLS], [SEP], [PAD], [MASK] take the roles of these names."""
    max_unknown: float = Field(0.1, ge=0, le=1)
    """Share of unknown tokens in the data above which it is refused."""

    @model_validator(mode="after")
    def _check(self) -> TokenizerConfig:
        if self.kind == "bpe" and self.vocab_size is not None and self.vocab_size < 257 + len(self.special_tokens):
            raise ValueError(f"vocab_size: {self.vocab_size} has no room for 256 bytes and special tokens; give more")
        if self.kind == "folder" and self.special_tokens:
            raise ValueError("special_tokens: are for a vocabulary that is trained; kind: folder has its own; take them away")
        if self.kind == "folder" and self.folder is None:
            raise ValueError("kind: folder needs tokenizer.folder, a folder that holds tokenizer.json")
        if self.kind != "folder" and self.folder is not None:
            raise ValueError(f"folder is given but kind is {self.kind}; set tokenizer.kind: folder, or take folder away")
        return self


class TaskConfig(Config):
    kind: Literal[
        "language_model", "classification", "masked_lm", "span_qa", "similarity", "seq2seq", "chat", "span_corruption"
    ] = "language_model"  # fmt: skip
    """What is learned: to continue text; a label for a text; words that were hidden; where in a text the answer to a question
    stands; which texts belong together; to write another text, such as a translation or a summary, with an encoder_decoder;
    to answer, with a decoder; spans that were left out, with an encoder_decoder."""
    text: str = "text"
    """Column of the text (classification, masked_lm, similarity; that of language_model is data.text_column)."""
    text_pair: str | None = None
    """Column of a second text: read with the first (classification), or what belongs to it (similarity)."""
    target: str = "target"
    """Column of the text to be written (seq2seq), or of the answer (chat)."""
    control: list[str] = Field(default_factory=list)
    """seq2seq: columns whose value is put before the text as a token, such as the language to be written."""
    length: str | None = None
    """seq2seq: column of the words that a target is asked to have (a Chinese character is one), which become a token before
    the text. Rows to learn from need not have it: their target is counted."""
    messages: str | None = None
    """chat: column of a conversation, [{role, content}, …] as a list or as JSON; null: one question and its answer a row."""
    template: Path | None = None
    """chat: file of a Jinja template as Hugging Face has them; null: the tokenizer's own, else one of zenspeed's."""
    label: str = "label"
    """Column of the label (classification)."""
    labels: list[str] | None = Field(None, min_length=2)
    """All labels, in order; null: those of the training rows, sorted."""
    max_tokens: int | None = Field(None, ge=8)
    """Longest sequence a text becomes; null: model.context, and at most 256 with model.huggingface."""
    stride: int | None = Field(None, ge=1)
    """A text longer than max_tokens is read in windows that overlap by so many tokens; null: its end is cut off (span_qa:
    windows that overlap by max_answer_tokens)."""
    mask: float = Field(0.15, gt=0, lt=1)
    """masked_lm, span_corruption: share of tokens to be predicted (Devlin et al. 1810.04805, Raffel et al. 1910.10683)."""
    question: str = "question"
    """Column of the question (span_qa)."""
    context: str = "context"
    """Column of the text in which the answer stands (span_qa)."""
    answer: str = "answer"
    """Column of the answer (span_qa): a text of the context, empty where it holds none; or SQuAD's text and answer_start."""
    answer_start: str = "answer_start"
    """Column with the place of the answer in characters (span_qa); rows without it take the first place where it stands."""
    max_answer_tokens: int = Field(40, ge=1)
    """Longest answer that is given, in tokens (span_qa)."""
    score: str | None = None
    """Column of numbers that say how like the two texts are (similarity); null: each pair belongs together, and the other pairs
    of a micro-batch do not."""
    temperature: float = Field(0.05, gt=0)
    """similarity: what cosines are divided by when a text is to find its own among those of the micro-batch."""
    span: float = Field(3.0, ge=1)
    """span_corruption: mean tokens of a span."""


class DecodeConfig(Config):
    beams: int = Field(4, ge=1)
    """Texts of each row that are followed at once, of which the likeliest is taken; 1: the likeliest token each time."""
    length_penalty: float = 1.0
    """Power of the length by which a text's log probability is divided; above 0 favours long texts."""
    min_tokens: int = Field(0, ge=0)
    """Tokens before a text may end."""
    max_tokens: int | None = Field(None, ge=1)
    """Tokens of a text at most; null: as many as the model was trained with."""


class TrainConfig(Config):
    exclusive: ClassVar[tuple[str, ...]] = ("steps", "minutes", "epochs")

    steps: int | None = Field(None, ge=1)
    """Updates of the weights; the run ends after them."""
    minutes: float | None = Field(None, gt=0)
    """Wall time of the run from the start of the command (or the call of zenspeed.train) to its end, evaluation and samples
    included; instead of steps."""
    epochs: float | None = Field(None, gt=0)
    """Times the training samples are gone through; instead of steps."""
    target_loss: float | None = Field(None, gt=0)
    """Of a language model: bits per byte of held-out text. The run ends before its time once an evaluation's 95 % interval lies
    below it; evaluations are made when the training loss comes near it."""
    batch_size: int = Field(8, ge=1)
    """Sequences (or, of a task with rows, rows) in one update, over all ranks and micro-batches."""
    batching: Literal["packed", "bucketed", "padded"] = "packed"
    """Rows of a task: several texts in one sequence; texts of like length together; or each padded to the longest."""
    curriculum: str | None = None
    """Rows of a task: `length`, or a column of numbers; the first epoch goes from the lowest to the highest."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Sequences in one forward and backward on one rank; null: the most that stay below 8,192 tokens."""
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """Type of the matrix products; weights and optimizer are kept in fp32. `auto`: bf16 where it is fast here, as measured.
    `fp8`: bf16, but the linear layers of the blocks in fp8 while training, on accelerators that have such products."""
    lanes: int | None = Field(None, ge=1)
    """On a CPU with one process: threads that each take a share of the micro-batches. null: all threads, up to 8, where the
    batch can be shared. Otherwise one, and all threads share each operation."""
    clip: float | None = Field(1.0, gt=0)
    """Largest global norm of the gradient; null: no clipping."""
    recompute: bool = False
    """Keeps only what goes into each block and computes the rest again in backward: less memory, a forward more."""
    memory: float | None = Field(None, gt=0)
    """Gibibytes that each process may use; null: what its container allows. An update that needs more is made again with
    micro-batches half as large."""
    compile: Literal["auto"] | bool = "auto"
    """Compiles the blocks with torch.compile: slower to start, faster afterwards. `auto`: where it pays within the run."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        ends = [f"{name} ({value})" for name in self.exclusive if (value := getattr(self, name)) is not None]
        if len(ends) > 1:
            raise ValueError(f"{' and '.join(ends)} both end the run; give one of them")
        return self

    @property
    def half(self) -> bool:
        """Whether what is not in fp8 is computed in bf16 and not in fp32."""
        return self.precision in ("bf16", "fp8")


class OptimConfig(Config):
    name: Literal["muon", "adamw", "sgd"] = "muon"
    """`muon`: Muon for the matrices inside blocks, AdamW for the rest (Jordan 2024); or AdamW or SGD for everything."""
    lr: float = Field(0.02, gt=0)
    """Peak learning rate of the named optimizer."""
    adam_lr: float = Field(4e-3, gt=0)
    """With muon: peak learning rate of AdamW, for embeddings, head, norms and biases."""
    ngram_lr: float = Field(0.05, gt=0)
    """Peak learning rate of Adagrad for the tables of `model.ngrams`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the gradient's mean and square."""
    epsilon: float = Field(1e-10, gt=0)
    """AdamW's epsilon."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Momentum of Muon (Nesterov) and SGD."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices; vectors are never decayed."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "linear"
    """After the warm-up: cosine or linear decay, constant until the last `decay` share and then linear (wsd), or constant."""
    warmup: float = Field(0.02, ge=0)
    """Steps of linear warm-up; below 1: share of the run."""
    decay: float = Field(0.4, gt=0, le=1)
    """With wsd: share of the run in which the rate falls."""
    final_lr: float = Field(0.0, ge=0, le=1)
    """Rate at the end, as a share of the peak."""


class ServerConfig(Config):
    """`parallel.server`: of `mode: parameter_server`."""

    consistency: Literal["synchronous", "bounded", "asynchronous", "local"] = "synchronous"
    """Workers compute on weights in which all earlier updates are; all but the last `staleness` (Ho et al. 2013); whichever
    are there, a stale gradient taking a smaller step (Zhang et al. 1511.05950); or make `local_steps` updates of their own
    between two exchanges (DiLoCo, Douillard et al. 2311.08105)."""
    staleness: int = Field(2, ge=0)
    """bounded: updates by which a worker may be ahead of the servers; 0 is synchronous."""
    shares: int | None = Field(None, ge=1)
    """Parts that an update's batch is cut into; a worker takes one after the other, so with more shares than workers a fast
    worker takes more. null: as many as workers are launched. asynchronous: always 1."""
    local_steps: int = Field(8, ge=1)
    """local: updates of a worker between two exchanges of the same weights."""
    outer_lr: float = Field(0.7, gt=0)
    """local: rate of the outer optimizer, SGD with Nesterov momentum; 1 without momentum is plain averaging."""
    outer_momentum: float = Field(0.9, ge=0, lt=1)
    """local: its momentum."""
    fragments: int = Field(1, ge=1)
    """local: parts of the model that are exchanged in turn, `local_steps / fragments` updates apart (Streaming DiLoCo,
    Douillard et al. 2501.18512)."""
    overlap_steps: int = Field(0, ge=0)
    """local: updates that a worker goes on making while a fragment it sent is averaged and comes back (τ of the same paper);
    0: it waits. At most `local_steps / fragments`."""
    mixing: float = Field(0.5, ge=0, lt=1)
    """local, with overlap_steps: how much of its own fragment a worker keeps when the averaged one comes (α; their 0.5)."""
    compress: Literal["none", "fp16", "int8"] = "none"
    """How gradients and deltas are sent; what rounding takes away is added to the next one (error feedback)."""
    count: int = Field(1, ge=1)
    """Servers that are started with the run, each with a range of the parameters."""
    addresses: list[str] = Field(default_factory=list)
    """host:port of servers that run already (zenspeed parameter-server), instead of starting some."""
    key_file: Path | None = None
    """File with the secret that servers and workers prove to each other to have; null: drawn for the run."""
    lease_seconds: float = Field(600.0, gt=0)
    """A share that a worker does not bring back in this time is given to another."""

    @model_validator(mode="after")
    def _check(self) -> ServerConfig:
        if self.local_steps % self.fragments:
            raise ValueError(f"local_steps: {self.local_steps} is not a multiple of fragments ({self.fragments})")
        if self.fragments > 1 and self.consistency != "local":
            raise ValueError(f"fragments: {self.fragments} are for consistency: local, not {self.consistency}")
        if self.overlap_steps and self.consistency != "local":
            raise ValueError(f"overlap_steps: {self.overlap_steps} are for consistency: local, not {self.consistency}")
        apart = self.local_steps // self.fragments
        if self.overlap_steps > apart:
            raise ValueError(
                f"overlap_steps: {self.overlap_steps} is more than local_steps / fragments ({apart}): a fragment would "
                "come after the next one is sent"
            )
        if self.addresses and self.key_file is None:
            raise ValueError("addresses: servers that run already ask for their key; give key_file")
        if self.consistency == "asynchronous" and (self.shares or 1) > 1:
            raise ValueError(f"shares: {self.shares}, but an asynchronous update is of one worker; take shares away")
        return self


class ParallelConfig(Config):
    mode: Literal["data_parallel", "parameter_server"] = "data_parallel"
    """Processes that exchange gradients among each other, or workers around servers that hold weights and optimizer."""
    server: ServerConfig = ServerConfig()
    zero: Literal[0, 1, 2, 3] = 1
    """What is spread over the ranks (Rajbhandari et al. 1910.02054): 1 optimizer, 2 and gradients, 3 and weights."""
    shard_ranks: int | None = Field(None, ge=1)
    """Ranks that share one copy of the model states; null: all. Fewer: hybrid sharding, copies replicated between groups."""

    @model_validator(mode="after")
    def _check(self) -> ParallelConfig:
        if self.mode == "parameter_server" and (self.zero > 1 or self.shard_ranks is not None):
            raise ValueError("zero, shard_ranks: with mode: parameter_server the servers hold the states; leave them out")
        return self


class CheckpointConfig(Config):
    every: int | None = Field(None, ge=1)
    """Steps between checkpoints; null: about once a minute. One is always written at the end and on Ctrl-C."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints that stay."""
    keep_best: bool = True
    """The checkpoint of the lowest validation loss stays as well."""
    copy_to: Path | None = None
    """A second folder, best on another disk, that gets a copy of each checkpoint; read where the first is damaged."""


class GuardConfig(Config):
    start_seconds: float = Field(300.0, gt=0)
    """Under `zenspeed launch`: longest time until a process has built its model, and for its first step; not for its data."""
    step_seconds: float | None = Field(None, gt=0)
    """Longest time of a step, after which the job is restarted; null: 10 × the slowest step so far, and 10 s at least."""
    save_seconds: float = Field(300.0, gt=0)
    """Longest time that the loop waits for a checkpoint."""
    evaluate_seconds: float = Field(3600.0, gt=0)
    """Longest time of an evaluation, and of what comes after the last step."""
    check_replicas: int = Field(100, ge=0)
    """Steps between comparisons of the weights' copies on the ranks, made before each checkpoint as well; 0: none."""
    spike_sigmas: float | None = Field(10.0, gt=0)
    """A loss so many standard deviations (0.1 nats at least) above the last ones makes no update; null: any finite loss may."""
    norm_factor: float | None = Field(100.0, gt=1)
    """A gradient's norm so many times the usual one, and above 10 × train.clip, makes no update; null: any finite norm may."""
    window: int = Field(64, ge=16)
    """Updates that losses and norms are compared with."""
    events: int = Field(3, ge=1)
    """Batches set aside within `window` updates after which the run rolls back to its last good checkpoint."""
    rollbacks: int = Field(2, ge=0)
    """Times a run rolls back at most."""


class EvaluateConfig(Config):
    every: int | None = Field(None, ge=0)
    """Steps between evaluations on the whole validation split; null: about ten in a run; 0: only the one at the end."""
    batch_size: int | None = Field(None, ge=1)
    """Sequences in one forward; null: as micro_batch_size."""
    overlap: int = Field(0, ge=0)
    """Of a language model: tokens by which its windows overlap. Every token is predicted from so many before it at least, for
    context / (context - overlap) times the work."""


class LogConfig(Config):
    every: int = Field(1, ge=1)
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = True
    """Writes TensorBoard events beside metrics.jsonl."""


class SampleConfig(Config):
    prompts: list[str] = Field(default_factory=lambda: [""])
    """Texts continued at the end of training, into samples.md; an empty one starts from nothing."""
    max_tokens: int = Field(100, ge=1)
    """Tokens of each continuation."""
    temperature: float = Field(0.8, ge=0)
    """0 takes the likeliest token each time."""
    top_k: int | None = Field(50, ge=1)
    """Draws among the k likeliest tokens; null: among all."""


class Recipe(Config):
    """One run."""

    run: RunConfig = RunConfig()
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    log: LogConfig = LogConfig()
    sample: SampleConfig = SampleConfig()
    decode: DecodeConfig = DecodeConfig()

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        self._check_architecture()
        rows = self.task.kind != "language_model"
        if self.train.precision == "fp8" and self.parallel.mode == "parameter_server":
            raise ValueError(
                "train.precision: workers of a parameter server compute in bf16 or fp32, not in fp8; give one of them"
            )
        if not rows:
            for key, off in (("data.test", self.data.test is None), ("train.curriculum", self.train.curriculum is None)):
                if not off:
                    raise ValueError(f"{key}: is for tasks with rows, not for language_model; take it away, or set task.kind")
            if self.data.hold_out != "auto" or self.data.hold_out_by is not None:
                raise ValueError("data.hold_out: is for tasks with rows; language_model holds out documents by their text")
            if self.evaluate.overlap >= self.model.context:
                raise ValueError(
                    f"evaluate.overlap: {self.evaluate.overlap} leaves nothing new in windows of model.context = "
                    f"{self.model.context}; give less than that"
                )
            if self.train.batching != "packed":
                raise ValueError(f"train.batching: language_model reads one stream, always packed, not {self.train.batching}")
            if self.train.target_loss is not None and self.parallel.mode == "parameter_server":
                raise ValueError("train.target_loss: is not looked at by workers of a parameter server; take it away")
        elif self.train.target_loss is not None:
            raise ValueError(f"train.target_loss: bits per byte are of language_model, not of {self.task.kind}; take it away")
        elif self.task.kind == "span_qa" and self.data.clean.changes_text:
            raise ValueError("data.clean: would move the answers of span_qa inside their texts; clean the files before")
        elif self.task.kind == "similarity" and self.task.text_pair is None:
            raise ValueError("task.text_pair: similarity needs it, the column of the text that belongs to task.text")
        elif self.evaluate.overlap:
            raise ValueError(
                f"evaluate.overlap: is for language_model, not for {self.task.kind}; take it away (see task.stride)"
            )
        elif self.data.sources:
            raise ValueError(f"data.sources: a mixture is for language_model; give {self.task.kind} one data.source")
        elif self.train.compile is True:
            raise ValueError(
                f"train.compile: batches of {self.task.kind} have many shapes, each compiled anew; set it to false"
            )
        return self

    def _check_architecture(self) -> None:
        kind, model = self.task.kind, self.model
        if model.base_width is not None and kind not in ("language_model", "chat"):
            raise ValueError(f"model.base_width: is for language_model and chat, not for {kind}; take it away")
        if self.train.recompute and model.architecture in ("recurrent", "transformers"):
            raise ValueError(f"train.recompute: cannot be done in architecture {model.architecture}; set it to false")
        if model.huggingface is not None or model.from_run is not None or model.architecture == "transformers":
            return  # told when the weights are loaded
        wanted, such = {
            "seq2seq": (("encoder_decoder",), "model.architecture to encoder_decoder, or model.preset to transformer or t5"),
            "span_corruption": (("encoder_decoder",), "model.architecture to encoder_decoder, or model.preset to t5"),
            "chat": (("decoder", "recurrent"), "model.preset to gpt or llama"),
        }.get(kind, ((), ""))
        if wanted and model.architecture not in wanted:
            raise ValueError(f"model.architecture: {model.architecture} cannot be trained for {kind}; set {such}")
        if kind == "language_model" and model.architecture == "encoder_decoder":
            raise ValueError("model.architecture: an encoder_decoder is for task.kind seq2seq or span_corruption")


def fresh_folder(recipe: Recipe) -> Path:
    """Where a run that is given no folder goes: runs/NAME; without a name one of its data and the time, not there yet."""
    if recipe.run.name is not None:
        return Path("runs") / recipe.run.name
    stem = Path(recipe.data.source).stem.strip("*") or "run"
    first = Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([first], others) if not folder.exists())
