"""The article's listing for distributed training (section 9, question 3): `zenspeed launch -n 2 distributed.py`."""

import os

import torch
from classifier import Loader, accuracy, build_model, num_epochs

import zenspeed

# 模型、优化器等初始化
model = build_model()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
args = zenspeed.EngineArgs(zero_stage=1)

# 初始化DeepSpeed
model_engine, optimizer, _, _ = zenspeed.initialize(model=model, optimizer=optimizer, args=args)
data_loader = Loader("train_data.csv", rank=int(os.environ.get("RANK", 0)), ranks=int(os.environ.get("WORLD_SIZE", 1)))

# 训练过程
for epoch in range(num_epochs):
    losses = []
    for inputs, labels in data_loader:
        loss = torch.nn.functional.cross_entropy(model_engine(inputs), labels)
        model_engine.backward(loss)
        model_engine.step()
        losses.append(loss.item())
    print(f"rank {model_engine.global_rank} epoch {epoch + 1}, loss: {sum(losses) / len(losses):.4f}", flush=True)

print(f"rank {model_engine.global_rank} accuracy: {accuracy(model_engine):.4f}", flush=True)
model_engine.destroy()
