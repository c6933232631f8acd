"""The article's training script (section 5.2) and its accuracy (5.4): `python train.py [MODEL]`, after `python prepare.py`."""

import sys

import torch
import torch.optim as optim
from torchtext import data  # the small stand-in beside this file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import zenspeed

# fmt: off  (the article's own layout)
MODEL = sys.argv[1] if len(sys.argv) > 1 else "bert-base-uncased"
device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
torch.manual_seed(0)

# 数据预处理
TEXT, LABEL = data.Field(sequential=True), data.LabelField()
train_data = data.TabularDataset(path="train_data.csv", format="csv", fields=[("text", TEXT), ("label", LABEL)])
train_loader = data.BucketIterator(train_data, batch_size=32, device=device)
test_data = data.TabularDataset(path="test_data.csv", format="csv", fields=[("text", TEXT), ("label", LABEL)])
test_loader = data.BucketIterator(test_data, batch_size=32, device=device, train=False)

# 模型初始化
model = AutoModelForSequenceClassification.from_pretrained(MODEL)
tokenizer = AutoTokenizer.from_pretrained(MODEL)

# 损失函数和优化器
loss_fn = torch.nn.CrossEntropyLoss()
optimizer = optim.Adam(model.parameters(), lr=0.001)

# 创建DeepSpeed引擎
model_engine, optimizer, _, _ = zenspeed.initialize(
    model=model, optimizer=optimizer, args=zenspeed.EngineArgs(system_rank=0, local_rank=0, fp16=True)
)

# 训练过程
for epoch in range(5):
    for batch in train_loader:
        inputs = tokenizer(batch.text, padding=True, truncation=True, return_tensors="pt").to(device)
        labels = batch.label
        model_engine.zero_grad()
        outputs = model_engine(inputs["input_ids"], inputs["attention_mask"])
        loss = loss_fn(outputs.logits, labels)
        loss.backward()
        model_engine.step()
    print(f"Epoch {epoch + 1}, Loss: {loss.item()}")

# 保存模型
torch.save(model_engine.state_dict(), "model.pth")

# 测试集准确率 (5.4)
model_engine.eval()
with torch.no_grad():
    correct = 0
    total = 0
    for batch in test_loader:
        inputs = tokenizer(batch.text, padding=True, truncation=True, return_tensors="pt").to(device)
        labels = batch.label
        outputs = model_engine(inputs["input_ids"], inputs["attention_mask"])
        _, predicted = torch.max(outputs.logits, 1)
        total += labels.size(0)
        correct += (predicted == labels).sum().item()

print(f"测试集准确率: {100 * correct / total}%")
