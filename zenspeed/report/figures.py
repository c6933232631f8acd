"""Names and definitions of figures in both languages. English comes with a figure; Chinese is here, by the figure's name."""

from __future__ import annotations

import re

from zenspeed.report.words import Words

ZH = {
    "loss": ("损失", "每个目标的平均负对数似然，单位奈特"),
    "perplexity": ("困惑度", "损失的指数"),
    "bits_per_byte": ("每字节比特数", "文本以 2 为底的负对数似然除以其 UTF-8 字节数"),
    "accuracy": ("准确率", "预测等于标签的行所占比例；等于微平均 F1"),
    "balanced_accuracy": ("平衡准确率", "各标签召回率的平均，只计出现的标签；等于宏平均召回率"),
    "precision_macro": ("精确率（宏平均）", "各标签精确率的平均，只计被预测的标签"),
    "f1_macro": ("F1（宏平均）", "各标签 F1 的平均，只计出现或被预测的标签"),
    "f1_weighted": ("F1（加权）", "各标签 F1 按行数加权的平均"),
    "mcc": ("马修斯相关系数", "标签与预测的相关（Matthews；多标签：Gorodkin 2004）"),
    "precision[]": ("精确率", "预测为 {} 的行中确实是的比例"),
    "recall[]": ("召回率", "标签为 {} 的行中被找到的比例"),
    "f1[]": ("F1", "{} 的精确率与召回率的调和平均"),
    "roc_auc_macro": ("ROC 曲线下面积（宏平均）", "各标签（一对其余）ROC 曲线下面积的平均"),
    "roc_auc[]": ("ROC 曲线下面积", "{} 对其余标签的 ROC 曲线下面积"),
    "average_precision_macro": ("平均精确率（宏平均）", "各标签（一对其余）精确率-召回率曲线下面积的平均"),
    "average_precision[]": ("平均精确率", "{} 对其余标签的精确率-召回率曲线下面积"),
    "log_loss": ("对数损失", "标签概率的平均负对数，单位奈特"),
    "brier": ("Brier 分数", "概率与标签（0 或 1）之差的平方，对标签求和、对行求平均"),
    "ece": ("校准误差", "置信度与实际正确率之差的平均，按置信度分箱"),
    "temperature": ("温度", "使这些行的对数损失最低的除数；大于 1：过于自信"),
    "log_loss_scaled": ("对数损失（温度缩放后）", "每一半行用另一半的温度缩放后的对数损失"),
    "ece_scaled": ("校准误差（温度缩放后）", "每一半行用另一半的温度缩放后的校准误差"),
    "pearson": ("皮尔逊相关", "预测与真值的皮尔逊相关系数"),
    "spearman": ("斯皮尔曼相关", "预测与真值的秩的相关系数，并列取平均秩"),
    "mean_absolute_error": ("平均绝对误差", "预测与真值之差的绝对值的平均"),
    "mean_squared_error": ("均方误差", "预测与真值之差的平方的平均"),
    "exact_match": ("完全匹配", "规范化后与参考答案相同的比例"),
    "token_f1": ("词元 F1", "答案与最佳参考答案之间词元 F1 的平均；中文按字"),
    "bleu": ("BLEU", None),
    "chrf": ("chrF", None),
    "ter": ("TER", None),
    "rouge1": ("ROUGE-1", "各行 ROUGE-1 的 F1 的平均；中文按字"),
    "rouge2": ("ROUGE-2", "各行 ROUGE-2 的 F1 的平均；中文按字"),
    "rougeL": ("ROUGE-L", "各行 ROUGE-L 的 F1 的平均；中文按字"),
    "length_ratio": ("长度比", "写出的字符数与参考的字符数之比"),
    "length_error": ("长度误差", "词数与要求词数之差的相对值的平均"),
    "length_kept": ("长度达标率", "长度在要求的 20 % 以内的行所占比例"),
    "mrr": ("平均倒数排名", "第一个相关项排名的倒数的平均"),
    "recall@": ("前 {} 名召回率", "属于查询的项出现在前 {} 名中的比例"),
    "ndcg@": ("nDCG@{}", "前 {} 名的折损累计增益，占最佳可能值的比例"),
    "accuracy_gap": ("准确率差距", "最高组与最低组的准确率之差"),
    "demographic_parity_gap[]": ("人口均等差距", "最高组与最低组中被预测为 {} 的行所占比例之差"),
    "equal_opportunity_gap[]": ("机会均等差距", "最高组与最低组中标签为 {} 的行被找到的比例之差"),
}
"""Name -> its Chinese name and definition; `…[]` of a label, `…@` of a rank, which stand for {}. None: as in English."""
SPLITS = {"validation": "验证集", "test": "测试集", "train": "训练集"}
_PARTS = re.compile(r"(?:(validation|test|train)_)?(\w+?)(?:\[(.*)\]|@(\d+))?", re.DOTALL)


def named(name: str) -> Words:
    """A figure's name in both languages."""
    return Words(name.replace("_", " "), chinese_of(name)[0])


def defined(name: str, definition: str) -> Words:
    """A figure's definition in both languages; what each group has, behind a semicolon, is the same in both."""
    chinese = chinese_of(name)[1]
    groups = definition.partition("; ")[2] if "_gap" in name else ""
    return Words(definition, f"{chinese}；{groups}" if chinese and groups else chinese)


def chinese_of(name: str) -> tuple[str | None, str | None]:
    """The Chinese name and definition of a figure, None where there is none."""
    found = _PARTS.fullmatch(name)
    split, base, label, rank = found.groups() if found is not None else (None, name, None, None)
    key = base + ("[]" if label is not None else "@" if rank is not None else "")
    title, definition = ZH.get(key, (None, None))
    if title is None:
        return None, None
    inside = label if label is not None else rank or ""
    title = title.replace("{}", inside) + (f" [{label}]" if label is not None else "")
    return (SPLITS[split] + title if split else title), definition.replace("{}", inside) if definition else None
