"""The report's own words in both languages. A page holds both; a switch in it, without script, shows one."""

from __future__ import annotations

import html
import re
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

_SENTENCES = (
    (r"(\d+) (?:rows|units) only: the intervals are wide and approximate below (\d+)",
     r"只有 \1 行：少于 \2 行时，区间又宽又粗略"),
    (r"(\w+) is uncertain by ±(\d+) points; about ([\d,]+) rows would make it ±5",
     r"\1 的不确定度为 ±\2 个百分点；约需 \3 行才能降到 ±5"),
    (r"labels with fewer than (\d+) rows, whose figures say little: (.+)", r"以下标签不足 \1 行，其指标说明不了多少：\2"),
    (r"([\d,]+) texts? (?:is|are) equal or nearly equal to another with another label",
     r"有 \1 条文本与标签不同的另一条相同或几乎相同"),
    (r"intervals without width, for every resample gives the same value; other rows may not: (.+)",
     r"每次重采样都得到同一值，因此区间没有宽度，而其他行未必如此：\1"),
    (r"slice (.+): (\d+) of (\d+) values have fewer than (\d+) rows", r"分组 \1：\3 个取值中有 \2 个不足 \4 行"),
    (r"no rows(?: to count)?", "没有行"),
    (r"these rows do not define it", "这些行无法定义它"),
    (r"one (?:row|document) only, nothing to resample", "只有一行，无法重采样"),
    (r"too few rows: not defined in more than 5 % of the resamples", "行太少：超过 5 % 的重采样中无定义"),
    (r"only one (?:label|class) occurs", "只出现了一个标签"),
    (r"every prediction is the same label", "所有预测都是同一标签"),
    (r"(.+) is never predicted", r"从未预测 \1"),
    (r"no row is labelled (.+)", r"没有行带标签 \1"),
    (r"every reference is empty", "所有参考答案均为空"),
    (r"all truths, or all predictions, are the same", "所有真值或所有预测都相同"),
    (r"the correlation is perfect", "完全相关"),
    (r"fewer than (?:two|four|20) rows", "行太少"),
    (r"one row only of a class", "某一类只有一行"),
    (r"no row (?:differs|left out) .+", "各行没有差别，方差为 0"),
    (r"a label has so few rows that without some of them it has none", "某个标签的行太少，去掉几行便没有了"),
    (r"the scores are no probabilities: .+", "分数不是概率：并非都在 0 到 1 之间且和为 1"),
    (r"fitted; ([\d.]+) and ([\d.]+) on random halves of the rows", r"拟合所得；在随机两半上分别为 \1 与 \2"),
    (r"there is one group only", "只有一个群体"),
    (r"group (.+) has (\d+) rows(?: labelled (.+?))?, fewer than (\d+)", r"群体 \1 只有 \2 行，少于 \4"),
    (r"no (?:queries|questions)", "没有查询"),
    (r"no threshold has precision ([\d.]+); the highest is ([\d.]+)", r"没有阈值能达到精确率 \1；最高为 \2"),
    (r"no row has the label", "没有行带此标签"),
    (r"(.+) is better than (.+)", r"\1 优于 \2"),
    (r"(.+) is worse than (.+)", r"\1 不如 \2"),
    (r"these rows do not show that they differ; a difference of (.+) would probably have been seen",
     r"这些行没有显示出差异；若差异达到 \1，多半会看出来"),
    (r"(.+) is not defined on these rows: nothing may be concluded", r"\1 在这些行上无定义：无法下结论"),
)  # fmt: skip


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


def sentence(text: str) -> Words:
    """What an evaluation says (a reason, a warning, a conclusion), in both languages."""
    for pattern, zh in _SENTENCES:
        if found := re.fullmatch(pattern, text):
            return Words(text, found.expand(zh))
    return Words(text)


def svg_words(en: str, attributes: str) -> str:
    """The same as text elements of a drawing."""
    zh = ZH.get(en)
    if zh is None:
        return f"<text {attributes}>{html.escape(en)}</text>"
    return f'<text lang="en" {attributes}>{html.escape(en)}</text><text lang="zh" {attributes}>{html.escape(zh)}</text>'
