"""The article's listing for mixed precision (section 9, question 4): `python mixed_precision.py`."""

import torch
from classifier import Loader, accuracy, build_model, num_epochs

import zenspeed

# 模型、优化器等初始化
model = build_model()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
args = zenspeed.EngineArgs()
args = args.copy()
args.amp = True  # 启用AMP

# 初始化DeepSpeed
model_engine, optimizer, _, _ = zenspeed.initialize(model=model, optimizer=optimizer, args=args)
data_loader = Loader("train_data.csv")

# 训练过程
for epoch in range(num_epochs):
    losses = []
    for inputs, labels in data_loader:
        logits = model_engine(inputs)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)

        optimizer.zero_grad()
        loss.backward()
        model_engine.step()
        losses.append(loss.item())
    print(f"epoch {epoch + 1}, loss: {sum(losses) / len(losses):.4f}")

print(f"accuracy: {accuracy(model_engine):.4f}")
