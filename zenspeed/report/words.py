"""The report's own words in both languages. A page holds both; a switch in it, without script, shows one."""

from __future__ import annotations

import html
from typing import NamedTuple

ZH = {
    "Summary": "摘要",
    "Figures": "指标",
    "figure": "指标",
    "value": "数值",
    "95 % interval": "95 % 区间",
    "definition": "定义",
    "Loss": "损失",
    "tokens": "词元",
    "loss (nats)": "损失（奈特）",
    "training": "训练",
    "validation": "验证",
    "step": "步",
    "Learning rate and gradient norm": "学习率与梯度范数",
    "learning rate": "学习率",
    "gradient norm": "梯度范数",
    "Confusion matrix": "混淆矩阵",
    "true label": "真实标签",
    "predicted label": "预测标签",
    "Rows are the true labels, columns the predicted ones.": "行为真实标签，列为预测标签。",
    "ROC curve": "ROC 曲线",
    "false positive rate": "假正率",
    "true positive rate": "真正率",
    "Precision and recall": "精确率与召回率",
    "recall": "召回率",
    "precision": "精确率",
    "Calibration": "校准",
    "probability said": "预测概率",
    "share that is right": "实际正确率",
    "Below the line: too sure of itself. Larger dots hold more rows.": "线下：过于自信。点越大，行数越多。",
    "By part": "分组指标",
    "part": "分组",
    "Gaps between groups": "群体差距",
    "Changed texts": "扰动文本",
    "change": "扰动",
    "before": "之前",
    "after": "之后",
    "difference": "差异",
    "answers changed": "答案改变",
    "Examples": "示例",
    "The most confident mistakes": "最自信的错误",
    "The worst answers": "最差的回答",
    "Some answers": "部分回答",
    "row": "行",
    "text": "文本",
    "truth": "真值",
    "prediction": "预测",
    "confidence": "置信度",
    "error": "误差",
    "token_f1": "词元 F1",
    "Most confused pairs": "最易混淆的标签对",
    "rows": "行数",
    "share of the label": "占该标签比例",
    "Like texts with different labels": "相似文本、不同标签",
    "label": "标签",
    "other label": "另一标签",
    "other text": "另一文本",
    "Thresholds": "阈值",
    "wanted": "目标",
    "threshold": "阈值",
    "Data": "数据",
    "what": "项目",
    "Recipe": "配方",
    "Environment": "环境",
    "How to repeat it": "如何重现",
    "Samples": "生成样例",
    "Warnings": "提醒",
    "Comparison": "比较",
    "Whether they differ": "是否存在差异",
    "first": "甲",
    "second": "乙",
    "conclusion": "结论",
    "What differs in the recipes": "配方的不同之处",
    "key": "键",
    "validation loss": "验证损失",
    "not defined": "无定义",
    "none": "无",
    "No figures were written by this run.": "此次运行没有写出指标。",
    "Intervals: Wilson's for shares, else a bootstrap over rows": "区间：比例用 Wilson 法，其余对行自助重采样",
    "resamples, seed": "次，种子",
    "Model": "模型",
    "train": "训练集",
    "test": "测试集",
    "rows with text": "有文本的行",
    "different rows (text and label)": "不同的行（文本与标签）",
    "different texts": "不同的文本",
    "different texts after normalisation": "规范化后不同的文本",
    "near duplicates beyond these": "此外的近似重复",
    "texts with several labels": "带多个标签的文本",
    "share": "比例",
    "characters": "字符",
    "mean": "均值",
    "least": "最小",
    "median": "中位数",
    "most": "最大",
    "sequence length": "序列长度",
    "rows cut": "被截断的行",
    "tokens lost": "失去的词元",
    "language": "语言",
    "script": "文字",
    "tokens a character": "每字符词元数",
    "different tokens": "不同的词元",
    "unknown": "未知",
    "set": "数据集",
    "first rows": "最先的行",
    "test row": "测试集行",
    "validation row": "验证集行",
    "train row": "训练集行",
    "kind": "类型",
    "empty": "空文本",
    "no text but another type": "不是文本而是其他类型",
    "NUL bytes": "空字节",
    "other control characters": "其他控制字符",
    "broken encoding (mojibake)": "乱码",
    "characters lost in decoding (U+FFFD)": "解码时丢失的字符（U+FFFD）",
    "markup": "标记语言",
    "longer than 20 times the median": "长于中位数的 20 倍",
    "seconds": "秒",
    "updates": "步",
}


def escape(text: object) -> str:
    """Any text as HTML, what cannot be printed as its number."""
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in str(text)))


class Words(NamedTuple):
    """A text in both languages, as HTML."""

    en: str
    zh: str | None = None
    """Default: from the table."""

    def __str__(self) -> str:
        zh = self.zh or ZH.get(self.en)
        shown = escape(self.en)
        if zh is None or zh == self.en:
            return shown
        return f'<span lang="en">{shown}</span><span lang="zh">{escape(zh)}</span>'


def svg_words(en: str, attributes: str) -> str:
    """The same as text elements of a drawing."""
    zh = ZH.get(en)
    if zh is None:
        return f"<text {attributes}>{html.escape(en)}</text>"
    return f'<text lang="en" {attributes}>{html.escape(en)}</text><text lang="zh" {attributes}>{html.escape(zh)}</text>'
